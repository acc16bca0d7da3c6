"""The files that travel with a checkpoint: what they import, and that they reach nothing beyond the process."""

import ast
import shutil
import subprocess
import sys

import pytest
from stranger import ENTRIES, PACKAGE, TRAVELLING, files_of


@pytest.mark.parametrize("name", TRAVELLING)
def test_travelling_files_import_what_travels(name):
    tree = ast.parse((PACKAGE / name).read_text())
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    relative = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert f"{node.module}.py" in TRAVELLING
            relative.add(f"{node.module}.py")
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in allowed
    for family, entry in ENTRIES.items():
        if name == entry:
            assert relative == {*files_of(family)} - {name}  # older loaders copy the entry file's own imports only
    if name == "configuration_imbert.py":
        assert not relative


def test_import_lines_outside_code_would_be_read_by_the_loader():
    from transformers.dynamic_module_utils import get_relative_imports

    for name in TRAVELLING:
        nodes = ast.walk(ast.parse((PACKAGE / name).read_text()))
        imports = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
        assert set(get_relative_imports(PACKAGE / name)) == imports


# What a travelling file may import beside its sisters: none of it reaches beyond the process.
PURE = {
    "collections",
    "contextlib",
    "contextvars",
    "copy",
    "dataclasses",
    "difflib",
    "functools",
    "inspect",
    "math",
    "numbers",
    "re",
    "weakref",
}
PURE |= {"sys", "threading", "torch", "transformers", "typing", "warnings"}
# Parts of torch and of transformers that do, other modules that these have imported, built-in functions that do or that
# run text, and ways to them around their names.
IMPURE = {"hub", "multiprocessing", "distributed", "cpp_extension", "serialization", "package", "load", "save"}
IMPURE |= {"from_file", "fromfile", "tofile", "memmap", "load_url", "cached_file", "push_to_hub", "builtins", "ctypes"}
IMPURE |= {"asyncio", "http", "importlib", "io", "mmap", "os", "pathlib", "pickle", "runpy", "shutil", "socket"}
IMPURE |= {"subprocess", "tempfile", "urllib"}
BUILTIN = {"open", "exec", "eval", "compile", "__import__", "input", "breakpoint", "globals", "locals"}
AROUND = {"__builtins__", "__globals__", "__loader__", "__spec__", "load_library", "load_state_dict_from_url"}


def beyond_the_process(text):
    """What the source `text` uses that opens files, sockets or processes, or runs text as code."""
    found = []
    tree = ast.parse(text)
    modules = {alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    # A module is used for what it holds, by name, and is handed to nobody who might look that up.
    used = {n.value for n in ast.walk(tree) if isinstance(n, ast.Attribute) and not n.attr.startswith("__")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] not in PURE or IMPURE & {*name.split(".")}]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            found += [node.module] * (parts[0] not in PURE or bool(IMPURE & {*parts}))
        elif isinstance(node, ast.Name):
            found += {node.id} & (BUILTIN | AROUND)
            found += [node.id] * (node.id in modules and node not in used)
        elif isinstance(node, ast.Attribute):
            # model.eval() and torch.compiler are harmless; of sys, what has been imported may be listed.
            found += {node.attr} & (IMPURE | AROUND | BUILTIN - {"eval", "compile"})
            if ast.unparse(node.value) == "sys" and node.attr != "modules":
                found.append(f"sys.{node.attr}")
            if ast.unparse(node.value) == "sys.modules" and node.attr != "items":
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "sys.modules":
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "vars"):
            named = [n.value for n in node.args[1:2] if isinstance(n, ast.Constant)]
            found += {*named} & (IMPURE | AROUND | BUILTIN)
            if ast.unparse(node.args[0]).split(".")[0] in modules and not named:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("name", TRAVELLING)
def test_travelling_files_reach_nothing_beyond_the_process(name):
    assert beyond_the_process((PACKAGE / name).read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "import subprocess",
        "from socket import socket",
        "import torch.hub",
        "from torch import hub",
        "open('a')",
        "torch.load('a')",
        "exec('a')",
        "__import__('os')",
        "torch.utils.cpp_extension.load('a')",
        "from pathlib import Path",
        "sys.modules['os'].system('a')",
        "sys.path.insert(0, 'a')",
        "(lambda: 0).__globals__",
        "torch.from_file('a', size=1)",
        "torch.UntypedStorage.from_file('a', True, 1)",
        "torch.hub.load_url",
        "numpy_array.tofile('a')",
        "transformers.utils.hub.cached_file",
        "from transformers.utils import cached_file",
        "tokenization_auto.importlib.import_module('os')",
        "tokenization_auto.os.system('a')",
        "sys.modules.get('os')",
        "import torch; vars(torch)['load']('a')",
        "import torch; torch.__dict__['load']('a')",
        "import torch; getattr(torch, 'lo' + 'ad')('a')",
        "import torch; getattr(torch.utils, name)",
        "import torch; t = torch",
        "getattr(model, 'push_to_hub')('a')",
        "globals()['a']",
    ],
)
def test_the_check_of_travelling_files_finds(line):
    assert beyond_the_process(line)


WATCHED = """
import sys, torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.models.electra import modeling_electra
from transformers.models.roberta import modeling_roberta

INPUTS = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 1]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}

def run(model):
    model(**INPUTS, labels=torch.tensor([0, 1])).loss.backward()

run(BertForSequenceClassification(BertConfig(**SIZES)))  # what torch imports at its first use

def watch(event, args):
    read = event == "open" and str(args[0]).endswith((".py", ".pyc")) and args[1] in ("r", "rb")
    if not read and event not in QUIET:
        print("seen:", event, *args, flush=True)

QUIET = {"import", "os.listdir", "os.scandir", "exec", "compile", "marshal.loads"}  # of an import
QUIET |= {"object.__getattr__", "object.__setattr__", "object.__delattr__", "code.__new__", "sys._getframe"}
QUIET |= {"builtins.id"}
sys.addaudithook(watch)
sys.path.insert(0, sys.argv[1])
from travelling import configuration_imbert, modeling_electra_imbert, modeling_imbert, modeling_roberta_imbert

modules = {"Bert": modeling_imbert, "Roberta": modeling_roberta_imbert, "Electra": modeling_electra_imbert}
for family, module in modules.items():
    config = getattr(configuration_imbert, f"IM{family}Config")(**SIZES)
    model = getattr(module, f"IM{family}ForSequenceClassification")(config)
    for config.im_solver in ("fixed_point", "anderson", "gradient_descent"):
        for config.im_gradient in ("unrolled", "implicit", "one_step"):
            for config.im_tolerance in (0.0, 0.1):
                run(model.train())
                with torch.inference_mode():
                    model.eval()(**INPUTS, output_im_statistics=True)
print("ran")
open(sys.argv[2])
"""


def test_travelling_files_open_nothing_while_they_run(tmp_path):
    """As Python's audit hooks see it: from their import, of which reading Python code is a part, to their gradients."""
    package = tmp_path / "travelling"
    package.mkdir()
    for name in TRAVELLING:
        shutil.copy(PACKAGE / name, package)
    command = [sys.executable, "-I", "-B", "-W", "ignore", "-c", WATCHED, str(tmp_path), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, *_ = done.stdout.splitlines()
    assert first == "ran"
    assert second.startswith(f"seen: open {sys.executable} r ")  # the test's own: it would be seen
