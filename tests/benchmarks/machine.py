"""What a kept result says of the machine and the code that made it."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import git_state


def machine() -> dict[str, Any]:
    """The processor, the version of onnxruntime and the commit; a result's settings hold the rest."""
    state = git_state() or {"commit": "unknown", "dirty": False}
    return {"cpu": processor(), "onnxruntime": version("onnxruntime"), **state}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def caption(data: dict[str, Any]) -> str:
    """Where a result comes from, in one sentence."""
    made, settings = data["machine"], data["settings"]
    versions = {name: settings["versions"][name] for name in ("torch", "transformers")}
    versions["onnxruntime"] = made["onnxruntime"]
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    changed = " with changes" if made["dirty"] else ""
    return f"{made['cpu']}, {settings['threads']} threads, {packages}, commit {made['commit'][:10]}{changed}."
