"""The command attack: what it writes and prints, how it goes on, and what it says to wrong arguments."""

import json

import numpy
import pytest
import torch
from classifiers import WORDS, bert, imbert, labelled, save
from families import OTHERS, config_of
from tiny import lively

import imbert_hf
from imbert_hf.evaluation import cli
from imbert_hf.evaluation.attacks.ascent import attacked


def run(*words):
    device = [] if "--device" in words else ["--device", "cpu"]
    cli.main(["attack", *map(str, words), *device, "--quiet"])


@pytest.fixture
def folder(tmp_path):
    model = bert()
    save(tmp_path / "a", model)
    save(tmp_path / "b", imbert(seed=1))
    rng = numpy.random.default_rng(0)
    long = [" ".join(f"{w}word" for w in rng.choice(WORDS, 6)) for _ in range(6)]
    lines = [json.dumps({"sentence": t, "label": i % 2}) for i, t in enumerate(long)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def words(folder, *more):
    models = [f"--model=a={folder / 'a'}", f"--model=b={folder / 'b'}"]
    return ["--task", "sst2", *models, "--data", folder / "rows.jsonl", "--output", folder / "out.json", *more]


def test_command(folder, capsys):
    run(*words(folder, "--plot", folder / "out.png", "--steps", 2, "--radii", "0.1,0.5", "--strengths", "0.2"))
    found = json.loads((folder / "out.json").read_text())
    assert [e["model"] for e in found["embedding"]] == ["a", "b"]
    assert [e["transfer_from"] for e in found["embedding"]] == [None, str(folder / "b")]
    assert {p["transfer_accuracy"] is None for p in found["embedding"][0]["curve"]} == {True}
    assert all(p["transfer_accuracy"] is not None for p in found["embedding"][1]["curve"])
    assert [e["attack"] for e in found["query"]] == ["character", "character"]
    assert len(found["noise"]) == 2 * 5
    assert {(c["a"], c["b"]) for c in found["comparisons"]} == {("a", "b")}
    assert len(found["comparisons"]) == 1 + 3 + 1 + 5
    printed = capsys.readouterr().out
    assert "radius" in printed
    assert "mean queries" in printed
    assert "majority" in printed
    assert "b, checks for gradient masking passed" in printed
    assert "a, checks for gradient masking not made: transfer" in printed
    assert all({"majority_accuracy", "predicted_share", "fingerprint"} <= set(e) for e in found["noise"])
    assert (folder / "out.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("family", OTHERS)
def test_command_takes_the_other_families(family, folder):
    name = f"IM{family}ForSequenceClassification"
    config = config_of(name, pad_token_id=0, **labelled(("negative", "positive")))
    save(folder / "b", lively(getattr(imbert_hf, name)(config)))
    run(*words(folder, "--steps", 2, "--radii", "0.1,0.5", "--strengths", "0.2"))
    found = json.loads((folder / "out.json").read_text())
    for kind in ("embedding", "query", "noise"):
        assert {entry["model"] for entry in found[kind]} == {"a", "b"}
    curve = found["embedding"][1]["curve"]  # that of the same weights as the plain family, transferred
    assert all(p["transfer_accuracy"] is not None for p in curve)


def test_an_interrupted_run_goes_on(folder, monkeypatch):
    more = ["--attack", "embedding", "--steps", 5, "--restarts", 1, "--radii", "0.1"]
    asked = []

    def interrupted(c, some, radius, *args, **kwargs):
        asked.append((c.name, radius))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return attacked(c, some, radius, *args, **kwargs)

    monkeypatch.setattr("imbert_hf.evaluation.attacks.embedding.attacked", interrupted)
    with pytest.raises(SystemExit, match="interrupted"):
        run(*words(folder, *more))
    run(*words(folder, *more))
    # of a: two radii, with all steps and with fewer; of b the same, and transferred; one was asked twice
    assert len(asked) == 4 + 6 + 1
    assert asked[3] == asked[4]


def test_parts_of_other_rows_or_another_source_are_not_taken(folder, monkeypatch):
    more = ["--attack", "embedding", "--steps", 5, "--restarts", 1, "--radii", "0.1"]
    asked = []

    def spy(c, some, radius, *args, source=None, **kwargs):
        asked.append((c.name, radius, None if source is None else tuple(source.model.config.implicit_layers)))
        if len(asked) == 10:
            raise KeyboardInterrupt
        return attacked(c, some, radius, *args, source=source, **kwargs)

    monkeypatch.setattr("imbert_hf.evaluation.attacks.embedding.attacked", spy)
    with pytest.raises(SystemExit, match="interrupted"):
        run(*words(folder, *more))
    assert {layers for _, _, layers in asked} == {None, ()}  # an implicit model's weights as plain BERT
    lines = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join(lines[:-1]), encoding="utf-8")
    run(*words(folder, *more))
    assert len(asked) == 10 + 10  # nothing of six rows serves for five
    assert json.loads((folder / "out.json").read_text())["embedding"][1]["model"] == "b"


def test_a_collapsed_model_is_said_to_be_one(folder, capsys):
    model = bert()
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([0.0, 1.0])
    save(folder / "a", model)
    run(*words(folder, "--attack", "character"))
    assert "a predicts positive for 100 % of the rows" in capsys.readouterr().out
    entry = json.loads((folder / "out.json").read_text())["query"][0]
    assert entry["success_rate"] == 0
    assert entry["predicted_share"] == {"negative": 0, "positive": 1}
    assert entry["majority_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attack", "word"], "--masked-lm is missing"),
        (["--radii", "a"], "--radii must be numbers such as 0.1,0.2, got 'a'"),
        (["--radii", "-1"], "radii must be numbers above 0"),
        (["--steps", "0"], "steps must be an integer >= 1"),
        (["--kinds", "thunder", "--attack", "noise"], "thunder"),
        (["--strengths", "2", "--attack", "noise"], "2"),
        (["--fields", "premise", "--attack", "character"], "premise"),
        (["--model", "a=x"], "--model names must differ"),
        (["--model", "rte=x"], "--model x is of rte, and --task is sst2"),
        (["--seed", "1", "--seed", "2"], "--seed may be given once"),
        (["--seed", "-1"], "--seed must be an integer >= 0, got -1"),
        (["--plot", "out.xyz"], "--plot out.xyz must end with one of .png"),
        (["--device", "foo"], "cannot be loaded as a sequence classifier"),
        (["--transfer-from", "nowhere"], "nowhere cannot be loaded"),
        (["--dtype", "bfloat16", "--attack", "embedding"], "dtype must be float32 for an attack on the embeddings"),
    ],
)
def test_one_sentence_for_wrong_arguments(folder, capsys, more, message):
    with pytest.raises(SystemExit) as error:
        run(*words(folder, *more))
    assert error.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert len(printed.splitlines()) == 1
