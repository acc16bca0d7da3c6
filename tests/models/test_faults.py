"""Broken checkpoints and full disks give an error."""

import contextlib
import errno
import json
import logging
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import imbert_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from imbert_hf import IMBertForSequenceClassification
from imbert_hf.configuration_imbert import IM_FIELDS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    imbert_model(0).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoint")


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


WRONG = {
    "im_theta": (1.5, "1.0", float("nan"), None),
    "im_layers": ([7], "some", [0, 0], 1),
    "im_vector_field": ("euler", 1),
    "im_step_size": (0, float("nan"), float("inf"), 10**400, "1"),
    "im_solver": ("newton", ["anderson"]),
    "im_iterations": (-1, 2.5, None),
    "im_eval_iterations": (-1, "3"),
    "im_tolerance": (-1.0, float("nan")),
    "im_initial_guess": ("zero", None),
    "im_learning_rate": (0, float("nan")),
    "im_damping": (0, 1.5, float("nan")),
    "im_anderson_memory": (0, 1.5),
    "im_gradient": ("exact", True),
    "im_gradient_iterations": (-1, 0.5),
    "im_consistency": (-1.0, float("inf"), None),
}


def test_every_field_has_wrong_values_here():
    assert set(WRONG) == set(IM_FIELDS)


@pytest.mark.parametrize("load", [IMBertForSequenceClassification, AutoModelForSequenceClassification])
def test_an_edited_config_is_refused_by_the_name_of_the_field(load, folder):
    for name, values in WRONG.items():
        for value in values:
            shutil.copy(folder / "config.json", folder / "kept.json")
            edit_config(folder, **{name: value})
            with pytest.raises(ValueError, match=rf"^{name} must "):
                load.from_pretrained(folder)
            shutil.move(folder / "kept.json", folder / "config.json")
    edit_config(folder, im_step=1.0)
    with pytest.raises(ValueError, match="'im_step' is no field of IMBertConfig: did you mean 'im_step_size'"):
        load.from_pretrained(folder)


def test_a_config_that_cannot_be_read_or_belongs_to_another_model(folder):
    edit_config(folder, model_type="albert")
    with pytest.raises(ValueError, match="holds a checkpoint of model_type 'albert'"):
        IMBertForSequenceClassification.from_pretrained(folder)
    path = folder / "config.json"
    for content in (b"", b"\xff\xfe\x00", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(OSError, match=r"config.json' is not a valid JSON file"):
            IMBertForSequenceClassification.from_pretrained(folder)
    path.unlink()
    with pytest.raises(OSError, match=f"{folder} holds no config.json"):
        IMBertForSequenceClassification.from_pretrained(folder)


def cut(size):
    return lambda content: content[:size]


@pytest.mark.parametrize(
    "broken",
    [
        cut(0),
        cut(4),
        cut(100),
        cut(20_000),
        cut(-1),
        lambda _: b"\xff" * 5000,
        lambda _: b"<html>Not found</html>" * 100,
    ],
    ids=["empty", "4 bytes", "half a header", "half the weights", "a byte less", "garbage", "a web page"],
)
def test_weights_that_cannot_be_read(broken, folder):
    path = folder / "model.safetensors"
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(OSError, match=r"cannot be read .*: the file is cut off or no safetensors file") as error:
        IMBertForSequenceClassification.from_pretrained(folder)
    assert str(folder) in str(error.value)


def test_weights_that_are_not_there(folder):
    (folder / "model.safetensors").unlink()  # a save in shards leaves it there
    imbert_model(0).save_pretrained(folder, max_shard_size="20KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(OSError, match=lost.name):
        IMBertForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        IMBertForSequenceClassification.from_pretrained(folder)


@pytest.fixture
def log(caplog, monkeypatch):
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)  # as it does where the variable CI is set, and there alone
    with caplog.at_level(logging.WARNING, logger="transformers"):  # imbert-eval, run by another test, raises it
        yield caplog


def test_weights_of_another_shape_are_named(folder, log):
    edit_config(folder, hidden_size=16)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        IMBertForSequenceClassification.from_pretrained(folder)
    (line,) = [line for line in log.text.splitlines() if "bert.pooler.dense.weight" in line]
    assert "[32, 32]" in line
    assert "[16, 16]" in line


def test_tensors_that_are_missing_are_named(folder, log):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    IMBertForSequenceClassification.from_pretrained(folder)
    assert any("layer.1.output.dense.weight" in line and "MISSING" in line for line in log.text.splitlines())


def test_nan_in_the_weights_is_announced(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.encoder.layer.1.output.dense.bias"][3] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    model = IMBertForSequenceClassification.from_pretrained(folder).eval()
    with pytest.warns(RuntimeWarning, match="non-finite values.*look for NaN in the input or the weights"):
        model(torch.tensor([[5, 6, 7]]))


def test_a_code_file_that_is_missing_or_broken_is_named(saved, tmp_path, run_stranger):
    missing = shutil.copytree(saved, tmp_path / "missing")
    (missing / "solvers_imbert.py").unlink()
    broken = shutil.copytree(saved, tmp_path / "broken")
    with (broken / "gradients_imbert.py").open("a") as file:
        file.write("def (:\n")
    code = """
for folder in (source, target):
    try:
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    except (OSError, SyntaxError) as error:
        print(type(error).__name__, error)
"""
    first, second = run_stranger(code, missing, broken, modules=tmp_path / "modules").splitlines()[-2:]
    assert "solvers_imbert.py" in first
    assert second.startswith("SyntaxError")
    assert "gradients_imbert.py" in second


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond `size` bytes: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
@pytest.mark.parametrize("size", [1000, 15_000, 20_000])
def test_a_full_disk_is_an_error_and_a_second_save_is_whole(shards, size, tmp_path):
    """The disk fills up at the config or the code, and at the weights; of several shards not at the first."""
    imbert_model(0, intermediate_size=256).save_pretrained(tmp_path, max_shard_size=shards)
    before = names_in(tmp_path)
    other = imbert_model(1, intermediate_size=256, im_iterations=7)
    with full_disk(size), pytest.raises(Exception, match=f"(?i)file too large|os error {errno.EFBIG}"):
        other.save_pretrained(tmp_path, max_shard_size=shards)
    other.save_pretrained(tmp_path, max_shard_size=shards)
    loaded = IMBertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.im_iterations == 7
    torch.testing.assert_close(loaded.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert names_in(tmp_path) == before


def test_weights_of_a_variant_stand_beside_the_others(tmp_path):
    half, full = imbert_model(0), imbert_model(1)
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    full.save_pretrained(tmp_path, max_shard_size="20KB")
    half.save_pretrained(tmp_path, variant="fp16")
    for variant, model in (("fp16", half), (None, full)):
        loaded = IMBertForSequenceClassification.from_pretrained(tmp_path, variant=variant)
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_arguments_by_position_are_transformers_own(tmp_path):
    """is_main_process, state_dict, push_to_hub, max_shard_size, variant."""
    for seed, size in enumerate(("20KB", "1GB")):
        imbert_model(seed).save_pretrained(tmp_path, True, None, False, size, "fp16")
        assert (len([*tmp_path.glob("*.safetensors")]) > 1) == (size == "20KB")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.fp16.safetensors"]


def test_another_process_deletes_nothing(tmp_path):
    imbert_model(0).save_pretrained(tmp_path, max_shard_size="20KB")
    before = names_in(tmp_path)
    imbert_model(1).save_pretrained(tmp_path, is_main_process=False)
    assert before <= names_in(tmp_path)


class _DiskFillsUp(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))


def test_a_full_disk_in_training_leaves_the_checkpoint_before(tmp_path):
    rows = [{"input_ids": [5 + i, 6, 7], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(8)]

    def trainer(folder, callbacks=()):
        args = TrainingArguments(
            str(tmp_path / folder),
            per_device_train_batch_size=2,
            max_steps=3,
            save_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        return Trainer(imbert_model(0), args, train_dataset=rows, callbacks=list(callbacks))

    whole = trainer("whole")
    whole.train()
    cut_short = trainer("short", [_DiskFillsUp()])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(Exception, match=r"(?i)file too large|os error|write"):
            cut_short.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises((ValueError, OSError), match="checkpoint-2"):  # the last one, which is not whole
        trainer("short").train(resume_from_checkpoint=True)
    resumed = trainer("short")
    resumed.train(resume_from_checkpoint=str(tmp_path / "short" / "checkpoint-1"))
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
