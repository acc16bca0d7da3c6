"""Intervals and tests for accuracies measured on the same rows.

Accuracy: Wilson's score interval. Difference of two models: a paired bootstrap over rows (and seeds), and McNemar's
exact test. Both are paired: models are asked about the same rows, whose difficulty then cancels.
"""

from collections.abc import Sequence
from typing import Any

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, t


RESAMPLES = 10_000


def accuracy_interval(correct: ArrayLike) -> list[float]:
    """95 % interval of a mean (Wilson 1927), from n values that are right or wrong, or shares between: these vary less,
    and the interval is then wider than need be."""
    values = numpy.asarray(correct, dtype=float)
    return share_interval(float(values.mean()), values.size)


def share_interval(mean: float, n: int) -> list[float]:
    """The same from the mean."""
    z = norm.ppf(0.975)
    middle = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * numpy.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return [float(max(middle - reach, 0.0)), float(min(middle + reach, 1.0))]


def paired_bootstrap(*differences: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """95 % percentile interval of the mean difference over rows and seeds; of several sets, of the mean of their means.

    Rows are drawn with replacement, the same for every seed, and so are seeds: a difference has to hold for other rows
    and for other seeds. Of sets, such as tasks, each has rows and seeds of its own. A bootstrap of few seeds is too
    narrow, so that with several in every set the interval is widened to that of Student's t over the seeds' own
    differences where this is the wider one, with the degrees of freedom of Welch (1947) and Satterthwaite (1946).

    Args:
        differences: each (seeds, n) or (n,), of one model's rightness and the other's, row by row and seed by seed.
        resamples: number of draws.
        seed: of the draws.
    """
    sets = [numpy.atleast_2d(numpy.asarray(d, dtype=float)) for d in differences]
    rng = numpy.random.default_rng(seed)
    drawn = numpy.mean([_draw(d, resamples, rng) for d in sets], axis=0)
    low, high = numpy.quantile(drawn, [0.025, 0.975])
    if all(len(d) > 1 for d in sets):
        mean = numpy.mean([d.mean() for d in sets])
        freedom = numpy.array([len(d) - 1 for d in sets])
        variances = numpy.array([d.mean(axis=1).var(ddof=1) / len(d) for d in sets]) / len(sets) ** 2
        if variances.any():
            welch = variances.sum() ** 2 / (variances**2 / freedom).sum()
            reach = t.ppf(0.975, welch) * numpy.sqrt(variances.sum())
            low, high = min(low, mean - reach), max(high, mean + reach)
    return [float(low), float(high)]


def _draw(d: NDArray[numpy.float64], resamples: int, rng: numpy.random.Generator) -> NDArray[numpy.float64]:
    """(resamples,) mean differences of rows and seeds drawn from (seeds, n)."""
    seeds, n = d.shape
    # Rows with equal differences are alike, so a draw of n rows is a draw of how many come from each kind.
    kinds, counts = numpy.unique(d, axis=1, return_counts=True)
    means = rng.multinomial(n, counts / n, size=resamples) @ kinds.T / n  # (resamples, seeds)
    return numpy.take_along_axis(means, rng.integers(seeds, size=(resamples, seeds)), axis=1).mean(axis=1)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """p-value of McNemar's exact test (1947): two models, right or wrong on the same n rows, are equally good.

    Of shares of right answers it is the sign test over the rows that differ.
    """
    differences = numpy.asarray(a, dtype=float) - numpy.asarray(b, dtype=float)
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_difference(seeds: Sequence[tuple[ArrayLike, ArrayLike]], seed: int = 0) -> dict[str, Any]:
    """The accuracy of a minus that of b, from the rows that each has right, or what share of each row, seed by seed.

    Returns:
        difference; ci95, of paired_bootstrap; mcnemar_p, None with several seeds; resolved: ci95 excludes
        0, and mcnemar_p, where there is one, is below 0.05, since the bootstrap of few rows excludes 0 too easily.
    """
    differences = numpy.array([numpy.asarray(a, dtype=float) - numpy.asarray(b, dtype=float) for a, b in seeds])
    low, high = paired_bootstrap(differences, seed=seed)
    p = mcnemar(*seeds[0]) if len(seeds) == 1 else None
    return {
        "difference": float(differences.mean()),
        "ci95": [low, high],
        "mcnemar_p": p,
        "resolved": not low <= 0 <= high and (p is None or p < 0.05),
    }
