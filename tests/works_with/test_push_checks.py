"""examples/push_to_hub.py before it sends anything: a folder that would not open is refused in one sentence."""

import json
import shutil

import pytest
import torch
from classifiers import imbert
from pushing import example
from tiny import bert_config, refused
from transformers import BertForSequenceClassification


def remove(name):
    return lambda folder: (folder / name).unlink()


def edit(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def lose_a_weight(folder):
    model = imbert(im_solver="anderson")
    weights = {name: value for name, value in model.state_dict().items() if name != "classifier.weight"}
    model.save_pretrained(folder, state_dict=weights)


def plain(folder):
    BertForSequenceClassification(bert_config()).save_pretrained(folder)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save(imbert().state_dict(), folder / "pytorch_model.bin")


def untokenized(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (shutil.rmtree, "{folder} holds no config.json; give the folder of save_pretrained."),
        (remove("config.json"), "{folder} holds no config.json; give the folder of save_pretrained."),
        (lambda folder: (folder / "config.json").write_text("{"), "{folder} cannot be loaded: "),
        (plain, "{folder} holds a checkpoint of model_type 'bert', which is no IM-BERT."),
        (edit(im_solver="newton"), "im_solver must be one of 'gradient_descent', 'fixed_point', 'anderson'"),
        (edit(auto_map={}), "auto_map in {folder}/config.json is not this version's; save the model again."),
        (edit(architectures=None), "architectures in {folder}/config.json is None, which auto_map lacks."),
        (edit(hidden_size=64), "{folder} cannot be loaded: "),
        (remove("modeling_imbert.py"), "{folder}/modeling_imbert.py is missing; save_pretrained"),
        (remove("solvers_imbert.py"), "{folder}/solvers_imbert.py is missing; save_pretrained"),
        (write("modeling_imbert.py", ""), "{folder}/modeling_imbert.py defines no IMBertModel; save_pretrained"),
        (write("solvers_imbert.py", ""), "{folder}/solvers_imbert.py defines no "),
        (write("gradients_imbert.py", "def (:"), "{folder}/gradients_imbert.py does not compile: "),
        (lambda folder: (folder / "outputs_imbert.py").write_bytes(b"\xff"), "{folder}/outputs_imbert.py does not "),
        (remove("model.safetensors"), "{folder} cannot be loaded: Error no file named model.safetensors"),
        (pickled, "{folder} cannot be loaded: Error no file named model.safetensors"),
        (truncate, "{folder} cannot be loaded: "),
        (lose_a_weight, "{folder} lacks weights: classifier.weight."),
        (write("tokenizer.json", "{}"), "{folder} holds a tokenizer that cannot be loaded: KeyError: "),
        (write("tokenizer.json", "garbage"), "{folder} holds a tokenizer that cannot be loaded: "),
        (write("tokenizer_config.json", "[]"), "{folder} holds a tokenizer that cannot be loaded: "),
        (untokenized, "{folder} holds no tokenizer; save the model's own there."),
        (remove("README.md"), "{folder} holds no README.md; imbert-eval card --model {folder} writes one."),
    ],
)
def test_a_folder_that_would_not_open_is_not_sent(damage, sentence, folder):
    damage(folder)
    said = refused(example.main, [str(folder), "--repo_id", "me/damaged"])  # offline: a request would be another error
    assert said.startswith("push_to_hub.py: error: " + sentence.format(folder=folder))


@pytest.mark.parametrize("token", ["hf_mine\r", "hf_\nmine", "hf_mine and more", "hf_m\u00efne", ""])
def test_a_token_that_no_header_takes_is_refused_and_not_printed(token, folder):
    said = refused(example.main, [str(folder), "--repo_id", "me/mine", "--token", token])
    assert said == "push_to_hub.py: error: --token must be printable ASCII without spaces or line ends."
