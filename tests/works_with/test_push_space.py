"""examples/push_to_hub.py --space, against the stand-in server: what is sent as a Space, and what is refused."""

import re
import shutil

import pytest
from pushing import example, push
from tiny import refused


FILES = {"README.md", "requirements.txt", "quickstart.py", "reviews.jsonl"}
FILES |= {path.name for pattern in ("*.py", "*.png") for path in example.PAGE.glob(pattern)}


@pytest.fixture
def space(tmp_path):
    """The page as its owner would send it, in a folder of its own."""
    folder = tmp_path / "examples/space"
    shutil.copytree(example.PAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in example.BESIDE:
        shutil.copy(example.PAGE.parent / name, folder.parent)
    requirements = folder / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("OWNER", "me"))
    return folder


def test_a_space_is_sent_in_one_commit_with_what_its_start_needs(user, server, space):
    (space / "outputs").mkdir()
    (space / "outputs/model.safetensors").write_bytes(b"not sent")
    printed, error = push(user, space, "me/page", "--space", "--private")
    assert not error
    repo = server.repos["me/page"]
    assert (repo.kind, repo.sdk, repo.private) == ("space", "gradio", True)
    assert [sorted(FILES)] == [paths for name, paths in server.commits if name == "me/page"]
    found = {name: next(p for p in (space / name, space.parent / name) if p.is_file()).read_bytes() for name in FILES}
    assert server.files["me/page"] == found
    assert printed == f"{server.url}/spaces/me/page\n"


def test_a_model_is_no_space(user, server, folder, space):
    assert not push(user, folder, "me/both")[1]
    assert server.repos["me/both"].kind == "model"
    before = dict(server.repos["me/both"].commits)
    assert "could not be pushed to me/both: " in push(user, space, "me/both", "--space")[1]
    assert server.repos["me/both"].commits == before


def test_a_public_space_is_not_taken_for_a_private_one(user, server, space):
    assert not push(user, space, "me/open", "--space")[1]
    assert (
        "it exists and is public, which --private does not change"
        in push(user, space, "me/open", "--space", "--private")[1]
    )


def edit(name, pattern, new):
    return lambda folder: (folder / name).write_text(re.sub(pattern, new, (folder / name).read_text(), flags=re.M))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (shutil.rmtree, "{folder} holds no README.md."),
        (lambda folder: (folder / "requirements.txt").unlink(), "{folder} holds no requirements.txt."),
        (lambda folder: (folder.parent / "reviews.jsonl").unlink(), "{folder} holds no reviews.jsonl."),
        (edit("README.md", "^sdk: .*$", "sdk: docker"), "{folder}/README.md: sdk must be gradio"),
        (edit("README.md", "^sdk_version: .*$", ""), "{folder}/README.md: sdk must be gradio"),
        (edit("README.md", "^app_file: .*$", "app_file: main.py"), "{folder}/README.md: app_file must be one of"),
        (edit("README.md", "^title: .*$", "title: ["), "the front matter of {folder}/README.md cannot be read: "),
        (edit("requirements.txt", "/me/", "/OWNER/"), "{folder}/requirements.txt: put the repository's address into"),
        (edit("page.py", r"\A", "def (:\n"), "{folder}/page.py does not compile: "),
    ],
)
def test_a_space_that_would_not_start_is_not_sent(damage, sentence, space):
    damage(space)
    said = refused(example.main, [str(space), "--space", "--repo_id", "me/damaged"])
    assert said.startswith("push_to_hub.py: error: " + sentence.format(folder=space))


def test_the_page_of_the_tree_names_no_repository_until_its_owner_does():
    said = refused(example.main, ["--space", "--repo_id", "me/page"])
    assert "OWNER" in said
    assert "give the folder" in refused(example.main, ["--repo_id", "me/page"])
