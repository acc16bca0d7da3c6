"""PEFT: LoRA on the query and value projections of every family, trained, differentiated, saved, loaded and merged."""

import json

import pytest
import torch
import transformers
from families import FAMILIES, model_of, pair_of
from tiny import GRADIENTS, NO_DROPOUT, PAIRS, bert_config, imbert_config, lively
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, Trainer, TrainingArguments

from imbert_hf import IMBertForSequenceClassification


peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),  # the Trainer's, without an accelerator
    # It has another name from some 5.x on; the old one, which PEFT asks for too, serves both ends of the range.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]


# By the model_type of the family; others have BERT's.
TARGETS = {
    "deberta-v2": ["query_proj", "value_proj"],
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
}


def lora(model, dropout=0.1, **kwargs):
    targets = TARGETS.get(model.config.model_type.removeprefix("im"), ["query", "value"])
    config = peft.LoraConfig(
        **{"task_type": "SEQ_CLS", "target_modules": targets, "r": 4, "lora_dropout": dropout, **kwargs}
    )
    return peft.get_peft_model(model, config)


def lively_lora(dropout=0.1, **kwargs):
    """With B away from 0, where it begins and where A has no gradient."""
    return lively(lora(IMBertForSequenceClassification(imbert_config(**kwargs)), dropout))


def rows(n=32):
    """Label 1 where the first word is of the vocabulary's upper half."""
    ids = torch.randint(5, 99, (n, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[0] > 52)} for row in ids]


def loss_of(model, batch):
    torch.manual_seed(5)
    return model(**batch, labels=torch.tensor([0, 1, 1])).loss


def parameter_gradients(model, batch):
    model.zero_grad()
    loss_of(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("family", "gradient", "checkpointing"),
    [
        *((family, "implicit", False) for family in FAMILIES),
        ("Bert", "one_step", False),
        ("Bert", "unrolled", False),
        ("Bert", "implicit", True),
    ],
)
def test_the_trainer_trains_adapter_and_classifier_alone(family, gradient, checkpointing, tmp_path):
    torch.manual_seed(0)
    model = lora(model_of(f"IM{family}ForSequenceClassification", im_gradient=gradient))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = TrainingArguments(
        tmp_path,
        max_steps=10,
        learning_rate=2e-2,
        per_device_train_batch_size=16,
        gradient_checkpointing=checkpointing,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows())
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start * (0.9 if family == "Bert" else 1.0)  # ten steps
    trained = {name for name in before if "lora_" in name or "classifier.modules_to_save" in name}
    assert {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)} == trained


@pytest.mark.parametrize("theta", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_theta_0_it_is_lora_on_the_family_bit_for_bit(family, theta, batch):
    pair = pair_of(f"{family}ForSequenceClassification", im_theta=theta)
    expected, found = (parameter_gradients(lively(lora(model)).train(), batch) for model in pair)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], grad) for name, grad in expected.items()) == (theta == 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projections_are_those_that_peft_chooses_for_the_family(family):
    """By itself it does so for models whose type it knows: ours has to be told. All linear layers it finds in any."""

    def adapted(model, **kwargs):
        modules = lora(model, task_type="FEATURE_EXTRACTION", **kwargs).named_modules()
        return {name for name, _ in modules if name.endswith("lora_A.default")}

    def models():
        return pair_of(f"{family}Model")

    plain, implicit = map(adapted, models())
    assert plain == implicit
    assert len(plain) == (3 if family == "ModernBert" else 6)
    model = models()[0]
    if model.config.model_type in peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        assert adapted(model, target_modules=None) == plain
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        adapted(models()[1], target_modules=None)
    linear = [adapted(model, target_modules="all-linear") for model in models()]
    assert linear[0] == linear[1] > implicit


@pytest.mark.parametrize("consistency", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_adapter_and_classifier_alone(family, consistency, batch):
    model = lively(lora(model_of(f"IM{family}ForSequenceClassification", im_consistency=consistency))).train()
    loss_of(model, batch).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in model.named_parameters() if "lora_" in name or "modules_to_save" in name}


@pytest.mark.parametrize("consistency", [0.0, 1.0])
@pytest.mark.parametrize(("solver", "gradient"), PAIRS)
def test_the_adapter_draws_its_dropout_once_a_solve(solver, gradient, consistency, batch):
    fields = {"im_solver": solver, "im_gradient": gradient, "im_consistency": consistency}
    model = lively_lora(0.5, **fields, **NO_DROPOUT).train()
    drawn = {}

    def record(module, args, output):
        drawn.setdefault(module, []).append(output.detach() != 0)

    dropouts = [m for name, m in model.named_modules() if "lora_dropout.default" in name]
    for module in dropouts:
        module.register_forward_hook(record)
    parameter_gradients(model, batch)
    first = [masks[0] for masks in drawn.values()]
    assert len(dropouts) == len(drawn) == 6
    for masks in drawn.values():
        assert len(masks) >= 4
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        assert 0.3 < masks[0].float().mean() < 0.7
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])


@pytest.mark.parametrize(("dropout", "consistency"), [(0.0, 0.0), (0.3, 0.0), (0.3, 1.0)])
def test_the_implicit_gradient_is_that_of_finite_differences_and_of_unrolling(dropout, consistency, batch):
    solved = {"im_solver": "anderson", "im_iterations": 14, "im_step_size": 0.3, "num_hidden_layers": 2}
    solved["im_consistency"] = consistency
    model = lively_lora(dropout, **solved, **({} if dropout else NO_DROPOUT)).double().train()
    implicit = parameter_gradients(model, batch)
    assert all(grad.norm() > 1e-5 for grad in implicit.values())

    generator = torch.Generator().manual_seed(2)
    factors = {name: p for name, p in model.named_parameters() if "lora_" in name}
    for factor in ("lora_A", "lora_B"):
        direction = {n: torch.randn(p.shape, generator=generator).double() for n, p in factors.items() if factor in n}
        losses = []
        for shift in (1e-5, -2e-5, 1e-5):
            with torch.no_grad():
                for name, d in direction.items():
                    factors[name] += shift * d
                losses.append(loss_of(model, batch).item())
        slope = sum((implicit[name] * d).sum().item() for name, d in direction.items())
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-6, abs=1e-9)

    model.config.im_gradient = "unrolled"
    torch.testing.assert_close(parameter_gradients(model, batch), implicit, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("consistency", [0.0, 1.0])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(gradient, reentrant, consistency, batch):
    model = lively_lora(im_gradient=gradient, im_consistency=consistency).train()
    expected = parameter_gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    actual = parameter_gradients(model, batch)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)


@pytest.fixture
def saved(tmp_path, batch):
    """Folders of a base and of its adapter, with the logits of both together."""
    return saved_of(IMBertForSequenceClassification(imbert_config(im_solver="anderson")), tmp_path, batch)


def saved_of(base, folder, batch):
    lively(base).save_pretrained(folder / "base")
    model = lora(type(base).from_pretrained(folder / "base"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        logits = model.eval()(**batch).logits
    model.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", logits


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_loads_onto_a_fresh_base_and_merges(family, batch, tmp_path):
    made = model_of(f"IM{family}ForSequenceClassification", im_solver="anderson")
    base_folder, adapter, logits = saved_of(made, tmp_path, batch)
    base = type(made).from_pretrained(base_folder)
    plain = base.eval()(**batch).logits
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(model(**batch).logits, plain, rtol=0, atol=0)
    assert (logits - plain).abs().max() > 1e-2

    merged = model.merge_and_unload()
    assert type(merged) is type(made)
    torch.testing.assert_close(merged(**batch).logits, logits, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again, info = type(made).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(again(**batch).logits, merged(**batch).logits, rtol=0, atol=0)


OPENERS = {"peft": peft.AutoPeftModelForSequenceClassification, "transformers": AutoModelForSequenceClassification}


@torch.no_grad()
@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_the_folder_of_the_adapter_opens_with_its_base(opener, saved, batch, tmp_path):
    def opens(adapter, logits):
        found = opener.from_pretrained(adapter).eval()(**batch).logits
        return found.shape == logits.shape and torch.allclose(found, logits, rtol=0, atol=1e-6)

    bert = BertForSequenceClassification(bert_config())
    if opener is AutoModelForSequenceClassification and not berts_opens(opens, bert, tmp_path / "bert", batch):
        pytest.skip(f"transformers {transformers.__version__} loads no adapter of plain BERT either")
    assert opens(*saved[1:])


def berts_opens(opens, bert, folder, batch):
    try:
        return opens(*saved_of(bert, folder, batch)[1:])
    except Exception:  # 5.0.0 raises
        return False


def test_a_stranger_loads_base_and_adapter(saved, batch, tmp_path, run_stranger):
    base, adapter, logits = saved
    code = """
import json, peft
batch = {name: torch.tensor(rows) for name, rows in json.loads(sys.argv[3]).items()}
base = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True)
model = peft.PeftModel.from_pretrained(base, target)
auto = peft.AutoPeftModelForSequenceClassification.from_pretrained(target, trust_remote_code=True)
assert type(base).__module__.startswith("transformers_modules."), type(base)
with torch.no_grad():
    print(json.dumps([m.eval()(**batch).logits.tolist() for m in (model, auto, model.merge_and_unload())]))
"""
    values = json.dumps({name: rows.tolist() for name, rows in batch.items()})
    for found in json.loads(run_stranger(code, base, adapter, values, modules=tmp_path / "modules")):
        torch.testing.assert_close(torch.tensor(found), logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_one_batch_take_different_adapters(saved, batch):
    base, adapter, _ = saved
    model = peft.PeftModel.from_pretrained(
        IMBertForSequenceClassification.from_pretrained(base, im_tolerance=1e-2, im_iterations=12), adapter
    ).eval()
    with model.disable_adapter():
        plain = model(**batch).logits
    adapted = model(**batch).logits
    names = ["__base__", "default", "__base__"]
    mixed = model(**batch, adapter_names=names).logits
    expected = torch.stack([(adapted if name == "default" else plain)[i] for i, name in enumerate(names)])
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)


def test_prefix_tuning_is_refused(batch):
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    model = peft.get_peft_model(IMBertForSequenceClassification(imbert_config()), config)
    # Since transformers 5.24 PEFT 0.21 finds no such argument in BERT itself.
    refusals = "past_key_values must be None for 'imbert', got a|does not support past key values"
    with pytest.raises(ValueError, match=refusals):
        model(**batch)
