"""Accuracy on attacked texts beside clean ones: `imbert-eval advglue`."""
