"""Makes the runs of a plan, each a fine-tuning and what is measured of it, and goes on where it was stopped.

    python examples/study run examples/study/plan.yaml --data path/to/data --runs outputs/study --workers 2
    python examples/study run examples/study/paper.yaml --base google-bert/bert-base-uncased

README.md, beside this file, says what DATA and the plan hold, and what is kept in RUNS.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock, Timeout

from study.files import Files, fetch
from study.kept import read_run, write_run
from study.plan import Run, batch_of, read_plan, runs_of


COMMAND = [sys.executable, str(Path(__file__).parent), "run"]
BUSY = 75  # how a child ends whose run is being made by another process: EX_TEMPFAIL of sysexits.h


def main(words: list[str]) -> None:
    parser = make_parser()
    args = parser.parse_args(words)
    args.runs = args.runs or Path("outputs", args.plan.stem)
    try:
        runs = asked_for(args)
    except ValueError as error:
        parser.exit(2, f"study run: error: {error}\n")  # not the Parser of imbert_hf, which imports torch
    args.runs.mkdir(parents=True, exist_ok=True)
    if args.run is not None:
        one_run(next(run for run in runs if run.key == args.run), args)
        return
    left = [run for run in runs if is_due(run, read_run(args.runs, run), args.retry)]
    if args.estimate:
        from study.estimate import estimate

        print(estimate(left, files_of(args), args.workers))
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("study run: terminated; the same command goes on"))
    if left and not args.shared:
        os.environ.update(devices(0, args.processes) if args.workers == 1 else {})
        say_how_long(words)
    if not (work(runs, args, words) if args.workers == 1 else share_out(args.workers, args.processes, words)):
        sys.exit(1)


def say_how_long(words: list[str]) -> None:
    """In a process, which gives memory and devices back; where it fails, the runs say why."""
    subprocess.run([*COMMAND, *words, "--estimate"], check=False)


def asked_for(args: argparse.Namespace) -> list[Run]:
    """The runs to be made, the arguments checked."""
    plan = read_plan(args.plan, args.base)
    for name, given in (("parts", args.parts), ("models", args.models)):
        if unknown := [one for one in given or () if one not in plan[name]]:
            raise ValueError(f"--{name} must be of {', '.join(plan[name])}, got {unknown[0]!r}.")
    if args.workers < 1:
        raise ValueError(f"--workers must be an integer >= 1, got {args.workers}.")
    runs = [run for run in runs_of(plan, args.parts) if args.models is None or run.model in args.models]
    for task in dict.fromkeys(run.task for run in runs if args.data):
        if not (args.data / task / "train.jsonl").is_file():
            raise ValueError(f"--data {args.data} lacks {task}/train.jsonl.")
    if args.advglue_test and not args.advglue_test.is_file():
        raise ValueError(f"--advglue-test {args.advglue_test} must be a file, AdvGLUE's test_ann.json.")
    for batch in {batch_of(one) for run in runs for one in (run, run.taught_by)}:
        if not isinstance(batch, int) or batch < 1:
            raise ValueError(f"per_device_train_batch_size of {args.plan} must be an integer >= 1, got {batch!r}.")
        if args.processes < 1 or batch % args.processes:
            raise ValueError(f"--processes must be >= 1 and divide a batch of {batch} rows, got {args.processes}.")
    if args.runs.exists() and not args.runs.is_dir():
        raise ValueError(f"--runs {args.runs} must be a folder.")
    if args.data is None and args.run is None and not args.shared:
        fetch(dict.fromkeys(run.task for run in runs), files_of(args).data)
    for run in runs:  # a broken line is said before anything is made
        read_run(args.runs, run)
    # Times are not taken while others work.
    left_out = {*["cost"] * (args.shared or args.workers > 1), *["advglue_test"] * (args.advglue_test is None)}
    runs = [replace(run, stages=tuple(stage for stage in run.stages if stage not in left_out)) for run in runs]
    return [run for run in runs if run.stages]


def files_of(args: argparse.Namespace) -> Files:
    return Files(args.data or args.runs / "data", args.runs, args.model, args.advglue_test, args.processes)


def is_due(run: Run, kept: dict[str, Any], retry: bool) -> bool:
    return bool(run.missing(kept)) and (kept["problem"] is None or retry)


def one_run(run: Run, args: argparse.Namespace) -> None:
    """What a child does: the run, unless somebody else is at it, or at that whose weights it needs."""
    try:
        # Held by the process that makes the run; the system gives it up where that one dies.
        with FileLock(args.runs / f".{run.taught_by.key}.lock", timeout=0):
            if not run.missing(read_run(args.runs, run)):  # another was quicker, and has said so
                sys.exit(BUSY)
            from study.stages import make_run  # torch and all that; the others only wait

            make_run(run, files_of(args))
    except Timeout:
        sys.exit(BUSY)


def make_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("study run", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("plan", type=Path, help="YAML file")
    hub = "the Hub's GLUE and AdvGLUE, written into RUNS/data once"
    parser.add_argument("--data", type=Path, help=f"folder of <task>/<split>.jsonl and adv_glue (default: {hub})")
    parser.add_argument("--advglue-test", metavar="FILE", type=Path, help="AdvGLUE's test_ann.json, for that stage")
    parser.add_argument(
        "--runs", type=Path, help="folder of <task>.jsonl, begun or gone on with (default: outputs/PLAN)"
    )
    parser.add_argument("--base", metavar="NAME", help="Hub id or folder, in place of the plan's model_name_or_path")
    parser.add_argument("--model", metavar="DIR", help="a copy of that model on this machine")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="of the plan's parts (default: all)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of the plan's models (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes, which share cores and GPUs (default: 1)")
    parser.add_argument("--processes", type=int, default=1, help="that train a model together (default: 1)")
    parser.add_argument("--time-limit", type=float, help="seconds a run may take (default: any)")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--retry", action="store_true", help="make again what failed or took too long")
    parser.add_argument("--estimate", action="store_true", help="say about how long it takes, and make nothing")
    parser.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)  # of one of several workers
    parser.add_argument("--run", help=argparse.SUPPRESS)  # the one run that a worker's child makes
    return parser


def share_out(count: int, processes: int, words: list[str]) -> bool:
    """Several processes of this command, each with its share of the cores and of the GPUs, where there are any.

    Returns whether no run failed.
    """
    threads, workers = str(max(1, (os.cpu_count() or 1) // (count * processes))), []
    for number in range(count):
        command = [*COMMAND, *words, "--workers", "1", "--shared"]
        own = {"OMP_NUM_THREADS": threads, **devices(number, processes)}
        workers.append(subprocess.Popen(command, env={**os.environ, **own}))
    try:
        return not sum(abs(worker.wait()) for worker in workers)
    finally:
        for worker in workers:
            worker.terminate()


def devices(worker: int, processes: int) -> dict[str, str]:
    """The environment in which a worker sees its own GPUs alone: of more the Trainer would take a batch each."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        import torch  # takes seconds, and only counts

        allowed = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [gpu for gpu in allowed.split(",") if gpu]
    own = [gpus[(worker * processes + i) % len(gpus)] for i in range(processes if gpus else 0)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))} if gpus else {}


def work(runs: list[Run], args: argparse.Namespace, words: list[str]) -> bool:
    """Makes every run, each in a process of its own, and waits for those that others are making.

    Returns whether none failed. What failed before, and is not tried again, does not count.
    """
    begun, since, well = time.monotonic(), time.time(), True
    while runs:
        busy = []
        for run in runs:
            if time.monotonic() - begun > args.stop_after:
                return well
            kept = read_run(args.runs, run)
            # What failed is tried once, by the first who comes.
            if not is_due(run, kept, args.retry and kept.get("failed", 0) <= since):
                continue
            code, problem = child(run, args, words)
            if code == BUSY:
                busy.append(run)
                continue
            well = well and code == 0
            if code > 0:
                write_run(args.runs, run, read_run(args.runs, run) | {"problem": problem, "failed": time.time()})
            print(progress(run, problem, runs, args.runs), flush=True)
        runs = busy
        time.sleep(5 * bool(busy))
    return well


def child(run: Run, args: argparse.Namespace, words: list[str]) -> tuple[int, str | None]:
    """Makes the run. Returns how it ended, below 0 where it was killed, and what went wrong."""
    log = args.runs / f".{run.key}.log"
    # The stages are the part's.
    command = [*COMMAND, *words, "--parts", run.part, "--run", run.key]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(args.time_limit)
        except subprocess.TimeoutExpired:
            return 1, f"exceeded the time limit of {args.time_limit:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # those of --processes, too
            process.wait()
        file.seek(0)
        text = file.read()
    if code == BUSY:
        return code, None
    log.write_text(text, encoding="utf-8")
    if code < 0:
        return code, f"was killed by signal {-code}"
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return code, None if code == 0 else said[-1] if said else f"ended with {code}"


def progress(run: Run, problem: str | None, runs: list[Run], folder: Path) -> str:
    """One line: what was done, and about how long the rest takes at the pace of runs of the same task and model."""
    spent: dict[Any, list[float]] = {}
    left: dict[str, Run] = {}
    for one in runs:
        kept = read_run(folder, one)
        if kept["problem"] is None and one.missing(kept):
            left[one.key] = one
        elif kept["problem"] is None:
            spent.setdefault((one.task, one.model, one.stages), []).append(sum(kept["seconds"].values()))
    every = [seconds for of_kind in spent.values() for seconds in of_kind] or [0.0]
    rest = sum(median(spent.get((one.task, one.model, one.stages), every)) for one in left.values())
    count = len({one.key for one in runs})
    what = problem or f"{sum(read_run(folder, run)['seconds'].values()):.0f} s"
    return (
        f"[{count - len(left)}/{count}] {run.part}: {run.task}, seed {run.seed}, {run.model}: {what}; "
        f"{rest / 60:.0f} minutes of one worker left"
    )
