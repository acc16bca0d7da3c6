"""Sends a saved IM-BERT to the Hugging Face Hub: weights, config, code, tokenizer and card, in one commit.

    pip install imbert-hf
    hf auth login  # or HF_TOKEN in the environment

    python examples/push_to_hub.py outputs/sst2-im-bert --repo_id my-name/imbert-sst2 --private
    python examples/push_to_hub.py --space --repo_id my-name/imbert --private  # the page of examples/space

The folder is loaded first, and only read: what would not open is not sent, and after an error the same command tries
again. A Space is not run first: its code is parsed, and its app_file and the files that it needs must be there.

It exits with 0 when done, with 1 where the Hub refused or could not be reached, and with 2 for wrong arguments or a
folder that would not open.
"""

import argparse
import ast
import re
import symtable
import sys
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import CommitOperationAdd, HfApi, metadata_load
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

import imbert_hf  # registers its classes with the Auto classes
from imbert_hf.command_line import Parser, run


# Of the folder itself. States of the optimizer are not sent, nor training_args.bin, which may hold a token.
SENT = [
    *("README.md", "config.json", "*_imbert.py", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
]
SENT_OF_SPACE = ["README.md", "requirements.txt", "*.py", "*.png", "*.jsonl"]
PAGE = Path(__file__).with_name("space")
BESIDE = ("quickstart.py", "reviews.jsonl")  # of a Space: from the folder above it where it has none of its own

USAGE = """import torch
from transformers import {auto_class}, AutoTokenizer

name, commit = "{repo_id}", "{commit}"
tokenizer = AutoTokenizer.from_pretrained(name, revision=commit, trust_remote_code=True)
model = {auto_class}.from_pretrained(name, revision=commit, trust_remote_code=True).eval()
inputs = tokenizer("not a bad film", return_tensors="pt")
{more}with torch.no_grad():
    print(model(**inputs))"""
CHOICES = "inputs = {name: value[None] for name, value in inputs.items()}  # 1 question, 1 choice, its tokens\n"


def check(folder: Path) -> str:
    """Loads what will be sent. Returns the name of the model's Auto class.

    Raises:
        ValueError: something is missing, or does not load.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; give the folder of save_pretrained.")
    try:
        config = AutoConfig.from_pretrained(folder)
        if not type(config).__module__.startswith(f"{imbert_hf.__name__}."):
            raise ValueError(f"{folder} holds a checkpoint of model_type {config.model_type!r}, which is no IM-BERT.")
        check_code(folder, config)
        auto_class = auto_class_of(folder, config)
        # Pickled weights are not sent; transformers draws anew what a file lacks, with a warning alone.
        options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
        _, report = getattr(transformers, auto_class).from_pretrained(folder, **options)
    except ValueError:
        raise
    except Exception as error:  # each library raises its own for a damaged file
        raise ValueError(f"{folder} cannot be loaded: {first_line(error)}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"  # of a KeyError the text is the key alone
        raise ValueError(f"{folder} holds a tokenizer that cannot be loaded: {said}") from None
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks weights: {', '.join(sorted(report['missing_keys']))}.")
    # Without a vocabulary file, transformers makes a tokenizer of special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"{folder} holds no tokenizer; save the model's own there.")
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} holds no README.md; imbert-eval card --model {folder} writes one.")
    return auto_class


def check_space(folder: Path) -> None:
    """Reads what will be sent as a Space. Raises ValueError where something is missing or does not compile."""
    files = files_of_space(folder)
    for name in ("README.md", "requirements.txt", *BESIDE):
        if name not in files:
            raise ValueError(f"{folder} holds no {name}.")
    try:
        told = metadata_load(files["README.md"]) or {}
    except Exception as error:  # of YAML
        raise ValueError(f"the front matter of {files['README.md']} cannot be read: {first_line(error)}") from None
    if told.get("sdk") != "gradio" or not told.get("sdk_version"):
        wanted = "sdk must be gradio, and sdk_version its release"
        raise ValueError(f"{files['README.md']}: {wanted}, got {told.get('sdk')} and {told.get('sdk_version')}.")
    if str(told.get("app_file")) not in files:
        raise ValueError(f"{files['README.md']}: app_file must be one of the files, got {told.get('app_file')}.")
    requirements = files["requirements.txt"]
    for line in requirements.read_text(encoding="utf-8").splitlines():
        if "OWNER" in line:
            raise ValueError(f"{requirements}: put the repository's address into this line first: {line}")
    for name, path in files.items():
        if name.endswith(".py"):
            try:
                ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"{path} does not compile: {first_line(error).rstrip('.')}.") from None


def files_of_space(folder: Path) -> dict[str, Path]:
    """By their names in the Space."""
    beside = {name: folder.resolve().parent / name for name in BESIDE}
    return {name: path for name, path in beside.items() if path.is_file()} | files_of(folder, SENT_OF_SPACE)


def files_of(folder: Path, patterns: list[str]) -> dict[str, Path]:
    return {path.name: path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def check_code(folder: Path, config: Any) -> None:
    """Refuses code that lacks a file or a name, or does not compile. It is read and not run: imbert_hf is there."""
    if PreTrainedConfig.get_config_dict(folder)[0].get("auto_map") != config.auto_map:
        raise ValueError(f"auto_map in {folder / 'config.json'} is not this version's; save the model again.")
    repair = "save_pretrained of the model writes the code there"
    wanted = [tuple(reference.split(".")) for reference in config.auto_map.values()]  # module, name
    defined: dict[str, set[str]] = {}
    for module, name in wanted:  # which grows by what each module imports from the others
        path = folder / f"{module}.py"
        if module not in defined:
            try:
                source = path.read_text(encoding="utf-8")
                tree, table = ast.parse(source), symtable.symtable(source, str(path), "exec")
            except FileNotFoundError:
                raise ValueError(f"{path} is missing; {repair}.") from None
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"{path} does not compile: {first_line(error).rstrip('.')}; {repair}.") from None
            defined[module] = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
            wanted += [(str(node.module), alias.name) for node in imports for alias in node.names]
        if name not in defined[module]:
            raise ValueError(f"{path} defines no {name}; {repair}.")


def auto_class_of(folder: Path, config: Any) -> str:
    for auto_class, reference in config.auto_map.items():
        if reference.split(".")[1] in (config.architectures or ()):
            return str(auto_class)
    raise ValueError(f"architectures in {folder / 'config.json'} is {config.architectures}, which auto_map lacks.")


def push(args: argparse.Namespace) -> Any:
    """The commit's CommitInfo. Raises ValueError where the Hub refuses or cannot be reached."""
    files = files_of_space(args.folder) if args.space else files_of(args.folder, SENT)
    kind: Any = {"repo_type": "space" if args.space else "model"}
    sdk: Any = {"space_sdk": "gradio"} if args.space else {}
    try:
        api = HfApi(token=args.token)
        repo_id = api.create_repo(args.repo_id, private=args.private or None, exist_ok=True, **kind, **sdk).repo_id
        if args.private and api.repo_info(repo_id, **kind).private is False:
            raise ValueError("it exists and is public, which --private does not change")
        if args.revision is not None:
            api.create_branch(repo_id, branch=args.revision, exist_ok=True, **kind)
        return api.create_commit(
            repo_id=repo_id,
            operations=[CommitOperationAdd(name, path) for name, path in sorted(files.items())],
            revision=args.revision,
            commit_message=args.commit_message,
            **kind,
        )
    except (OSError, RuntimeError, ValueError, HTTPError) as error:
        # Of an upload the reason stands in the cause.
        found = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        reason = first_line(found)
        if isinstance(found, HfHubHTTPError):
            answer = found.response
            reason = f"the server says {answer.status_code} {answer.reason_phrase}"
            reason += f", {found.server_message}" if found.server_message else ""
        raise ValueError(
            f"{args.folder} could not be pushed to {args.repo_id}: {reason.rstrip('.')}. Nothing in the folder has "
            "changed; the same command tries again."
        ) from None


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def usage(auto_class: str, repo_id: str, commit: str) -> str:
    """Python that loads and runs what was sent, with torch and transformers alone."""
    more = CHOICES if auto_class == "AutoModelForMultipleChoice" else ""
    return USAGE.format(auto_class=auto_class, repo_id=repo_id, commit=commit, more=more)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("push_to_hub.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of save_pretrained: model, tokenizer and README.md")
    parser.add_argument("--space", action="store_true", help=f"send a page instead (default folder: {PAGE.name})")
    parser.add_argument("--repo_id", required=True, help="NAME/REPO; made where it does not exist")
    parser.add_argument("--private", action="store_true", help="where it is made; refused where it is public")
    parser.add_argument("--revision", help="branch to commit to, made where it does not exist (default: main)")
    parser.add_argument("--commit_message", help="(default: what is sent)")
    parser.add_argument("--token", help="better HF_TOKEN or hf auth login: other users see the words of a command")
    args = parser.parse_args(argv)
    if args.token is not None and not re.fullmatch(r"[!-~]+", args.token):  # an HTTP error would quote it
        parser.error("--token must be printable ASCII without spaces or line ends.")
    args.folder = args.folder or (PAGE if args.space else None)
    if args.folder is None:
        parser.error("give the folder of save_pretrained, or --space.")
    args.commit_message = args.commit_message or f"Upload {'page' if args.space else 'model, tokenizer and card'}"
    try:
        if args.space:
            check_space(args.folder)
        else:
            auto_class = check(args.folder)
    except ValueError as error:
        parser.error(str(error))
    try:
        commit = push(args)
    except ValueError as error:
        sys.exit(f"push_to_hub.py: error: {' '.join(str(error).split())}")
    print(commit.repo_url)
    if not args.space:
        print(f"\n{usage(auto_class, commit.repo_url.repo_id, commit.oid)}")


if __name__ == "__main__":
    run("push_to_hub.py", main)
