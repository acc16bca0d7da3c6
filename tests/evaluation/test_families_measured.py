"""What measures layers takes those of every family, each under the arguments that it has in a forward."""

import pytest
import torch
from families import FAMILIES, inputs_for, pair_of

from imbert_hf import ThetaMethod
from imbert_hf.evaluation.cost.measures import count, mean_residual
from imbert_hf.evaluation.cost.variants import Floor, Variant
from imbert_hf.evaluation.data.loading import layers_of
from imbert_hf.evaluation.stability.layers import plain_layers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [0, 1])  # plain, implicit
def test_the_plain_layers_of_a_forward(family, kind, batch):
    """Each F gives what its layer gives in a forward, where none is implicit."""
    model = pair_of(f"{family}ForSequenceClassification", im_layers=[])[kind]
    inputs = inputs_for(f"{family}ForSequenceClassification", batch)
    del inputs["labels"]
    found = plain_layers(model, inputs)
    assert len(found) == len(layers_of(model)) == 3
    outputs = []
    for layer in layers_of(model):
        layer.register_forward_hook(lambda _, args, y: outputs.append(y[0] if isinstance(y, tuple) else y))
    with torch.no_grad():
        model(**inputs)
        for (F, x), y in zip(found, tuple(outputs), strict=True):
            torch.testing.assert_close(F(x), y, rtol=0, atol=0)
            assert not F.training


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluations_and_residuals(family, batch):
    name = f"{family}ForSequenceClassification"
    _, model = pair_of(name, im_iterations=3)
    inputs = inputs_for(name, batch)
    variant = Variant("own", "own", model, Floor(1, 1))
    found = count(variant, inputs, True, [0, 2])
    assert found["forward"]["evaluations"] == 5  # of the guess, T, and the one that is kept for the backward
    assert found["backward"]["products"] > 0
    told = torch.stack(model(**inputs, output_im_statistics=True).im_residuals)
    method = model.config.im_theta, model.config.im_step_size, model.config.im_vector_field
    assert mean_residual(variant, inputs, ThetaMethod(*method), [0, 1, 2]) == pytest.approx(
        told.mean().item(), rel=1e-3
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_that_are_handed_on_count_as_no_evaluation(family, batch):
    name = f"{family}ForSequenceClassification"
    _, model = pair_of(name, im_iterations=3, attn_implementation="eager")
    model.config.output_attentions = True
    found = count(Variant("own", "own", model, Floor(1, 1)), inputs_for(name, batch), False, [0, 1, 2])
    assert found["forward"]["evaluations"] == 4
