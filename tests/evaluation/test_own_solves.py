"""The residuals of a classifier's own solves, against what its model reports."""

import pytest
import torch


pytest.importorskip("sklearn")

from classifiers import classifier, imbert

from imbert_hf.evaluation.stability.own import own_residuals


TEXTS = [("w1 w2 w3",), ("w4",)]


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_residuals_of_a_classifier_are_those_that_its_model_reports(iterations):
    """Each text alone, at as many iterations."""
    one = classifier(imbert(im_layers=[0, -1], im_iterations=iterations))
    found = own_residuals(one, TEXTS, 5)
    for k, text in enumerate(TEXTS):
        with torch.no_grad():
            outputs = one.model(**one.collate(one.encode([text])), output_im_statistics=True)
        layers = sorted(found)
        assert layers == sorted(one.model.config.implicit_layers)
        for layer, residual in zip(layers, outputs.im_residuals, strict=True):
            torch.testing.assert_close(found[layer][iterations, k : k + 1], residual, rtol=1e-3, atol=1e-6)
    assert own_residuals(classifier(imbert(im_theta=0.0)), TEXTS, 5) == {}
