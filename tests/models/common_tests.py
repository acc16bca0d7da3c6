"""Transformers' own common tests of models, on every family's models: plain, implicit in all layers, and by default.

    pip download --no-deps --no-binary transformers transformers==5.23.0 && tar xzf transformers-5.23.0.tar.gz
    pip install parameterized
    TRANSFORMERS_SOURCE=transformers-5.23.0 pytest -n 2 -W ignore tests/models/common_tests.py

The source's version must be the installed one. Its tests are brought in by the run, and none lies here. The archive of
PyPI has the common tests, but no family's file with configs and skips. So the configs are ours, and a test that fails
here says nothing where it fails for the plain class too. Pytest does not collect this file unless it is named.
"""

import importlib
import os
import sys
import types
import unittest

import pytest
import torch
from families import FAMILIES, MODELS, config_of, family_of

import imbert_hf


SOURCE = os.environ.get("TRANSFORMERS_SOURCE", "")


def brought_in() -> type:
    """ModelTesterMixin of the source. Mixins that the archive of PyPI lacks are empty."""
    if not os.path.isfile(os.path.join(SOURCE, "tests", "test_modeling_common.py")):
        pytest.skip("TRANSFORMERS_SOURCE names no unpacked source of transformers", allow_module_level=True)
    sys.path.insert(0, SOURCE)
    for name, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        try:
            importlib.import_module(f"tests.{name}")
        except ModuleNotFoundError:
            sys.modules[f"tests.{name}"] = types.ModuleType(f"tests.{name}")
            setattr(sys.modules[f"tests.{name}"], mixin, type(mixin, (), {}))
    common = importlib.import_module("tests.test_modeling_common")
    values = common.get_values
    # The tests know by a class's name what it is.
    common.get_values = lambda mapping: [prefix + name for name in values(mapping) for prefix in ("", "IM")]
    return common.ModelTesterMixin


class ModelTester:
    """What the common tests ask for configs and inputs."""

    batch_size, seq_length, num_choices, is_training = 3, 7, 2, True
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 4

    def __init__(self, name: str, **fields):
        self.name, self.fields = name, fields

    def get_config(self):
        return config_of(self.name, num_hidden_layers=self.num_hidden_layers, **self.fields)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(5, 99, (self.batch_size, self.seq_length))
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


def of_family(mixin: type, family: str, prefix: str, **fields) -> type:
    """The common tests of all models of a family, plain or with the fields."""
    owner = imbert_hf if prefix else importlib.import_module("transformers")

    class CommonTest(mixin, unittest.TestCase):
        all_model_classes = tuple(getattr(owner, prefix + name) for name in MODELS if family_of(name) == family)
        all_generative_model_classes = ()  # none of ours generates

        def setUp(self):
            self.model_tester = ModelTester(prefix + family, **fields)

        def _prepare_for_class(self, inputs, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs, model_class, return_labels)
            if return_labels and model_class.__name__ == f"{prefix}BertForPreTraining":
                inputs["labels"] = torch.zeros_like(inputs["input_ids"])
                inputs["next_sentence_label"] = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
            return inputs

    return CommonTest


KINDS = {"Plain": ("", {}), "All": ("IM", {"im_layers": "all"}), "Default": ("IM", {"im_layers": [-1]})}
mixin = brought_in()
for family in FAMILIES:
    for kind, (prefix, fields) in KINDS.items():
        globals()[f"Test{family}{kind}"] = of_family(mixin, family, prefix, **fields)
