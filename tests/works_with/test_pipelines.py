"""Every pipeline that transformers has for a head of a family, opened by task name from a folder, as users do.

Without an implicit layer it answers exactly what it answers for the plain family; with the implicit connection it
answers something else, and the same for a text alone as in a batch.
"""

import inspect
import json
import numbers

import pytest
import torch
import transformers
from classifiers import WORDS, labelled, tokenizer
from families import FAMILIES, config_of
from tiny import lively
from transformers import pipeline

import imbert_hf


TEXTS = ["w1 w2 w3", "w4 w5 w6 w7 w8 w9 w10 w11", "w3", "w12 w13 w14 w15 w16"]
NLI = labelled(["entailment", "neutral", "contradiction"])
TAGS = labelled(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
# task: head, config, texts, options of the call
TASKS = {
    "text-classification": ("ForSequenceClassification", labelled(["bad", "fair", "good"]), TEXTS, {"top_k": None}),
    "token-classification": ("ForTokenClassification", TAGS, TEXTS, {"aggregation_strategy": "simple"}),
    "fill-mask": ("ForMaskedLM", {}, [f"{text} [MASK] w20" for text in TEXTS], {"top_k": 5}),
    "feature-extraction": ("Model", {}, TEXTS, {}),
    "zero-shot-classification": (
        "ForSequenceClassification",
        NLI,
        TEXTS,
        {"candidate_labels": ["w30", "w31 w32"], "hypothesis_template": "w40 {} w41"},
    ),
}
CONNECTIONS = {
    "fixed_point": {},
    "anderson to a tolerance": {"im_solver": "anderson", "im_iterations": 40, "im_tolerance": 1e-4},
    "gradient_descent, some layers": {"im_solver": "gradient_descent", "im_learning_rate": 0.02, "im_layers": [0, 2]},
}


def connections_of(family):
    """Of others than BERT the default: where ELECTRA's layers do not converge, Anderson enlarges rounding errors."""
    return CONNECTIONS.values() if family == "Bert" else [CONNECTIONS["fixed_point"]]


def save_both(folder, name, **config):
    """The folders of a plain model, such as BertModel, and of its implicit one with these weights and a tokenizer."""
    tokens = tokenizer()
    torch.manual_seed(0)
    model = lively(getattr(transformers, name)(config_of(name, pad_token_id=tokens.pad_token_id, **config)))
    if "token_type_ids" not in inspect.signature(model.forward).parameters:  # as the family's own tokenizer has it
        tokens = tokenizer(model_input_names=["input_ids", "attention_mask"])
    model.save_pretrained(folder / "plain")
    implicit = getattr(imbert_hf, f"IM{name}").from_pretrained(folder / "plain", im_layers="all")
    implicit.save_pretrained(folder / "implicit")
    for kind in ("plain", "implicit"):
        tokens.save_pretrained(folder / kind)
    return folder / "plain", folder / "implicit"


def opened(task, folder, **kwargs):
    """Weights mapped from a file lie where they lie in it, which decides how a product rounds: here all lie alike."""
    pipe = pipeline(task, model=str(folder), device="cpu", model_kwargs=kwargs)
    for weight in pipe.model.parameters():
        weight.data = weight.data.clone()
    return pipe


def assert_alike(actual, expected, tolerance, where="answer"):
    """The same structure, labels and words, and numbers that differ by at most `tolerance`."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_alike(actual[key], expected[key], tolerance, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_alike(one, other, tolerance, f"{where}[{i}]")
    elif isinstance(expected, numbers.Real):
        assert abs(actual - expected) <= tolerance, (where, actual, expected)
    else:
        assert actual == expected, where


def test_pairs_keep_their_token_types_with_and_without_the_package(tmp_path, run_stranger):
    """A tokenizer opened by a model type that transformers does not know forgets them, and the answers are others."""
    bert, imbert = save_both(tmp_path, "BertForSequenceClassification", **NLI)
    pair = ("w1 w2", "w3 w4")
    expected = dict(transformers.AutoTokenizer.from_pretrained(bert)(*pair))
    assert dict(transformers.AutoTokenizer.from_pretrained(imbert)(*pair)) == expected
    code = f"""
import json
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
pipe = pipeline("zero-shot-classification", model=source, trust_remote_code=True, device="cpu")
assert dict(pipe.tokenizer{pair}) == dict(tokenizer{pair})
print(json.dumps([dict(tokenizer{pair}), pipe("w1 w2", candidate_labels=["w3", "w4"])]))
"""
    encoding, answer = json.loads(run_stranger(code, imbert, "-", modules=tmp_path / "modules"))
    assert encoding == expected
    pipe = pipeline("zero-shot-classification", model=str(imbert), device="cpu")
    assert_alike(answer, pipe("w1 w2", candidate_labels=["w3", "w4"]), 1e-6)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline(family, task, tmp_path):
    head, config, texts, call = TASKS[task]
    plain, implicit = save_both(tmp_path, f"{family}{head}", **config)

    def answers(pipe):
        alone = [pipe(text, **call) for text in texts]
        if task == "feature-extraction":  # a batch holds states of padding too
            batched = pipe(texts, batch_size=3, **call)
            return alone, [[b[0][: len(a[0])]] for a, b in zip(alone, batched, strict=True)]
        return alone, pipe(texts, batch_size=3, **call)

    pipe = opened(task, plain)
    assert type(pipe.model).__name__ == f"{family}{head}"
    expected = answers(pipe)
    pipe = opened(task, implicit, im_layers=[])
    assert type(pipe.model).__name__ == f"IM{family}{head}"
    assert_alike(answers(pipe), expected, 0)
    for connection in connections_of(family):
        for name, value in {"im_layers": "all", "im_tolerance": 0.0, **connection}.items():
            setattr(pipe.model.config, name, value)  # read at every forward
        alone, batched = answers(pipe)
        assert_alike(batched, alone, 1e-4 if connection.get("im_solver") == "gradient_descent" else 1e-5)
        with pytest.raises(AssertionError):
            assert_alike(alone, expected[0], 1e-4)


def best_span(model, question, context, padding=False, max_words=5):
    """The most probable answer and the logit of its span: extractive question answering as BERT does it."""
    tokens = transformers.AutoTokenizer.from_pretrained(model.name_or_path)
    inputs = tokens(question, context, return_tensors="pt", padding="max_length" if padding else False)
    with torch.no_grad():
        outputs = model(**inputs)
    in_context = torch.tensor([sequence == 1 for sequence in inputs.sequence_ids()])
    start = outputs.start_logits[0].masked_fill(~in_context, -torch.inf)
    end = outputs.end_logits[0].masked_fill(~in_context, -torch.inf)
    scores = start[:, None] + end
    allowed = torch.ones_like(scores).triu().tril(max_words - 1).bool()
    best = scores.masked_fill(~allowed, -torch.inf).flatten().argmax().item()
    i, j = divmod(best, len(start))
    return tokens.decode(inputs["input_ids"][0, i : j + 1]), scores[i, j].item()


@pytest.mark.parametrize("family", FAMILIES)
def test_question_answering(family, tmp_path):
    """By hand: its pipeline is gone from transformers."""
    plain, implicit = save_both(tmp_path, f"{family}ForQuestionAnswering")
    question, context = "w1 w2", " ".join(WORDS[10:30])
    auto = transformers.AutoModelForQuestionAnswering
    expected = best_span(auto.from_pretrained(plain), question, context)
    assert best_span(auto.from_pretrained(implicit, im_layers=[]), question, context) == expected
    assert expected[0] in context
    for connection in connections_of(family):
        model = auto.from_pretrained(implicit, **connection)
        alone, padded = (best_span(model, question, context, padding) for padding in (False, True))
        assert alone[0] == padded[0]
        assert alone[0] in context
        assert alone[1] == pytest.approx(padded[1], abs=1e-4)
        assert alone[1] != pytest.approx(expected[1], abs=1e-3)
