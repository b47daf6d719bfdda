"""Percentile bootstrap over units (prompts) by SciPy, for rates that are ratios of sums.

A unit holds all samples of one prompt: they are not independent, so they are drawn together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from gapo_jax import rng
from gapo_jax.rng import Stream

_BATCH = 200  # resamples drawn at a time, so that memory stays flat


def rates(totals: np.ndarray) -> np.ndarray:
    """Return shares of totals [metric, 2, ...] (number that holds, number counted); NaN for 0/0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[:, 0] / totals[:, 1]


def resampled_rates(sums: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Return the rates of resamples of the units, float64 [metric, resample].

    Args:
      sums: float64 [unit, metric, 2], the last axis (number that holds, number counted).
      seed: of the draws, which depend on nothing else and are the same for all metrics.
      resamples: how many, at least 2; a single unit has nothing to resample and gives one.
    """
    units, metrics, _ = sums.shape
    if units < 2:
        return rates(sums.sum(0)[..., None])
    flat = sums.reshape(units, -1)

    def totals(picks: np.ndarray, axis: int) -> np.ndarray:
        # As weights and a matrix product: gathering the picked sums takes `metrics` times as long.
        picks_SU = np.atleast_2d(picks)
        size = len(picks_SU)
        places = (picks_SU + units * np.arange(size)[:, None]).ravel()
        weights_SU = np.bincount(places, minlength=size * units).reshape(size, units)
        summed = (weights_SU.astype(np.float64) @ flat).T
        return summed if picks.ndim > 1 else summed[:, 0]

    drawn: Any = stats.bootstrap(
        (np.arange(units),),
        totals,
        n_resamples=max(resamples, 2),  # SciPy takes their standard deviation
        batch=_BATCH,
        vectorized=True,
        method="percentile",
        rng=rng.stream(seed, Stream.RESAMPLES),
    )
    return rates(drawn.bootstrap_distribution.reshape(metrics, 2, -1))


def as_metrics(intervals: Mapping[str, Mapping[str, float]], prefix: str) -> dict[str, float]:
    """Return named intervals as metrics: PREFIX + NAME, the same with _low and _high behind."""
    return {
        f"{prefix}{name}" + ("" if part == "value" else f"_{part}"): number
        for name, entry in intervals.items()
        for part, number in entry.items()
    }


def interval(value: float, draws: np.ndarray) -> dict[str, float]:
    """Return {"value", "low", "high"}: a value with the 95% percentile interval of its resamples.

    Resamples without a value are left out: a rare type may be absent from one.
    """
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (value, value)
    return {"value": float(value), "low": float(low), "high": float(high)}
