"""To the Hub and back, against a stand-in server: what is sent, who can load it, and what is left after a failure."""

import hashlib
import json
import re
from itertools import repeat
from pathlib import Path

import hub
import measurements
import pytest
import torch
from classifiers import tokenizer
from pushing import example, push, save
from stranger import STRANGER
from tiny import imbert_config
from transformers.dynamic_module_utils import get_relative_import_files

import imbert_hf
from imbert_hf import IMBertConfig


pytest.importorskip("accelerate")

ENTRY = Path(imbert_hf.__file__).parent / "modeling_imbert.py"
CODE = {ENTRY.name, *(Path(path).name for path in get_relative_import_files(ENTRY))}
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | CODE
TEXT = "w1 w2 w3"

TRAIN = """
from pathlib import Path
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
import imbert_hf

def trainer(output_dir, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [{"label": i % 2, **tokenizer(f"w{i} w{i + 1}")} for i in range(8)]
    options = {"max_steps": 3, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True, **options}
    args = TrainingArguments(output_dir=output_dir, save_strategy="steps", save_steps=1, **options)
    return Trainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
"""


@pytest.fixture(autouse=True)
def no_faults(server):
    server.faults.clear()


@pytest.fixture(scope="module")
def stranger(start):
    """Without imbert_hf, and without a token but where the code gives one."""
    return start("stranger", STRANGER, token=None)


def digests(folder):
    return {str(path): hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


def logits(folder):
    model = imbert_hf.IMBertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer()(TEXT, return_tensors="pt")).logits


def agree(printed, expected):
    torch.testing.assert_close(torch.tensor(json.loads(printed)), expected, rtol=0, atol=1e-6)


LOAD = """
options |= {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(name, **options)
model = AutoModelForSequenceClassification.from_pretrained(name, **options).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    print(model(**tokenizer(text, return_tensors="pt")).logits.tolist())
"""


def test_the_example_sends_what_a_checkpoint_needs_in_one_commit(user, server, folder):
    before = digests(folder)
    printed, error = push(user, folder, "files", "--private")
    assert not error
    assert server.repos["me/files"].private
    assert [sorted(FILES)] == [paths for repo, paths in server.commits if repo == "me/files"]
    assert server.files["me/files"] == {name: (folder / name).read_bytes() for name in FILES}
    assert json.loads(server.files["me/files"]["config.json"])["auto_map"] == IMBertConfig().auto_map
    assert printed.startswith(f"{server.url}/me/files\n")
    assert f'"{server.repos["me/files"].branches["main"]}"' in printed
    assert digests(folder) == before


def test_the_card_that_was_rendered_is_sent_and_its_lines_run(user, stranger, server, tmp_path):
    config = imbert_config(im_solver="anderson", **measurements.LABELS)
    folder = measurements.save(tmp_path / "my-model", imbert_hf.IMBertForSequenceClassification, config)
    measurements.rendered(folder, *measurements.CONTENTS)
    card, before = (folder / "README.md").read_bytes(), len(server.calls)
    assert not push(user, folder, "me/by-example")[1]
    calls = server.calls[before:]
    snippet = re.search(r"```python\n(.*?)```", card.decode(), flags=re.S)[1]
    here, there = (snippet.replace('"my-model"', repr(name)) for name in (str(folder), "me/by-example"))
    assert len({snippet, here, there}) == 3
    said = stranger(here + there).split()
    assert set(said) <= {"negative", "positive"}
    assert len(said) == 2
    assert server.files["me/by-example"]["README.md"] == card
    order = ["create", "validate-yaml", "preupload", "LFS batch", "LFS file", "verify", "commit"]
    noted = [call.partition(" ")[2] for call in calls]
    noted = [what for what in noted if what in order]  # newer clients validate the card twice
    assert [what for what, last in zip(noted, ["", *noted], strict=False) if what != last] == order


def test_a_branch(user, server, folder):
    printed, error = push(user, folder, "me/branch", "--revision", "dev", "--commit_message", "second try")
    assert not error
    repo = server.repos["me/branch"]
    assert set(repo.commits[repo.branches["dev"]]) == FILES
    assert server.files["me/branch"] == {}
    assert repo.branches["dev"] in printed


def test_a_public_repository_is_not_taken_for_a_private_one(user, server, folder):
    assert not push(user, folder, "me/public")[1]
    before = dict(server.repos["me/public"].commits)
    _, error = push(user, folder, "me/public", "--private")
    assert "could not be pushed to me/public: it exists and is public, which --private does not change. " in error
    assert server.repos["me/public"].commits == before


def test_a_stranger_loads_a_pinned_commit_saves_pushes_and_loads_again(user, stranger, server, tmp_path):
    first, second = save(tmp_path / "first", seed=1), save(tmp_path / "second", seed=2)
    code = second / "modeling_imbert.py"
    code.write_text(code.read_text() + "\nRELEASE = 2\n")
    assert not torch.allclose(logits(first), logits(second), atol=1e-2)
    snippet, error = push(user, first, "me/pinned", "--private")
    assert not error
    old = server.repos["me/pinned"].branches["main"]
    assert not push(user, second, "me/pinned")[1]
    new = server.repos["me/pinned"].branches["main"]

    _, error = stranger.run(LOAD, name="me/pinned", text=TEXT, options={"token": False})
    assert "me/pinned" in error
    assert "401" in error
    assert server.refused[-1].endswith("config.json")
    token = {"token": hub.TOKEN}
    agree(stranger(LOAD, name="me/pinned", text=TEXT, options=token), logits(second))
    release = "print(getattr(sys.modules[type(model).__module__], 'RELEASE', 1))"
    for revisions, release_of_code in (
        ({"revision": old}, 1),
        ({"revision": old, "code_revision": old}, 1),
        ({"revision": old, "code_revision": new}, 2),
    ):
        printed = stranger(LOAD + release, name="me/pinned", text=TEXT, options=token | revisions).splitlines()
        agree(printed[0], logits(first))
        assert int(printed[1]) == release_of_code
    snippet = snippet.split("\n\n", 1)[1].replace("not a bad film", TEXT)
    shown = stranger(
        "os.environ['HF_TOKEN'] = token\nexec(snippet)\ndel os.environ['HF_TOKEN']", snippet=snippet, **token
    )
    assert f"{logits(first)[0, 0].item():.4f}" in shown

    again = """
model.save_pretrained("saved")
tokenizer.save_pretrained("saved")
model = AutoModelForSequenceClassification.from_pretrained("saved", trust_remote_code=True)
for part in (model, tokenizer):
    part.push_to_hub("again", private=True, token=options["token"])
name = "me/again"
"""
    printed = stranger(LOAD + again + LOAD, name="me/pinned", text=TEXT, options=token).splitlines()
    agree(printed[0], logits(second))
    agree(printed[1], logits(second))
    sent = server.files["me/again"]
    assert set(sent) == FILES
    assert json.loads(sent["config.json"])["auto_map"] == IMBertConfig().auto_map
    assert sent["modeling_imbert.py"] == code.read_bytes()


def test_a_model_and_a_tokenizer_send_all_that_a_stranger_needs(user, stranger, server, folder):
    code = """
from transformers import AutoTokenizer
from imbert_hf import IMBertForSequenceClassification
IMBertForSequenceClassification.from_pretrained(folder).push_to_hub(repo, private=True)
AutoTokenizer.from_pretrained(folder).push_to_hub(repo)
"""
    user(code, folder=folder, repo="me/by-model")
    assert server.repos["me/by-model"].private
    sent = server.files["me/by-model"]
    assert set(sent) == FILES
    assert json.loads(sent["config.json"])["auto_map"] == IMBertConfig().auto_map
    assert {name: sent[name] for name in CODE} == {name: (folder / name).read_bytes() for name in CODE}
    agree(stranger(LOAD, name="me/by-model", text=TEXT, options={"token": hub.TOKEN}), logits(folder))


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_trainer_pushes(strategy, user, stranger, server, folder, tmp_path):
    code = """
run = trainer(output_dir, push_to_hub=True, hub_model_id=repo, hub_private_repo=True, hub_strategy=strategy)
run.model.save_pretrained(output_dir)  # the Trainer's pushes between take weights and config, and no code
run.train()
run.push_to_hub()
"""
    repo, out = f"me/trained-{strategy}", tmp_path / "out"
    user(TRAIN + code, repo=repo, strategy=strategy, output_dir=out, folder=folder)
    assert server.repos[repo].private
    commits = list(server.repos[repo].commits.values())[1:]
    assert len(commits) == 1 if strategy == "end" else 2 <= len(commits) <= 4  # none begins while another is under way
    for files in commits:
        assert FILES | {"training_args.bin"} >= set(files) >= FILES - {"README.md"}
    assert server.files[repo] == {name: (out / name).read_bytes() for name in [*FILES, "training_args.bin"]}
    assert json.loads(server.files[repo]["config.json"])["auto_map"] == IMBertConfig().auto_map
    agree(stranger(LOAD, name=repo, text=TEXT, options={"token": hub.TOKEN}), logits(out))


def test_trainer_and_its_token(user, server, folder, tmp_path):
    """transformers writes hub_token into training_args.bin and sends that; a token given to push_to_hub stays out."""
    code = """
del os.environ["HF_TOKEN"]
try:
    trainer(output_dir + "-a", push_to_hub=True, hub_model_id="me/in-arguments", hub_token=token).push_to_hub()
    trainer(output_dir + "-b", hub_model_id="me/in-call").push_to_hub(token=token)
    trainer(output_dir + "-c", hub_model_id="me/no-token").push_to_hub()
finally:
    os.environ["HF_TOKEN"] = token
"""
    _, error = user.run(TRAIN + code, folder=folder, output_dir=tmp_path / "out", token=hub.TOKEN)
    assert "401" in error
    assert "me/no-token" not in server.repos
    holding = {
        (repo, name)
        for repo in ("me/in-arguments", "me/in-call")
        for name, content in server.files[repo].items()
        if hub.TOKEN.encode() in content
    }
    assert holding <= {("me/in-arguments", "training_args.bin")}
    assert set(server.files["me/in-call"]) >= FILES


PLACES = {"preupload": "POST preupload", "upload": "PUT LFS file", "commit": "POST commit"}
REASONS = {500: "500 Internal Server Error", 409: "409 Conflict", 413: "413 Request Entity Too Large", hub.BREAK: ""}


@pytest.mark.parametrize("fault", REASONS)
@pytest.mark.parametrize("place", PLACES)
def test_a_failed_push_says_why_and_can_be_repeated(place, fault, user, server, folder):
    repo, before = f"me/{place}-{fault}", digests(folder)
    server.faults[PLACES[place]] = repeat(fault)
    printed, error = push(user, folder, repo)
    assert not printed
    assert error.startswith(f"push_to_hub.py: error: {folder} could not be pushed to {repo}: ")
    assert error.endswith(" Nothing in the folder has changed; the same command tries again.")
    assert len(error.splitlines()) == 1
    if fault == hub.BREAK:
        assert any(word in error.lower() for word in ("disconnected", "reset", "broken pipe")), error
    else:
        assert f"the server says {REASONS[fault]}, made to fail with {fault}." in error
    assert server.files[repo] == {}
    assert digests(folder) == before
    server.faults.clear()
    assert push(user, folder, repo)[1] == ""
    assert server.files[repo] == {name: (folder / name).read_bytes() for name in FILES}


def test_one_failure_of_each_kind_goes_unnoticed(user, server, folder):
    """But for the commit itself, which the client does not send twice."""
    server.faults |= {"POST preupload": iter([500]), "POST LFS batch": iter([503]), "PUT LFS file": iter([hub.BREAK])}
    assert push(user, folder, "me/retried")[1] == ""
    assert set(server.files["me/retried"]) == FILES
    assert all(next(rest, None) is None for rest in server.faults.values())


def test_trainer_survives_a_failing_server(user, server, folder, tmp_path):
    code = """
run = trainer(output_dir, push_to_hub=True, hub_model_id="me/survives", hub_strategy="every_save")
run.train()  # its pushes between fail, too
for _ in range(2):
    try:
        run.push_to_hub()
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0])
"""
    out = tmp_path / "out"
    server.faults["POST commit"] = repeat(413)
    printed = user(TRAIN + code, folder=folder, output_dir=out)
    assert printed.count("413 Request Entity Too Large") == 2
    assert server.files["me/survives"] == {}
    before = digests(out)
    server.faults["PUT LFS file"] = repeat(hub.BREAK)
    again = "\nrun = trainer(output_dir, hub_model_id='me/survives')\nrun.push_to_hub()"
    _, error = user.run(TRAIN + again, folder=out, output_dir=out)
    assert "Error while uploading '" in error
    after = digests(out)
    own = {str(out / name) for name in ("training_args.bin", "README.md")}  # which the Trainer writes at every push
    assert {path for path in before | after if before.get(path) != after.get(path)} <= own
    server.faults.clear()
    user(TRAIN + again, folder=out, output_dir=out)
    assert set(server.files["me/survives"]) >= FILES


def test_no_token_or_a_wrong_name(user, server, folder):
    user("os.environ['HF_TOKEN'] = 'hf_of_another'")
    try:
        _, error = push(user, folder, "me/refused")
    finally:
        user("os.environ['HF_TOKEN'] = token", token=hub.TOKEN)
    assert "could not be pushed to me/refused: the server says 401 Unauthorized, Invalid username or password." in error
    assert "me/refused" not in server.repos
    assert push(user, folder, "me/given", "--token", hub.TOKEN)[1] == ""
    assert "could not be pushed to a/b/c: Repo id must be in the form" in push(user, folder, "a/b/c")[1]


def test_every_head_has_a_snippet_that_runs(stranger, tmp_path):
    for auto_class, reference in IMBertConfig().auto_map.items():
        if auto_class == "AutoConfig":
            continue
        model = getattr(imbert_hf, reference.split(".")[1])(imbert_config())
        place = save(tmp_path / auto_class, model=model)
        assert example.check(place) == auto_class
        printed = stranger(example.usage(auto_class, str(place), "main"))
        assert "Output" in printed


def test_the_token_is_nowhere(user, stranger, server, folder, tmp_path_factory):
    """After all of the above, in nothing that was printed, logged, saved or sent, but for transformers' own file."""
    assert not push(user, folder, "me/quiet", "--private", "--token", hub.TOKEN)[1]
    stranger(LOAD, name="me/quiet", text=TEXT, options={"token": hub.TOKEN})
    for worker in (user, stranger):
        log = worker.log.read_text()
        assert "/me/quiet" in log
        assert hub.TOKEN not in worker.said + log
    known = {"training_args.bin"}
    root = tmp_path_factory.getbasetemp()
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.name for path in files if hub.TOKEN.encode() in path.read_bytes()} <= known
    for name, repo in server.repos.items():
        for files in repo.commits.values():
            holding = {path for path, content in files.items() if hub.TOKEN.encode() in content}
            assert holding <= (known if name == "me/in-arguments" else set()), name
