"""The processes that accelerate or torchrun launches of one command, which share its batches.

All of them run the same lines. They meet in `share`, `agree`, `of_main` and `end` alone, where each tells what it has
for the others, or that it ends: then all end.
"""

import atexit
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from threading import Timer
from typing import Any, NoReturn, TypeVar

import torch
from tqdm.auto import tqdm


T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 10.0  # seconds after which a process says for whom it waits
_state: Any = None  # accelerate's PartialState; None: this process is alone


def join() -> None:
    """Makes this process one of those that its launcher started. Without it each works alone."""
    global _state
    size = int(os.environ.get("WORLD_SIZE", 1))
    if "RANK" in os.environ and size > 1:
        from accelerate import PartialState

        words = f"imbert-eval: waits for {size} processes, as WORLD_SIZE says; without RANK it works alone.\n"
        late = Timer(PATIENCE, sys.stderr.write, [words])
        late.daemon = True
        late.start()
        # Of what they tell each other nothing lies on a device. They may work apart for long.
        try:
            _state = PartialState(cpu=True, timeout=timedelta(days=7))
        finally:
            late.cancel()
        atexit.register(_state.destroy_process_group)  # gloo's threads can abort an interpreter that ends before them
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(_state.local_process_index % torch.accelerator.device_count())


def count() -> int:
    return _state.num_processes if _state else 1


def is_main() -> bool:
    """Whether this is the process that speaks, and writes files."""
    return _state is None or _state.is_main_process


def share(work: Callable[[T], R], items: Sequence[T], *, name: str = "", progress: bool = False) -> list[R]:
    """work(item) of each item, in order. Each process does the work of some; an error of one is raised in all.

    Args:
        work: what it returns can be pickled, and depends on the item alone.
        items: the same in every process.
        name: of the bar that `progress` shows, over the items of this process.
    """
    own = items[_state.process_index :: count()] if _state else items
    bar = tqdm(own, desc=name, leave=False, disable=not (progress and items))
    if _state is None:
        return [work(item) for item in bar]
    done: list[R] = []
    failed: Exception | None = None
    try:
        for item in bar:
            done.append(work(item))
    except Exception as error:
        failed = error
    found = _meet((done, failed and _sent(failed)))
    failures = {len(done) * count() + i: error for i, (done, error) in enumerate(found) if error is not None}
    if failures:
        raise failures[min(failures)] from failed  # the one that a process alone would have met
    return [found[i % count()][0][i // count()] for i in range(len(items))]


def _sent(error: Exception) -> Exception:
    """The error, or its words where it cannot be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def agree(name: str) -> None:
    """Ends all processes where `name`, which tells what each is about to do, is not the same in all."""
    if len({*_meet(name)}) > 1:
        end(2, "imbert-eval: error: the processes differ in models, data, packages, device or arguments.\n")


def of_main(value: T) -> T:
    """The main process's value."""
    return _meet(value)[0]


def end(status: int, message: str = "") -> NoReturn:
    """Ends all processes, once the main one has said why, whichever knew first."""
    if message and is_main() and sys.stderr:
        sys.stderr.write(message)
    while None in [why for _, why in _gather((None, (status, message)))]:
        pass  # others have yet to hear of it
    sys.exit(status)


def _meet(value: T) -> list[T]:
    """The value of each process."""
    found = _gather((value, None))
    for _, why in found:
        if why is not None:
            end(*why)
    return [value for value, _ in found]


def _gather(value: Any) -> list[Any]:
    if _state is None:
        return [value]
    from accelerate.utils import gather_object

    try:
        return gather_object([value])
    except RuntimeError as error:  # of gloo, where one has ended; no attack's failure
        sys.exit(f"imbert-eval: the processes could not meet: {error}")
