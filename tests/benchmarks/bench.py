"""What targets are measured with: the batches, kept parts, rows, seconds and peaks; and what is said of a number."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import references
import torch
from torch import Tensor

from imbert_hf.evaluation.attacks.ascent import Batch
from imbert_hf.evaluation.cost.measures import interleave, peak_bytes, ratio, timed, waiting
from imbert_hf.evaluation.cost.settings import Make
from imbert_hf.evaluation.cost.variants import Variant, make_variants
from imbert_hf.evaluation.report import Keep, compute_now, finite


LEAN = ("implicit", "one_step")  # gradients that keep no graph of the solve
FEW = 4  # rows of real text, where something is solved in float64 or to the end
Record = dict[str, Any]


def record(
    target: str,
    setting: str,
    measured: float | None,
    bound: float | None,
    *,
    strict: bool = False,
    quartiles: Sequence[float] | None = None,
    verdict: str | None = None,
    note: str = "",
) -> Record:
    """One row: what was measured, and the verdict "met", "missed", "not measured", or "-" where there is no bound.

    Args:
        measured: None or not finite: not measured.
        bound: met where measured <= bound, `strict`: where it is below.
        verdict: where it does not follow from the numbers.
        note: the reason, or what else is to be known.
    """
    value = None if measured is None else finite([measured])[0]
    if verdict is None:
        if value is None:
            verdict = "not measured"
        elif bound is None:
            verdict = "-"
        else:
            verdict = "met" if value < bound or (value == bound and not strict) else "missed"
    return {
        "target": target,
        "setting": setting,
        "measured": value,
        "quartiles": None if value is None or quartiles is None else finite(quartiles),
        "bound": bound,
        "strict": strict,
        "verdict": verdict,
        "note": note,
    }


@dataclass(frozen=True, eq=False)
class Bench:
    """What every target is measured with.

    Attributes:
        model: IMBertForSequenceClassification of two classes, in the dtype and on the device to measure.
        random, sentence, real: batches, see cost.make_batch.
        repeats: rounds of timing, after one that is not counted.
        seed: of dropout.
        keep: a finished part, see `report.Journal`.
        progress: show it.
    """

    model: Any
    random: Batch
    sentence: Batch
    real: Batch
    repeats: int
    seed: int = 0
    keep: Keep = compute_now
    progress: bool = False

    @property
    def few(self) -> dict[str, Tensor]:
        return {name: value[:FEW] for name, value in self.real.items()}

    def part(self, measure: str, batch: Batch, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What `compute` returns, or what is kept of it under all that it depends on."""
        whole = {
            "measure": f"targets, {measure}",
            "batch": {name: value.tolist() for name, value in batch.items()},
            "seed": self.seed,
            "dtype": str(self.model.dtype),
            "threads": torch.get_num_threads(),
            "torchdeq": references.find_torchdeq() is not None,
            "connection": {n: value for n, value in self.model.config.to_dict().items() if n.startswith("im_")},
            **key,
        }

        def seeded():
            torch.manual_seed(self.seed)
            return compute()

        return self.keep(whole, seeded)

    def rows(
        self,
        solver: str,
        iterations: Sequence[int],
        gradients: Sequence[str] = LEAN[:1],
        make: Make = make_variants,
        **more,
    ) -> list[Variant]:
        """Plain BERT's, then those that `make` makes of a setting."""
        options: dict[str, Any] = {"solvers": [solver], "gradients": gradients, "iterations": iterations}
        options["learning_rates"] = [self.model.config.im_learning_rate]
        bert, *rows = make(self.model, **options | more)
        return [bert, *(row for row in rows if row.setting)]

    def ratio(
        self, row: Variant, base: Variant, batch: Batch, training: bool, *, times: int = 1, repeats: int | None = None
    ) -> dict[str, Any]:
        """Time of `row` to that of `base`, run `times` times in a row: measures.ratio.

        The two alternate, and nothing else runs between them. With about equal times noise meets both alike.
        """
        repeats = repeats or self.repeats
        actions = {"row": partial(timed, row, batch, training), "base": partial(_again, base, batch, training, times)}
        wait = waiting(self.model.device)

        def compute():
            interleave(actions, 1, synchronise=wait)
            seconds = interleave(actions, repeats, synchronise=wait, progress=self.progress)
            return ratio(seconds["row"], [value / times for value in seconds["base"]])

        key = {name: [r.name, dict(r.fields)] for name, r in (("row", row), ("base", base))}
        return self.part("ratio", batch, {**key, "training": training, "repeats": repeats, "times": times}, compute)

    def peak(self, row: Variant, batch: Batch) -> int:
        """Bytes, see measures.peak_bytes."""
        key = {"row": [row.name, dict(row.fields)]}
        return self.part("peak", batch, key, partial(peak_bytes, row, batch))


@contextlib.contextmanager
def _again(row: Variant, batch: Batch, training: bool, times: int) -> Iterator[Callable[[], Any]]:
    with timed(row, batch, training) as function:

        def run():
            for _ in range(times):
                function()
                row.model.zero_grad()

        yield run
