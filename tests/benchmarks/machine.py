"""What a kept result says of the machine and the code that made it."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune import git_state


def machine(*packages: str) -> dict[str, Any]:
    """The processor, the commit, and versions of `packages`; a result's settings hold those of torch and others."""
    state = git_state() or {"commit": "unknown", "dirty": False}
    return {"cpu": processor(), **{name: version(name) for name in packages}, **state}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def caption(data: dict[str, Any]) -> str:
    """Where a result comes from, in one sentence."""
    made, settings = data["machine"], data["settings"]
    versions = settings["versions"] | made
    names = [name for name in ("torch", "transformers", "onnxruntime") if name in versions]
    packages = ", ".join(f"{name} {versions[name]}" for name in names)
    changed = " with changes" if made["dirty"] else ""
    return f"{made['cpu']}, {settings['threads']} threads, {packages}, commit {made['commit'][:10]}{changed}."
