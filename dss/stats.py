"""Intervals over pairs, and fitted exponents, for the tables behind the figures.

Every table has its columns whatever there was to measure: without pairs it has no rows, and what
cannot be known of too few is NaN.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd


def stacked(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Tables one below the other, as `pandas.concat`; without any, a table with no rows.

    Args:
        tables: any number of them.
        columns: of the table, where there is none to take them from.
    """
    return pd.concat(tables) if len(tables) else pd.DataFrame(columns=list(columns))


def summarise(
    table: pd.DataFrame,
    by: list[str],
    columns: list[str],
    over: str = "connected",
    statistic: Callable = np.mean,
) -> pd.DataFrame:
    """Fraction connected, and means over pairs, with 95 % intervals over pairs.

    Args:
        table: a row per pair (`String.summary`); with `over="connected"` a bool column `connected`.
        by: columns that define a group.
        columns: numeric columns to average over the pairs of a group.
        over: `"connected"` for the pairs that connected, `"all"` for all (and no fraction).
        statistic: `np.mean` or `np.median`.

    Returns:
        A row per group: `n_pairs`; `n_connected`, `fraction` with Wilson's interval; and per
        column its mean with the bootstrap's percentile interval (9,999 resamples, seed 0; NaN with
        fewer than 5 pairs, where it would be much too narrow), as `<name>`, `<name>_low`,
        `<name>_high`.

    Raises:
        ValueError: `over` is something else.
    """
    if over not in ("connected", "all"):
        raise ValueError(f"over is {over!r}; 'connected' and 'all' are known")
    from scipy import stats

    names = [*by, "n_pairs"]
    if over == "connected":
        names += ["n_connected", "fraction", "fraction_low", "fraction_high"]
    for column in columns:
        names += [column, f"{column}_low", f"{column}_high"]
    rows = []
    for key, group in table.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True))
        row["n_pairs"] = n = len(group)
        if over == "connected":
            connected = group.connected.astype(bool)
            k = int(connected.sum())
            low, high = wilson(k, n)
            row |= {"n_connected": k, "fraction": k / n}
            row |= {"fraction_low": low, "fraction_high": high}
            group = group[connected]
        for column in columns:
            values = group[column].dropna().to_numpy(float)
            low = high = np.nan
            if len(values) >= 5 and np.ptp(values) == 0:
                low = high = values[0]
            elif len(values) >= 5:
                resampled = stats.bootstrap((values,), statistic, method="percentile", rng=0)
                low, high = resampled.confidence_interval
            mean = statistic(values) if len(values) else np.nan
            row |= {column: mean, f"{column}_low": low, f"{column}_high": high}
        rows.append(row)
    return pd.DataFrame(rows, columns=names)


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a fraction of which k in n were counted; NaN where n is 0."""
    from scipy import stats

    if n == 0:
        return np.nan, np.nan
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return interval.low, interval.high


def verdicts(counts: pd.DataFrame, share: float) -> pd.DataFrame:
    """Whether each of some statements holds of a share of all cases, as far as counts tell.

    Args:
        counts: a row for each statement, with `k` of `n` cases in which it holds.
        share: of cases in which it is to hold.

    Returns:
        The same with Wilson's 95 % interval as `low`, `high`, and with `verdict`: `"holds"` where
        the interval lies at or above the share, `"does not hold"` where it lies below, else
        `"cannot be told"`.
    """
    ends = [wilson(int(k), int(n)) for k, n in zip(counts.k, counts.n, strict=True)]
    low, high = np.reshape(ends, (-1, 2)).T
    said = np.select([low >= share, high < share], ["holds", "does not hold"], "cannot be told")
    return counts.assign(low=low, high=high, verdict=said)


def reported(table: pd.DataFrame) -> pd.DataFrame:
    """Means over connected pairs with their standard errors, as the authors' scripts report them.

    Args:
        table: a row per pair (`String.summary`).

    Returns:
        A row per threshold: `L0`, `n_pairs`, `n_connected`, `beads_mean`, `beads_sem`,
        `length_mean`, `length_sem`; beads are `n_beads`, where the scripts count both ends too.
    """
    pairs = {"n_pairs": ("connected", "size"), "n_connected": ("connected", "sum")}
    means = {
        f"{name}_{statistic}": (column, statistic)
        for name, column in (("beads", "n_beads"), ("length", "normalized_length"))
        for statistic in ("mean", "sem")
    }
    of_connected = table[table.connected.astype(bool)].groupby("L0").agg(**means)
    return table.groupby("L0").agg(**pairs).join(of_connected).reset_index()


def of_sweep(
    table: pd.DataFrame, x: str, by: str, values: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a sweep that can be averaged, and which rows are of failed jobs.

    Args:
        table: as `dss.sweep` returns it, or any other with those columns; `error` may be missing.
        x: column of numbers.
        by: column that defines groups.
        values: columns of numbers.

    Returns:
        The rows of jobs that did not fail, `connected` as bool where it is there; and `x` and
        `failed` of every row.  Where all jobs failed the columns are there without rows.

    Raises:
        ValueError: a column is missing, is named twice or like a column of `summarise`, or holds
            what it must not.
    """
    taken = {"n_pairs", "n_connected", "fraction"} & {x, by, *values}
    if x == by or {x, by} & set(values) or taken:
        raise ValueError(
            f"x={x!r}, by={by!r} and values={list(values)} must be different columns, and none "
            "of n_pairs, n_connected, fraction, which are computed here"
        )
    failed = pd.Series(False, index=table.index)
    if "error" in table:
        failed = table.error.fillna("").astype(str) != ""
    rows = table[~failed].copy()
    missing = {x, by, *values} - set(table)
    if missing and (len(rows) or table.empty):
        raise ValueError(f"the table has no column {sorted(missing)}; it has {sorted(table)}")
    for name in sorted(missing):
        rows[name] = pd.Series(dtype=float)
    for name in (x, *values):
        try:
            rows[name] = pd.to_numeric(rows[name])
        except (ValueError, TypeError) as error:
            raise ValueError(f"column {name!r} must hold numbers: {error}") from error
    if "connected" in rows:
        words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        meant = rows.connected.map(lambda value: words.get(str(value).strip().lower()))
        if meant.isna().any():
            wrong = rows.connected[meant.isna()].iloc[0]
            raise ValueError(f"column 'connected' holds {wrong!r}; true and false are needed")
        rows["connected"] = meant.astype(bool)
    of_x = table[x] if x in table else np.nan
    return rows, pd.DataFrame({x: of_x, "failed": failed})


def exponent(
    x: pd.Series, y: pd.Series, cluster: pd.Series | None = None, n_resamples: int = 1_000
) -> dict[str, float]:
    """Slope of log mean(y | x) against log x, with its 95 % bootstrap interval over pairs.

    The interval speaks of the pairs that were drawn.  It says nothing of whether a power law fits:
    for that look at `steepest` and `flattest`.

    Args:
        x: `(n,)`, the threshold of each pair; pairs with one x form a group.
        y: `(n,)`, what was measured of each pair.  Groups whose x or mean y is not > 0 have no
            logarithm and are left out, as is what is not finite.
        cluster: `(n,)`, which rows are resampled together (one pair at several x); by default each
            row on its own, within its group.
        n_resamples: of the bootstrap, seed 0.

    Returns:
        `exponent`, `low`, `high`, and `steepest` and `flattest`, the extremes of the slopes between
        neighbouring x; NaN with fewer than two groups, and the interval with fewer than 5 clusters.
    """
    frame = pd.DataFrame({"x": np.asarray(x, float), "y": np.asarray(y, float)})
    frame["cluster"] = np.arange(len(frame)) if cluster is None else np.asarray(cluster)
    frame = frame[np.isfinite(frame[["x", "y"]]).all(axis=1)]
    frame = frame[(frame.x > 0) & (frame.groupby("x").y.transform("mean") > 0)]
    names = ("exponent", "low", "high", "steepest", "flattest")
    if frame.x.nunique() < 2:
        return dict.fromkeys(names, np.nan)
    # Sums and counts per cluster and x: a resample is a vector of how often each cluster is drawn.
    sums = frame.pivot_table(index="cluster", columns="x", values="y", aggfunc="sum").fillna(0)
    counts = frame.pivot_table(index="cluster", columns="x", values="y", aggfunc="count").fillna(0)
    log_x, rng, n = np.log(sums.columns.to_numpy()), np.random.default_rng(0), len(sums)

    def log_means(weights: np.ndarray) -> np.ndarray:
        total = np.maximum(weights @ counts.to_numpy(), 1e-9)
        return np.log(np.maximum(weights @ sums.to_numpy() / total, 1e-9))

    here = log_means(np.ones(n))
    if cluster is None:  # strata: as many of each x as there were
        draws = np.zeros((n_resamples, n))
        for value in sums.columns:
            rows = np.flatnonzero(counts[value].to_numpy())
            draws[:, rows] = rng.multinomial(len(rows), [1 / len(rows)] * len(rows), n_resamples)
    else:
        draws = rng.multinomial(n, [1 / n] * n, n_resamples)
    low, high = np.percentile(np.polyfit(log_x, log_means(draws).T, 1)[0], [2.5, 97.5])
    if n < 5:
        low = high = np.nan
    local = np.diff(here) / np.diff(log_x)
    values = np.polyfit(log_x, here, 1)[0], low, high, local.min(), local.max()
    return dict(zip(names, map(float, values), strict=True))


def rank_correlation(
    x: pd.Series, y: pd.Series, cluster: pd.Series, n_resamples: int = 1_000
) -> dict[str, float]:
    """Spearman's rank correlation over cells of several tasks, and within the tasks.

    Args:
        x: `(n,)`, one measure of each cell.
        y: `(n,)`, another one.  Cells where one of the two is not finite are left out.
        cluster: `(n,)`, the task of each cell; cells of one task are resampled together.
        n_resamples: of the bootstrap over tasks, seed 0.

    Returns:
        `n_cells`, `n_tasks`; `rho` with its 95 % interval `low`, `high` (NaN with fewer than 5
        tasks; a task that is drawn twice pulls it towards what holds inside tasks); and `within`,
        the mean of the correlations inside each of `n_within` tasks that have three cells or more.
        A correlation of what does not vary is NaN.
    """
    from scipy import stats

    frame = pd.DataFrame({"x": np.asarray(x, float), "y": np.asarray(y, float)})
    frame["cluster"] = np.asarray(cluster)
    frame = frame[np.isfinite(frame[["x", "y"]]).all(axis=1)]

    def rho(cells: np.ndarray) -> float:
        varies = len(cells) > 1 and (np.ptp(cells, axis=0) > 0).all()
        return float(stats.spearmanr(*cells.T).statistic) if varies else np.nan

    tasks = [group[["x", "y"]].to_numpy() for _, group in frame.groupby("cluster", sort=False)]
    rng, low, high = np.random.default_rng(0), np.nan, np.nan
    if len(tasks) >= 5:
        draws = rng.integers(len(tasks), size=(n_resamples, len(tasks)))
        resampled = [rho(np.concatenate([tasks[i] for i in draw])) for draw in draws]
        low, high = np.nanpercentile(resampled, [2.5, 97.5])
    inside = [value for task in tasks if len(task) >= 3 and np.isfinite(value := rho(task))]
    return {
        "n_cells": len(frame),
        "n_tasks": len(tasks),
        "rho": rho(frame[["x", "y"]].to_numpy()),
        "low": float(low),
        "high": float(high),
        "within": float(np.mean(inside)) if inside else np.nan,
        "n_within": len(inside),
    }


def ratio_of_means(before: pd.Series, after: pd.Series) -> dict[str, float]:
    """How many times as large a mean is after a change, with its 95 % interval over pairs.

    Args:
        before: of each pair, by its index.
        after: of the same pairs; a pair that lacks one of the two is left out.

    Returns:
        `n_pairs`, `ratio`, and the bootstrap's `low`, `high` (9,999 resamples, seed 0; NaN with
        fewer than 5 pairs).
    """
    from scipy import stats

    both = pd.concat([before, after], axis=1).dropna().to_numpy(float)
    row = {"n_pairs": len(both), "ratio": np.nan, "low": np.nan, "high": np.nan}
    if len(both) and both[:, 0].mean():
        row["ratio"] = float(both[:, 1].mean() / both[:, 0].mean())
    if len(both) >= 5 and np.isfinite(row["ratio"]):
        found = stats.bootstrap(
            (both[:, 0], both[:, 1]),
            lambda x, y, axis: y.mean(axis=axis) / x.mean(axis=axis),
            paired=True,
            method="percentile",
            rng=0,
        )
        row["low"], row["high"] = map(float, found.confidence_interval)
    return row
