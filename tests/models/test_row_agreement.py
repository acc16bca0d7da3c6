"""A row alone, in any batch and under any padding has the same outputs, as closely as plain BERT's row has.

Every kernel rounds by the shape it sees, so that even BERT's outputs move a little. What BERT moves under the same
treatment is the measure here, for every head and dtype.
"""

import pytest
import torch
from families import MODELS, config_of, family_of, pair_of
from tiny import TINY


# The implicit model evaluates each layer four times where BERT does once, and its solver rounds too.
MULTIPLE = 8
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LENGTHS = (5, 9, 7)
CHOICES = 2


def rows_of(name):
    """The ids of every row, (1, length) or (1, choices, length), without padding."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, CHOICES, n) if name.endswith("MultipleChoice") else (1, n) for n in LENGTHS]
    return [torch.randint(5, TINY["vocab_size"], shape, generator=generator) for shape in shapes]


def run(model, name, rows, width, side="right"):
    """The outputs of rows padded to one width, each cut back to its real tokens: a list of lists of tensors."""
    config = config_of(name)
    pads = [(0, width - ids.shape[-1]) if side == "right" else (width - ids.shape[-1], 0) for ids in rows]

    def padded(values, fill):
        return torch.cat([torch.nn.functional.pad(v, pad, value=fill) for v, pad in zip(values, pads, strict=True)])

    batch = {
        "input_ids": padded(rows, config.pad_token_id),
        "attention_mask": padded([torch.ones_like(ids) for ids in rows], 0),
    }
    if side == "left":  # positions count from the first real token, and RoBERTa's from behind its padding index
        first = config.pad_token_id + 1 if family_of(name) == "Roberta" else 0
        batch["position_ids"] = padded([torch.arange(ids.shape[-1]).expand_as(ids) + first for ids in rows], 0)
    with torch.no_grad():
        outputs = model(**batch).to_tuple()
    return [
        [o[i, left : width - right] if o.shape[1] == width else o[i] for o in outputs]
        for i, (left, right) in enumerate(pads)
    ]


def disagreement(model, name):
    """The greatest change of an output under all treatments, over the output's size."""
    rows = rows_of(name)
    alone = [run(model, name, [row], row.shape[-1])[0] for row in rows]
    treatments = [((0, 1, 2), 9, "right"), ((2, 0, 1, 0, 2), 12, "right"), ((1,), 64, "right"), ((0, 2), 64, "right")]
    if name != "DistilBertForMultipleChoice":  # which takes no positions
        treatments += [((0, 1, 2), 9, "left"), ((2, 0), 31, "left")]
    worst = 0.0
    for order, width, side in treatments:
        for i, result in zip(order, run(model, name, [rows[i] for i in order], width, side), strict=True):
            for actual, expected in zip(result, alone[i], strict=True):
                per_token = expected.shape[0] == LENGTHS[i]
                if side == "right" or per_token:  # heads that read the first token do not work with padding on the left
                    worst = max(worst, ((actual - expected).abs().max() / expected.abs().max()).item())
    return worst


def check(name, dtype, **fields):
    plain, model = (m.to(dtype) for m in pair_of(name, **fields))
    allowed = MULTIPLE * max(disagreement(plain, name), torch.finfo(dtype).eps)
    found = disagreement(model, name)
    assert found <= allowed, (found, allowed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_row_has_the_same_outputs_alone_and_in_any_batch(name, dtype):
    check(name, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("solver", ["anderson", "gradient_descent"])
def test_with_every_solver(solver, dtype):
    check("BertModel", dtype, im_solver=solver, im_learning_rate=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "gradient_descent"])
def test_where_rows_leave_the_batch_at_a_tolerance(solver, dtype):
    """Half precision is left out: there a row may stop an iteration earlier."""
    check("BertModel", dtype, im_solver=solver, im_learning_rate=0.05, im_tolerance=0.03, im_iterations=8)
