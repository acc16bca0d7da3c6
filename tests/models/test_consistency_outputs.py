"""What outputs hold with im_consistency, how a forward is asked for it, and what is refused."""

import warnings

import pytest
import torch
from families import FAMILIES, inputs_for, model_of, pair_of
from test_consistency import PLACES, WEIGHT, classifier
from tiny import imbert_config, imbert_model, lively
from transformers.models.bert.modeling_bert import BertLayer

from imbert_hf import IMBertForSequenceClassification


@pytest.mark.parametrize("layers", PLACES.values(), ids=PLACES)
def test_all_other_outputs_are_those_without_it(layers, labelled):
    model = imbert_model(im_consistency=WEIGHT, im_layers=layers, attn_implementation="eager").train()
    asked = {"output_hidden_states": True, "output_attentions": True, "output_im_statistics": True}
    outputs = []
    for weight in (WEIGHT, 0.0):
        model.config.im_consistency = weight
        torch.manual_seed(3)
        outputs.append(model(**labelled, **asked))
    for name in ("hidden_states", "attentions", "im_residuals", "im_iterations_used"):
        both = [found[name] for found in outputs]
        assert [t.shape for t in both[0]] == [t.shape for t in both[1]]
        assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_depends_on_the_hidden_states_of_one_branch(family, batch):
    """Those that hold both branches are handed out in part, and what is made of a part is no part of the loss."""
    name = f"{family}ForSequenceClassification"
    model = model_of(f"IM{name}", im_consistency=WEIGHT, im_layers=[-1])
    outputs = model.train()(**inputs_for(name, batch), output_hidden_states=True)
    found = torch.autograd.grad(outputs.loss, outputs.hidden_states)
    assert all(grad.abs().max() > 0 for grad in found)


def test_one_warning_where_no_labels_reach_the_model(batch, labelled):
    for model in (classifier(), classifier().bert):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(**batch)
            model(**batch)
            assert len(caught) == 1
        assert "im_consistency is 0.7 and its loss was not added: no labels" in str(caught[0].message)
    for call in (lambda m: m(**labelled), lambda m: m.eval()(**batch), lambda m: torch.no_grad()(m)(**batch)):
        call(classifier())  # warnings are errors here


def test_arguments_by_place_are_taken_by_their_names(labelled):
    model = classifier()
    torch.manual_seed(3)
    expected = model(**labelled).loss
    torch.manual_seed(3)
    by_place = model(labelled["input_ids"], labelled["attention_mask"], None, None, None, labelled["labels"])
    assert torch.equal(by_place.loss, expected)


def test_a_foreign_layer_above_an_implicit_one_is_refused(labelled):
    model = IMBertForSequenceClassification(imbert_config(im_layers=[1], im_consistency=WEIGHT)).train()
    model.bert.encoder.layer[0] = lively(BertLayer(model.config, layer_idx=0))
    assert model(**labelled).im_consistency_loss > 0
    model.bert.encoder.layer[2] = lively(BertLayer(model.config, layer_idx=2))
    with pytest.raises(ValueError, match=r"im_consistency must be 0 where layer 2, above an .* a BertLayer, got 0.7"):
        model(**labelled)
    model.config.im_consistency = 0.0
    model(**labelled)


@pytest.mark.skipif("ModernBert" not in FAMILIES, reason="transformers 5.0 has another ModernBERT")
@pytest.mark.parametrize("known", [1, 3, 7])  # as many as a row is long: shapes that would broadcast
def test_a_head_that_predicts_labelled_tokens_alone(known, batch):
    ids = batch["input_ids"]
    labels = torch.full_like(ids, -100).flatten()
    labels[torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(0))[:known]] = 5
    losses = []
    for sparse in (False, True):
        _, model = pair_of("ModernBertForMaskedLM", im_consistency=WEIGHT, im_layers=[1])
        model.config.sparse_prediction = model.sparse_prediction = sparse
        torch.manual_seed(3)
        outputs = model.double().train()(ids, attention_mask=batch["attention_mask"], labels=labels.view_as(ids))
        losses.append(torch.stack([outputs.loss, outputs.im_consistency_loss]))
    assert losses[0][1] > 0
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-9)
