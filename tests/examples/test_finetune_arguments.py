"""What examples/finetune.py takes, arguments, settings file, rows and checkpoints, and what it refuses."""

import json
import shutil
import subprocess
import sys

import pytest


pytest.importorskip("accelerate")
datasets = pytest.importorskip("datasets")
pytest.importorskip("sklearn")

from finetune_data import DataArguments, load_data  # noqa: E402
from finetuning import SCRIPT, glue, im_fields, refusal, results_of, write_rows  # noqa: E402

from imbert_hf import IMBertConfig  # noqa: E402


def test_users_strategies_are_not_overridden(arguments):
    def parsed(*more):
        args = glue.parse(arguments(*more))[2]
        return args.eval_strategy, args.save_strategy, args.save_total_limit, args.load_best_model_at_end

    assert parsed() == ("epoch", "epoch", 1, True)
    assert parsed("--save_total_limit", "4") == ("epoch", "epoch", 4, True)
    assert parsed("--load_best_model_at_end", "False") == ("epoch", "epoch", 1, False)
    assert parsed("--eval_strategy", "no") == ("no", "steps", None, False)
    assert parsed("--eval-strategy=steps") == ("steps", "steps", None, False)
    assert parsed("--save_strategy", "no") == ("no", "no", None, False)
    best = ["--eval_strategy", "steps", "--save_strategy", "steps", "--load_best_model_at_end"]
    assert parsed(*best) == ("steps", "steps", None, True)
    assert glue.parse(arguments(*best, "--metric_for_best_model", "loss"))[2].greater_is_better is False


IM_WORDS = {
    "im_theta": (["0.5"], 0.5),
    "im_layers": (["0"], [0]),
    "im_vector_field": (["layer"], "layer"),
    "im_step_size": (["2"], 2.0),
    "im_solver": (["anderson"], "anderson"),
    "im_iterations": (["5"], 5),
    "im_eval_iterations": (["7"], 7),
    "im_tolerance": (["1e-3"], 1e-3),
    "im_initial_guess": (["previous"], "previous"),
    "im_learning_rate": (["0.3"], 0.3),
    "im_damping": (["0.9"], 0.9),
    "im_anderson_memory": (["2"], 2),
    "im_gradient": (["one_step"], "one_step"),
    "im_gradient_iterations": (["4"], 4),
    "im_consistency": (["2"], 2.0),
}


def test_every_im_field_is_an_argument(arguments, tmp_path):
    assert set(IM_WORDS) == set(im_fields()) == {*glue.IM_FIELDS}
    words = [word for name, (value, _) in IM_WORDS.items() for word in (f"--{name}", *value)]
    glue.main(arguments("--max_steps", "1", *words))
    expected = {name: value for name, (_, value) in IM_WORDS.items()}
    assert results_of(tmp_path / "out")["im_fields"] == expected
    config = IMBertConfig.from_pretrained(tmp_path / "out")
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["all"], "all"),
        (["3,4,5"], [3, 4, 5]),
        (["3", "4", "5"], [3, 4, 5]),
        (["3, 4 5"], [3, 4, 5]),
        (["-1"], [-1]),
        (["-2", "-1"], [-2, -1]),
        ([""], []),
    ],
)
def test_layers(words, expected, arguments):
    assert glue.im_values(glue.parse(arguments("--im_layers", *words))[0]) == {"im_layers": expected}


def test_layers_after_an_equals_sign(arguments):
    assert glue.im_values(glue.parse(arguments("--im_layers=-2,-1"))[0]) == {"im_layers": [-2, -1]}


def test_paper_preset(arguments):
    values = glue.im_values(glue.parse(arguments("--preset", "paper", "--im_iterations", "9"))[0])
    paper = IMBertConfig.paper(im_iterations=9)
    assert values == {name: getattr(paper, name) for name in im_fields()}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--im_thet", "1"], "--im_thet is no argument; did you mean --im_theta?"),
        (["--im-stepsize=1"], "--im-stepsize is no argument; did you mean --im-step-size?"),
        (["--learning_rat", "1"], "--learning_rat is no argument; did you mean --learning_rate?"),
        (["--xyzzy", "1"], "--xyzzy is no argument; there are --im_theta, --im_layers,"),
        (["--learning_rate", "-1"], "--learning_rate must be a finite number >= 0.0, got -1.0."),
        (["--learning_rate", "nan"], "--learning_rate must be a finite number >= 0.0, got nan."),
        (["--weight_decay", "inf"], "--weight_decay must be a finite number >= 0.0, got inf."),
        (["--max_grad_norm", "nan"], "--max_grad_norm must be a finite number >= 0.0, got nan."),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size must be an integer >= 1, got 0."),
        (["--num_train_epochs", "-1"], "--num_train_epochs must be a finite number >= 0.0, got -1.0."),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be an integer >= 1, got 0."),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps must be an integer >= 1, got 0."),
        (["--im_theta", "much"], "--im_theta/--im-theta: invalid float value: 'much'"),
        (["--im_theta", "2"], "im_theta must be a number from 0 to 1, got 2.0."),
        (
            ["--im_solver", "newton"],
            "im_solver must be one of 'gradient_descent', 'fixed_point', 'anderson', got 'newton'.",
        ),
        (["--im_layers", "1,x"], "--im_layers must be all, or layer indices such as 3,4,5, got '1 x'."),
        (["--im_layers", "2"], "im_layers must hold indices from -2 to 1 for 2 layers, got 2."),
        (["--task", "cola"], "argument --task: invalid choice: 'cola' (choose from "),
        (["--connection", "am-bert"], "argument --connection: invalid choice: 'am-bert' (choose from "),
        (["--connection", "bert", "--im_theta", "1"], "--im_theta has no effect with --connection bert; "),
        (["--theta_warmup", "2"], "fraction must be a number > 0 and <= 1, got 2.0."),
        (
            ["--connection", "bert", "--theta_warmup", "0.5"],
            "--theta_warmup 0.5 needs --connection im-bert, got 'bert'.",
        ),
        (["--hub_token", "hf_secret"], "--hub_token would be pickled into training_args.bin and pushed; set HF_TOKEN"),
        (["--connection", "ex-bert", "--im_theta", "1"], "--im_theta must be 0.0 with --connection ex-bert, got 1.0."),
        (
            ["--connection", "ex-bert", "--im_vector_field", "increment"],
            "--im_vector_field must be 'layer' with --connection ex-bert, got 'increment'.",
        ),
        (["--connection", "bert", "--preset", "paper"], "--preset paper needs --connection im-bert, got 'bert'."),
        (["--max_train_samples", "0"], "--max_train_samples must be an integer >= 1, got 0."),
        (["--max_eval_samples", "-1"], "--max_eval_samples must be an integer >= 1, got -1."),
        (["--max_seq_length", "129"], "--max_seq_length must be from 8 to 128 for "),
        (["--eval_strategy", "sometimes"], "argument --eval_strategy/--eval-strategy: invalid choice: 'sometimes'"),
        (["--resume_from_checkpoint", "last"], "--resume_from_checkpoint: there is no checkpoint in "),
        (
            ["--resume_from_checkpoint", "nowhere"],
            '--resume_from_checkpoint must be "last" or a checkpoint folder, got',
        ),
        (["--model_name_or_path", "./nowhere"], "./nowhere cannot be loaded as a checkpoint: there is no such folder."),
        (["settings.txt"], "settings.txt is no argument; "),
    ],
)
def test_bad_argument(more, sentence, arguments, tmp_path):
    assert sentence in refusal(arguments(*more))
    assert not (tmp_path / "out").exists()


GOOD = '{"sentence": "a", "label": 0}'


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        ([], "holds no row."),
        (["", ""], "holds no row."),
        ([GOOD, '{"sentence": '], "cannot be read: line 2 is not JSON: "),
        ([b'{"sentence": "\xff", "label": 0}'], "cannot be read: 'utf-8' codec can't decode byte 0xff"),
        ([GOOD, '["a", 0]'], "row 2 must be a JSON object, got list."),
        ([GOOD, '{"text": "a", "label": 0}'], ", row 2 has no 'sentence'."),
        (['{"sentence": 3, "label": 0}', GOOD], ", row 1: 'sentence' must be a text, got 3."),
        ([GOOD, '{"sentence": "a"}'], ", row 2: 'label' None is none of 0 (negative), 1 (positive)."),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_bad_data(split, lines, sentence, arguments, monkeypatch, tmp_path):
    for name in ("train", "validation"):
        write_rows(tmp_path / "sst2" / f"{name}.jsonl", "sst2", 8)
    path = tmp_path / "sst2" / f"{split}.jsonl"
    path.unlink()
    if lines is not None:
        path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    monkeypatch.setattr(glue, "load_model", lambda *_: pytest.fail("a model was loaded before the data was checked"))
    found = refusal(arguments("--data_dir", str(tmp_path)))
    assert str(path) in found
    assert sentence in found
    assert not (tmp_path / "out").exists()


def test_edited_file_is_read_anew(tmp_path):
    write_rows(tmp_path / "sst2" / "validation.jsonl", "sst2", 1)
    args = DataArguments(task="sst2", data_dir=str(tmp_path))
    for text in ("before", "after"):
        (tmp_path / "sst2" / "train.jsonl").write_text(json.dumps({"sentence": text, "label": 1}) + "\n\n")
        assert load_data(args, seed=0)[1]["train"].to_list() == [{"text0": text, "label": 1}]


def test_hub_is_the_default(arguments, monkeypatch, tmp_path):
    calls = []

    def load_dataset(*args, split):
        calls.append((*args, split))
        rows = [{"premise": f"a {i}", "hypothesis": "b", "label": i % 3, "idx": i} for i in range(5)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    _, data = load_data(DataArguments(task="mnli", max_eval_samples=2), 0)
    splits = ["train", "validation_matched", "validation_mismatched"]
    assert calls == [("nyu-mll/glue", "mnli", split) for split in splits]
    assert [len(data[split]) for split in splits] == [5, 2, 2]

    def offline(*args, split):
        raise ConnectionError("no way to\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    words = arguments()
    at = words.index("--data_dir")
    del words[at : at + 2]
    sentence = "nyu-mll/glue cannot be loaded, pass --data_dir for local files: no way to the Hub"
    assert sentence in refusal(words)
    assert not (tmp_path / "out").exists()


def named(*names):
    return ", ".join(map(repr, names))


PLAIN = ("bert", "roberta", "electra", "xlm-roberta", "deberta-v2", "distilbert", "modernbert")


@pytest.mark.parametrize(
    ("connection", "found", "loads"),
    [
        ("im-bert", "albert", f"--connection im-bert loads {named(*PLAIN, *(f'im{name}' for name in PLAIN))}."),
        ("bert", "albert", f"--connection bert loads {named(*PLAIN)}."),
        ("bert", "imbert", f"--connection bert loads {named(*PLAIN)}."),
    ],
)
def test_other_model_type(connection, found, loads, arguments, bert, tmp_path):
    checkpoint = tmp_path / "other"
    shutil.copytree(bert, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": found}))
    sentence = refusal(arguments("--model_name_or_path", str(checkpoint), "--connection", connection))
    assert f"{checkpoint} holds a checkpoint of model_type {found!r}; {loads}" in sentence
    assert not (tmp_path / "out").exists()


def test_checkpoint_without_tokenizer_or_weights(arguments, bert, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(bert, checkpoint)
    (checkpoint / "model.safetensors").unlink()
    more = ["--model_name_or_path", str(checkpoint)]
    assert f"--model_name_or_path {checkpoint} cannot be loaded: " in refusal(arguments(*more))
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    assert f"{checkpoint} holds no tokenizer; save the model's own there." in refusal(arguments(*more))
    assert not (tmp_path / "out").exists()


def test_output_folder_in_use(arguments, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoint-99").mkdir(parents=True)
    for name in ("results.json", "notes.txt"):
        (out / name).write_text("{}")
    sentence = refusal(arguments())
    assert f"--output_dir {out} is not an empty folder; choose another, or pass --overwrite_output_dir or" in sentence
    assert {path.name for path in out.iterdir()} == {"checkpoint-99", "notes.txt", "results.json"}
    assert (out / "results.json").read_text() == "{}"

    refusal(arguments("--overwrite_output_dir", "--max_train_samples", "0"))
    assert (out / "checkpoint-99").exists()
    glue.main(arguments("--overwrite_output_dir", "--max_steps", "1"))
    assert results_of(out)["steps"] == 1
    assert (out / "notes.txt").exists()
    assert not (out / "checkpoint-99").exists()

    file = tmp_path / "file"
    file.write_text("")
    assert f"--output_dir {file} is not an empty folder" in refusal(arguments("--output_dir", str(file)))


def settings_of(words):
    """The dict that a list of `--name value` words stands for."""
    settings = {}
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            settings[name] = True
        else:
            settings[name] = word
    return settings


def test_settings_file(arguments, tmp_path):
    settings = settings_of(arguments())
    more = {"im_theta": 0.5, "im_layers": [-2, -1], "im_tolerance": None, "overwrite_output_dir": True, "seed": 7}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**settings, **more, "lr_scheduler_kwargs": {}, "max_eval_samples": "3"}))
    model_args, data_args, args = glue.parse([str(path)])
    assert glue.im_values(model_args) == {"im_theta": 0.5, "im_layers": [-2, -1]}
    assert (data_args.overwrite_output_dir, data_args.max_eval_samples) == (True, 3)
    assert (args.seed, args.learning_rate, args.eval_strategy) == (7, 1e-3, "epoch")
    path.write_text(json.dumps({**settings, "im_layers": []}))
    assert glue.im_values(glue.parse([str(path)])[0]) == {"im_layers": []}

    path.write_text(json.dumps({**settings, "im_thet": 1}))
    assert "--im_thet is no argument; did you mean --im_theta?" in refusal([str(path)])
    for text in ("{", "[1]"):
        path.write_text(text)
        assert f"{path} must hold a JSON object of arguments: " in refusal([str(path)])
    path.unlink()
    assert f"{path} must hold a JSON object of arguments: " in refusal([str(path)])


def test_as_a_script(arguments, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**settings_of(arguments("--max_steps", "1")), "im_layers": "all"}))
    command = [sys.executable, str(SCRIPT), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "out")["im_fields"]["im_layers"] == "all"
    assert "results.json" in done.stdout
