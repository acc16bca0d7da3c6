"""Intervals and tests against values by hand, and their coverage on simulated data."""

import numpy
import pytest
import scipy.stats

from imbert_hf.evaluation.statistics import accuracy_interval, mcnemar, paired_bootstrap, paired_difference


def test_wilson_by_hand():
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) for 8 of 10, z = 1.959964
    assert accuracy_interval([True] * 8 + [False] * 2) == pytest.approx([0.49016, 0.94332], abs=1e-5)
    assert accuracy_interval([True] * 5)[1] == pytest.approx(1)


def test_mcnemar_by_hand():
    a = [True] * 6 + [False] * 1 + [True] * 3
    b = [False] * 6 + [True] * 1 + [True] * 3
    # 7 rows differ, 6 to 1: twice (C(7,0) + C(7,1)) / 2^7
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 7) / 128)
    assert mcnemar(a, a) == 1


def test_bootstrap_is_seeded_and_exact_where_nothing_varies():
    d = numpy.random.default_rng(0).standard_normal(50)
    assert paired_bootstrap(d, seed=3) == paired_bootstrap(d, seed=3) != paired_bootstrap(d, seed=4)
    assert paired_bootstrap([0.0] * 20) == [0, 0]
    assert paired_bootstrap([1.0] * 20) == [1, 1]


def test_bootstrap_agrees_with_drawing_rows_one_by_one():
    d = numpy.random.default_rng(0).integers(-1, 2, 40).astype(float)
    rng = numpy.random.default_rng(1)
    plain = numpy.quantile(d[rng.integers(40, size=(10_000, 40))].mean(axis=1), [0.025, 0.975])
    assert paired_bootstrap(d) == pytest.approx(plain, abs=0.0251)  # one row is 0.025


def coverage(draw, truth, trials=400):
    intervals = [paired_bootstrap(draw(numpy.random.default_rng(i)), resamples=1000, seed=i) for i in range(trials)]
    return numpy.mean([low <= truth <= high for low, high in intervals])


def test_coverage_over_rows():
    # a right with 0.7, b with 0.6, independently: the difference is 0.1. 400 trials of 95 %: 0.95 +- 3 * 0.011
    assert 0.91 <= coverage(lambda rng: (rng.random(150) < 0.7) * 1.0 - (rng.random(150) < 0.6), 0.1) <= 0.985


def test_coverage_over_seeds_and_rows():
    def draw(rng):  # some rows are harder than others for one of the models, and some seeds better
        of_seed, of_row = 0.05 * rng.standard_normal((10, 1)), 0.5 * rng.standard_normal((1, 150))
        return 0.1 + of_seed + of_row + 0.1 * rng.standard_normal((10, 150))

    assert 0.87 <= coverage(draw, 0.1, trials=200) <= 0.99


def test_few_seeds_do_not_resolve_what_is_not_there():
    def draw(rng):  # no difference, but seeds scatter
        of_seed, of_row = 0.06 * rng.standard_normal((3, 1)), 0.3 * rng.standard_normal((1, 148))
        return of_seed + of_row + 0.1 * rng.standard_normal((3, 148))

    assert coverage(draw, 0.0, trials=200) >= 0.92


def test_sets_are_drawn_each_by_itself_and_weigh_the_same():
    """Rows, and seeds, one by one; the sets differ in both numbers."""
    rng = numpy.random.default_rng(0)
    sets = [rng.integers(-1, 2, shape).astype(float) for shape in ((1, 30), (1, 50))]
    drawn = [d[0, rng.integers(d.size, size=(10_000, d.size))].mean(axis=1) for d in sets]
    plain = numpy.quantile(numpy.mean(drawn, axis=0), [0.025, 0.975])
    assert paired_bootstrap(*sets) == pytest.approx(plain, abs=0.01)
    assert numpy.subtract(*plain) < -0.25
    # Set by set nothing can be drawn otherwise; over both, it could
    assert paired_bootstrap([1.0] * 10, [0.0] * 20) == [0.5, 0.5]
    assert paired_bootstrap([1.0] * 10, [[0.0] * 20] * 3) == [0.5, 0.5]
    # Seeds' effects would cancel if the sets' seeds were drawn together; the set of one seed keeps t out
    apart = numpy.array([[-0.4], [0.0], [0.4]]) * numpy.ones((1, 20))
    low, high = paired_bootstrap(apart, -apart, [0.0] * 20)
    assert high == pytest.approx(-low, abs=0.02)
    assert 0.1 < high < 0.25


def test_students_t_of_several_sets_by_hand():
    """Rows that are alike leave seeds alone: Welch and Satterthwaite's interval of (a + b) / 2 is the wider one."""
    a, b = numpy.array([0.0, 0.3, 0.6]), numpy.array([0.1, 0.2])
    variances = numpy.array([0.09 / 3, 0.005 / 2]) / 4
    freedom = variances.sum() ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 1)
    reach = scipy.stats.t.ppf(0.975, freedom) * numpy.sqrt(variances.sum())
    found = paired_bootstrap(a[:, None] * numpy.ones(10), b[:, None] * numpy.ones(7))
    assert found == pytest.approx([0.225 - reach, 0.225 + reach])
    assert 2 < freedom < 3


def test_a_handful_of_rows_resolves_nothing():
    found = paired_difference([([True] * 3, [False] * 3)])
    assert found["ci95"] == [1, 1]
    assert found["mcnemar_p"] == 0.25
    assert found["resolved"] is False


def test_seeds_that_disagree_widen_the_interval():
    rng = numpy.random.default_rng(0)
    # All seeds alike, so that only rows are drawn
    steady = numpy.repeat(rng.integers(-1, 2, (1, 100)), 5, axis=0).astype(float)
    scattered = steady + numpy.array([[-0.4], [-0.2], [0.0], [0.2], [0.4]])
    widths = [numpy.subtract(*paired_bootstrap(d)[::-1]) for d in (steady, scattered)]
    assert widths[0] == pytest.approx(numpy.subtract(*paired_bootstrap(steady[0])[::-1]), abs=0.02)
    assert widths[1] > widths[0] + 0.1


def test_resolved_and_direction():
    a, b = numpy.arange(100) < 80, numpy.arange(100) < 50
    found = paired_difference([(a, b)])
    assert found["difference"] == pytest.approx(0.3)
    assert found["resolved"] is True
    assert found["mcnemar_p"] < 1e-6
    same = paired_difference([(a, a[::-1])])
    assert same["difference"] == 0
    assert same["resolved"] is False
    assert paired_difference([(a, b), (a, b)])["mcnemar_p"] is None
