"""Classes of a user's own around these models: what they keep, and what their saves carry."""

import importlib
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from families import FAMILIES, config_of
from stranger import files_of
from tiny import imbert_config, imbert_model, lively
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
)

import imbert_hf
from imbert_hf import (
    IMBertConfig,
    IMBertForMultipleChoice,
    IMBertForSequenceClassification,
    IMBertModel,
    IMBertPreTrainedModel,
)


SUBCLASS = """
import sys, torch
from torch import nn
import imbert_hf
from imbert_hf import (
    IMBertConfig,
    IMBertForMultipleChoice,
    IMBertForSequenceClassification,
    IMBertModel,
    IMBertPreTrainedModel,
)

class Mine(IMBertForSequenceClassification):
    pass

class Head(IMBertPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.bert = IMBertModel(config)
        self.score = nn.Linear(config.hidden_size, 1)
        self.post_init()

config = IMBertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=50)
for kind in (Mine, Head):
    kind(config).save_pretrained(f"{sys.argv[1]}/{kind.__name__}")
"""


def files_in(folder):
    return {path.name for path in folder.glob("*_imbert.py")}


@pytest.mark.parametrize("where", ["script", "module"])
def test_models_of_a_users_own_class_carry_the_code(where, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SUBCLASS)
    if where == "script":
        command = [sys.executable, "-m", "mine", tmp_path]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    else:
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path)])
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        importlib.import_module("mine")
    for kind in ("Mine", "Head"):
        folder = tmp_path / kind
        assert sorted(files_in(folder)) == files_of("Bert")
        assert IMBertConfig.from_pretrained(folder).auto_map == IMBertConfig().auto_map
        assert type(AutoModel.from_pretrained(folder)) is IMBertModel
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "Mine")
    assert type(model) is IMBertForSequenceClassification


def test_classes_of_a_user_keep_their_forward_and_stand_for_no_other(batch):
    class Own(IMBertPreTrainedModel, BertForSequenceClassification):
        def forward(self, input_ids=None, **kwargs):
            return "own"

    class Logged:
        def forward(self, *args, **kwargs):
            return "logged", super().forward(*args, **kwargs)

    class Mixed(Logged, IMBertForSequenceClassification):
        pass

    class Odd(IMBertPreTrainedModel, BertModel):
        pass

    assert Own(imbert_config())(**batch) == "own"
    assert Mixed(imbert_config())(**batch)[0] == "logged"
    assert type(IMBertForSequenceClassification(imbert_config()).bert) is IMBertModel
    output = lively(Odd(imbert_config())).eval()(**batch)
    assert pickle.loads(pickle.dumps(output)).last_hidden_state.shape == (3, 9, 32)


def test_a_part_of_a_head_may_be_called_encoder(batch):
    class Choice(IMBertForMultipleChoice):
        def __init__(self, config):
            super().__init__(config)
            self.encoder = nn.Linear(2, 2)

    ids, mask = (torch.stack([batch[name]] * 2, dim=1) for name in ("input_ids", "attention_mask"))
    assert Choice(imbert_config())(input_ids=ids, attention_mask=mask).logits.shape == (3, 2)


def test_a_plain_encoder_in_a_users_class_becomes_implicit(batch):
    class Head(IMBertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = BertModel(config)
            self.post_init()

        def forward(self, **inputs):
            return self.bert(**inputs)

    model = lively(Head(imbert_config())).eval()
    assert type(model.bert) is IMBertModel
    assert model(**batch, output_im_statistics=True).im_residuals is not None


def test_a_model_after_fully_shard_carries_the_code(tmp_path, process_group):
    from torch.distributed.fsdp import fully_shard

    model = imbert_model()
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    state = {name: p.full_tensor().detach() for name, p in model.state_dict().items()}
    assert type(model).__name__ == "FSDPIMBertForSequenceClassification"
    model.save_pretrained(tmp_path, state_dict=state)
    config = IMBertConfig.from_pretrained(tmp_path)
    assert config.auto_map == IMBertConfig().auto_map
    assert "layers_imbert.py" in files_in(tmp_path)


def test_importing_the_package_replaces_nothing_of_transformers():
    code = """
import torch, transformers
from transformers import PreTrainedModel, PretrainedConfig, Trainer
from transformers.utils import hub
classes = (PreTrainedModel, PretrainedConfig, Trainer, hub.PushToHubMixin, transformers.BertModel)
before = [dict(vars(c)) for c in classes] + [dict(vars(hub)), dict(vars(torch.nn.Module))]
import imbert_hf
after = [dict(vars(c)) for c in classes] + [dict(vars(hub)), dict(vars(torch.nn.Module))]
print([k for a, b in zip(before, after) for k in b if k not in a or a[k] is not b[k]])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done


def test_a_class_that_a_user_registers_stays_in_the_auto_map(tmp_path):
    entry = {
        "AutoModelForSequenceClassification": "mine.Mine",
        "AutoModel": "someone/else--modeling_imbert.IMBertModel",
    }
    imbert_config(auto_map=entry).save_pretrained(tmp_path)
    found = IMBertConfig.from_pretrained(tmp_path).auto_map
    assert found == {**IMBertConfig().auto_map, "AutoModelForSequenceClassification": "mine.Mine"}


@pytest.mark.skipif(transformers.__version__.startswith("5.0."), reason="it draws so over BERT's weights too")
@pytest.mark.parametrize("name", [f"{family}ForSequenceClassification" for family in FAMILIES])
def test_what_a_users_class_draws_in_place_is_not_drawn_over_what_is_loaded(name, tmp_path):
    class Mine(getattr(imbert_hf, f"IM{name}")):
        def _init_weights(self, module):
            if isinstance(module, torch.nn.Linear):
                module.weight.data.normal_()

    torch.manual_seed(0)
    model = Mine(config_of(f"IM{name}"))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Mine.from_pretrained(tmp_path).state_dict(), model.state_dict(), rtol=0, atol=0)
