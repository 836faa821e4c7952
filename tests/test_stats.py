"""Intervals over pairs and fitted exponents."""

import numpy as np
import pandas as pd
import pytest

from dss import stats


def table(n, n_connected, value=lambda i: float(i)):
    connected = [i < n_connected for i in range(n)]
    values = [value(i) for i in range(n)]
    return pd.DataFrame({"L0": 0.1, "connected": connected, "n_beads": values})


def test_the_fraction_has_wilsons_interval():
    row = stats.summarise(table(20, 15), ["L0"], []).iloc[0]
    p, n, z = 0.75, 20, 1.959964
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert row.fraction == p
    np.testing.assert_allclose(
        [row.fraction_low, row.fraction_high], [centre - half, centre + half], rtol=1e-6
    )


def test_means_are_over_connected_pairs_or_over_all():
    connected = stats.summarise(table(10, 5), ["L0"], ["n_beads"]).iloc[0]
    assert connected.n_beads == 2 and connected.n_pairs == 10
    every = stats.summarise(table(10, 5), ["L0"], ["n_beads"], over="all").iloc[0]
    assert every.n_beads == 4.5 and "fraction" not in every
    assert every.n_beads_low < 4.5 < every.n_beads_high
    skewed = table(9, 9, lambda i: 100.0 if i == 8 else 1.0)
    assert stats.summarise(skewed, ["L0"], ["n_beads"], "all", np.median).n_beads[0] == 1


def test_nothing_to_average_has_its_columns():
    expected = list(stats.summarise(table(6, 6), ["L0"], ["n_beads"]))
    for nothing in (table(6, 6)[:0], pd.DataFrame(columns=["L0", "connected", "n_beads"])):
        assert list(stats.summarise(nothing, ["L0"], ["n_beads"])) == expected
    assert np.isnan(stats.summarise(table(6, 0), ["L0"], ["n_beads"]).n_beads[0])
    assert list(stats.stacked([], ["a", "b"])) == ["a", "b"]
    assert stats.stacked([table(1, 1)] * 2, ["a"]).equals(pd.concat([table(1, 1)] * 2))


def test_no_interval_from_fewer_than_five_pairs():
    row = stats.summarise(table(4, 4), ["L0"], ["n_beads"]).iloc[0]
    assert row.n_beads == 1.5 and np.isnan(row.n_beads_low)
    with pytest.raises(ValueError, match="over is 'some'"):
        stats.summarise(table(4, 4), ["L0"], [], over="some")


@pytest.mark.parametrize("clustered", [False, True])
def test_an_exact_power_law_is_found(clustered):
    x = np.repeat([0.001, 0.01, 0.1], 20)
    pair = np.tile(np.arange(20), 3)
    fit = stats.exponent(x, 2 * x**-0.25, pair if clustered else None)
    np.testing.assert_allclose(list(fit.values()), -0.25, rtol=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    x = np.repeat([0.001, 0.01, 0.1], 40)
    for _ in range(60):
        fit = stats.exponent(x, x**-0.5 * rng.gamma(4, 0.25, len(x)), n_resamples=300)
        hits += fit["low"] <= -0.5 <= fit["high"]
    assert 50 <= hits <= 60


def test_one_threshold_has_no_exponent():
    assert np.isnan(stats.exponent(np.ones(5), np.ones(5))["exponent"])


def test_groups_without_a_logarithm_are_left_out_of_an_exponent():
    x, y = np.repeat([0.0, 0.01, 0.1, 1.0], 3), np.repeat([5.0, 100.0, 10.0, 0.0], 3)
    np.testing.assert_allclose(list(stats.exponent(x, y).values()), -1, rtol=1e-9)
    assert np.isnan(list(stats.exponent(x[:0], y[:0]).values())).all()
    assert np.isnan(list(stats.exponent(x, 0 * y).values())).all()


def test_reported_means_leave_out_pairs_that_failed_and_count_them():
    table = pd.DataFrame(
        {
            "L0": [0.1, 0.1, 0.1, 0.2],
            "connected": [True, True, False, True],
            "n_beads": [1, 3, 99, 5],
            "normalized_length": [1.0, 2.0, 9.0, 1.5],
        }
    )
    first, second = stats.reported(table).to_dict("records")
    assert (first["n_pairs"], first["n_connected"], second["n_pairs"]) == (3, 2, 1)
    assert (first["beads_mean"], first["beads_sem"]) == (2.0, 1.0)
    assert (first["length_mean"], first["length_sem"]) == (1.5, 0.5)
    assert second["beads_mean"] == 5 and np.isnan(second["beads_sem"])


def test_wilsons_interval_of_a_count():
    assert stats.wilson(15, 20) == pytest.approx((0.531299, 0.888138), abs=1e-6)
    assert stats.wilson(0, 7)[0] == 0 and stats.wilson(7, 7)[1] == 1
    assert np.isnan(stats.wilson(0, 0)).all()


def test_a_statement_holds_where_its_whole_interval_does():
    counts = pd.DataFrame({"k": [73, 72, 99, 80, 0], "n": [73, 72, 100, 100, 0]})
    said = stats.verdicts(counts, 0.95)
    expected = ["holds", "cannot be told", "cannot be told", "does not hold", "cannot be told"]
    assert said.verdict.tolist() == expected
    assert said.low[3] < 0.8 < said.high[3] and said.k.tolist() == counts.k.tolist()
    assert stats.verdicts(counts, 0.5).verdict.tolist() == ["holds"] * 4 + ["cannot be told"]
    assert list(stats.verdicts(counts[:0], 0.95)) == ["k", "n", "low", "high", "verdict"]


def cells_of(n_tasks, n_each, slope):
    """Inside a task y goes with x where the slope is 1; from task to task it always does."""
    task = np.repeat(np.arange(n_tasks), n_each)
    x = np.tile(np.arange(n_each), n_tasks) + 100 * task
    return x, 200 * task + slope * (x - 100 * task), task


@pytest.mark.parametrize("slope", [1, -1])
def test_rank_correlations_over_cells_and_inside_tasks(slope):
    found = stats.rank_correlation(*cells_of(6, 4, slope))
    assert (found["n_cells"], found["n_tasks"], found["n_within"]) == (24, 6, 6)
    assert found["within"] == pytest.approx(slope)
    if slope == 1:
        assert [found[name] for name in ("rho", "low", "high")] == pytest.approx([1, 1, 1])
    else:
        assert 0.9 < found["rho"] < 1 and 0 < found["low"] < found["high"] < 1


def test_a_rank_correlation_leaves_out_what_was_not_measured():
    x, y, task = cells_of(6, 4, 1)
    whole = stats.rank_correlation(x, y, task)
    more = [np.append(v, [v[0]] * 2) for v in (x.astype(float), y.astype(float), task)]
    more[0][-1], more[1][-2] = np.nan, np.inf
    assert stats.rank_correlation(*more) == whole


def test_too_little_has_no_rank_correlation():
    few = stats.rank_correlation(*cells_of(4, 3, 1))
    assert few["rho"] == pytest.approx(1) and np.isnan(few["low"]) and np.isnan(few["high"])
    pairs = stats.rank_correlation(*cells_of(6, 2, 1))
    assert np.isnan(pairs["within"]) and pairs["n_within"] == 0
    constant = stats.rank_correlation(np.ones(10), np.arange(10), np.repeat([0, 1], 5))
    assert np.isnan(constant["rho"]) and constant["n_within"] == 0
    nothing = stats.rank_correlation([], [], [])
    assert nothing["n_cells"] == 0 and np.isnan(nothing["rho"])


def test_tasks_are_drawn_and_not_cells():
    """Eight copies of every cell: they are still five tasks, with the interval of five."""
    rng = np.random.default_rng(1)
    x, y, task = rng.normal(size=15), rng.normal(size=15), np.repeat(np.arange(5), 3)
    once = stats.rank_correlation(x, y, task)
    again = stats.rank_correlation(*(np.repeat(v, 8) for v in (x, y, task)))
    for name in ("rho", "low", "high", "within"):
        assert again[name] == pytest.approx(once[name], abs=1e-9), name


def test_a_ratio_of_means_is_over_the_same_pairs():
    before = pd.Series([1.0, 2.0, 3.0, 4.0, 5.0, 70.0])
    found = stats.ratio_of_means(before, 3 * before[:5])
    assert found == pytest.approx({"n_pairs": 5, "ratio": 3.0, "low": 3.0, "high": 3.0})
    noisy = stats.ratio_of_means(before[:5], pd.Series([1.0, 9.0, 3.0, 1.0, 1.0]))
    assert noisy["ratio"] == 1 and noisy["low"] < 1 < noisy["high"]
    few = stats.ratio_of_means(before[:4], before[:4])
    assert few["ratio"] == 1 and np.isnan(few["low"])
    assert np.isnan(stats.ratio_of_means(0 * before, before)["ratio"])
    assert stats.ratio_of_means(before[:0], before)["n_pairs"] == 0
