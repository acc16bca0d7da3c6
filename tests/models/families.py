"""The families and all their models: tiny ones, plain and implicit, with the same weights."""

import torch
import transformers
from tiny import TINY, lively

import imbert_hf


# What differs from tiny.TINY: RoBERTa counts positions from behind its padding index.
ROBERTA = {"max_position_embeddings": 66, "pad_token_id": 1}
FAMILIES = {
    "Bert": {},
    "Roberta": ROBERTA,
    "Electra": {"embedding_size": 16},
    "XLMRoberta": ROBERTA,
    # As the published v3 has it, but for its size, and with the convolution of the larger v2.
    "DebertaV2": {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": -1,
        "position_biased_input": False,
        "conv_kernel_size": 3,
    },
    "DistilBert": {"hidden_dim": 48},
    "ModernBert": {"pad_token_id": 0, "local_attention": 4, "attention_dropout": 0.1, "mlp_dropout": 0.1},
}
if transformers.__version__.startswith("5.0."):  # whose layers are other ones
    del FAMILIES["ModernBert"]
OTHERS = [family for family in FAMILIES if family != "Bert"]
# In float64: ModernBERT turns queries and keys to their positions in float32.
ROUNDING = {family: 1e-6 if family == "ModernBert" else 1e-12 for family in FAMILIES}
MODELS = [
    path.rpartition(".IM")[2]
    for family in FAMILIES
    for auto_class, path in getattr(imbert_hf, f"IM{family}Config")().auto_map.items()
    if auto_class != "AutoConfig"
]


def family_of(name):
    """Bert for BertForMaskedLM."""
    return next(family for family in FAMILIES if name.startswith(family))


def config_of(name, **kwargs):
    """The tiny implicit config of a model, or the plain one where `name` has no IM before it."""
    family = family_of(name.removeprefix("IM"))
    if name.startswith("IM"):
        return getattr(imbert_hf, f"IM{family}Config")(**{**TINY, **FAMILIES[family], "im_layers": "all", **kwargs})
    return getattr(transformers, f"{family}Config")(**{**TINY, **FAMILIES[family], **kwargs})


def model_of(name, **kwargs):
    """A lively model, implicit where `name` has IM before it; fields of its config."""
    with torch.random.fork_rng():  # the same weights whatever ran before
        torch.manual_seed(0)
        library = imbert_hf if name.startswith("IM") else transformers
        return lively(getattr(library, name)(config_of(name, **kwargs))).eval()


def pair_of(name, **kwargs):
    """A model of transformers, such as BertModel, and its implicit one with the same weights; fields of the latter."""
    plain, model = model_of(name), model_of(f"IM{name}", **kwargs)
    model.load_state_dict(plain.state_dict())
    return plain, model


def inputs_for(name, batch):
    """Inputs of a model and labels of its head; padded with the family's own token."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    batch = {**batch, "input_ids": ids.masked_fill(mask == 0, config_of(name).pad_token_id)}
    rows = torch.arange(len(ids))
    return {
        "Model": batch,
        "ForSequenceClassification": {**batch, "labels": rows % 2},
        "ForTokenClassification": {**batch, "labels": ids % 2},
        "ForQuestionAnswering": {**batch, "start_positions": rows, "end_positions": rows + 1},
        "ForMultipleChoice": {**{k: v[None].repeat(2, 1, 1) for k, v in batch.items()}, "labels": rows[:2]},
        "ForMaskedLM": {**batch, "labels": ids},
        "ForNextSentencePrediction": {**batch, "labels": rows % 2},
        "ForPreTraining": {**batch, "labels": ids, "next_sentence_label": rows % 2},
    }[name.removeprefix(family_of(name))]


def type_of(family):
    """The family's model_type: xlm-roberta for XLMRoberta."""
    return getattr(transformers, f"{family}Config").model_type


def base_of(model):
    """The encoder model of a head; itself where it has none."""
    return getattr(model, model.base_model_prefix, model)
