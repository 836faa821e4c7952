"""Intervals over pairs, and fitted exponents, for the tables behind the figures."""

import numpy as np
import pandas as pd


def summarise(table: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Fraction connected, and means over connected pairs, with 95 % intervals over pairs.

    Args:
        table: a row per pair (`String.summary`), with a bool column `connected`.
        by: columns that define a group.
        columns: numeric columns to average over the connected pairs of a group.

    Returns:
        A row per group: `n_pairs`, `n_connected`, `fraction` with Wilson's interval, and per
        column its mean with the bootstrap's percentile interval (9,999 resamples, seed 0; NaN with
        fewer than 2 pairs), as `<name>`, `<name>_low`, `<name>_high`.
    """
    from scipy import stats

    rows = []
    for key, group in table.groupby(by, sort=False):
        row = dict(zip(by, key, strict=True))
        n, k = len(group), int(group.connected.sum())
        wilson = stats.binomtest(k, n).proportion_ci(method="wilson")
        row |= {"n_pairs": n, "n_connected": k, "fraction": k / n}
        row |= {"fraction_low": wilson.low, "fraction_high": wilson.high}
        for column in columns:
            values = group.loc[group.connected, column].to_numpy(float)
            low, high = np.nan, np.nan
            if len(values) > 1 and np.ptp(values) == 0:
                low = high = values[0]
            elif len(values) > 1:
                found = stats.bootstrap((values,), np.mean, method="percentile", rng=0)
                low, high = found.confidence_interval
            mean = values.mean() if len(values) else np.nan
            row |= {column: mean, f"{column}_low": low, f"{column}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def exponent(
    x: np.ndarray, y: np.ndarray, n_resamples: int = 2_000, seed: int = 0
) -> tuple[float, float, float]:
    """Slope of log mean(y | x) against log x, with its 95 % bootstrap interval over pairs.

    Args:
        x: `(n,)` > 0, the threshold of each pair; pairs with one x form a group.
        y: `(n,)`, what was measured of each pair; the mean of a group must be > 0.
        n_resamples: bootstrap resamples, within groups.
        seed: of the resampling.

    Returns:
        (slope, low, high); NaN with fewer than two groups.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    groups = [y[x == value] for value in np.unique(x)]
    keep = [g.mean() > 0 for g in groups]
    log_x = np.log(np.unique(x)[keep])
    groups = [g for g, k in zip(groups, keep, strict=True) if k]
    if len(groups) < 2:
        return np.nan, np.nan, np.nan
    rng = np.random.default_rng(seed)
    means = np.stack([rng.choice(g, (n_resamples, len(g))).mean(axis=1) for g in groups])
    slopes = np.polyfit(log_x, np.log(np.maximum(means, 1e-9)), 1)[0]
    slope = np.polyfit(log_x, np.log([g.mean() for g in groups]), 1)[0]
    low, high = np.percentile(slopes, [2.5, 97.5])
    return float(slope), float(low), float(high)
