"""Modules run as commands beside one another, which may be launchers of processes of their own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = "torch.distributed.run"  # what the commands of these names run
# At a port of its own: launches at once may both find its usual one free.
ACCELERATE = ("accelerate.commands.launch", "--main_process_port", "0")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def gloo_threads():
    """How many threads of gloo's groups this process has, of those that work off collectives; 0 where /proc is not.

    After a collective such a thread drops the last reference to its tensor, which needs the interpreter. Where that is
    ending, the process aborts ("terminate called without an active exception"), though all its work is done. A group
    that is destroyed waits for its threads, unless something still holds it.
    """
    count = 0
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            count += (task / "comm").read_text().strip() == "pt_gloo_runloop"
    return count


def leave():
    """Ends a worker without its interpreter's end: torch's caches hold the groups of FSDP2's meshes to the last."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_together(folder, *commands, timeout=300):
    """Runs modules, each with its arguments, at once. Where one fails or time is up, all end, and what they started."""
    import psutil  # which workers, that import this file, need not have

    own = [str(ROOT / name) for name in (".", "tests", "tests/works_with", "examples")]
    path = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    logs = [folder / f"{i}.log" for i in range(len(commands))]
    processes = []
    try:
        for words, log in zip(commands, logs, strict=True):
            command = [sys.executable, "-m", *map(str, words)]
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=os.environ | environment)
                )
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            codes = [process.poll() for process in processes]
            if None not in codes or any(codes):
                break
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in (*psutil.Process(process.pid).children(recursive=True), process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            process.wait()
    # A code is None where time was up.
    assert all(code == 0 for code in codes), codes + [f"{log}: {log.read_text()[-3000:]}" for log in logs]
