"""Intervals of rates over several runs: a bootstrap over seeds and, within each, over prompts.

Two runs of one method differ by their seed more than by their prompts, so an interval over the
prompts of one run says little about the method. Here whole runs are drawn with replacement, and
the prompts of each drawn run with replacement (a two-stage bootstrap; Davison and Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8). Differences are paired: both sides of a
seed are drawn together, prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gapo_jax import rng
from gapo_jax.evaluate.bootstrap import interval, rates
from gapo_jax.rng import Stream


def mean_rates(runs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over runs of the rates of each column, float64 [column].

    `runs` holds an array [prompt, column, 2] for each seed, the last axis (number that holds,
    number counted). A mean over runs and not over all prompts: each seed counts once.
    """
    return np.mean([rates(run.sum(axis=0)) for run in runs], axis=0)


def resampled_means(runs: Sequence[np.ndarray], seed: int, resamples: int) -> np.ndarray:
    """Return `mean_rates` of resamples of seeds and prompts, float64 [column, resample].

    The columns of a prompt are drawn together. With one seed the prompts alone are drawn.
    """
    generator = rng.stream(seed, Stream.RESAMPLES)
    columns = runs[0].shape[1]
    total_CR = np.zeros((columns, resamples))
    for _ in runs:  # as many runs in a resample as there are
        drawn_R = generator.integers(len(runs), size=resamples)
        for index, run in enumerate(runs):
            (places,) = np.nonzero(drawn_R == index)
            # A run that is drawn twice has its prompts drawn anew each time.
            picks_RU = generator.integers(len(run), size=(len(places), len(run)))
            sums_RC2 = run[picks_RU].sum(axis=1)
            total_CR[:, places] += rates(np.moveaxis(sums_RC2, 0, -1))
    return total_CR / len(runs)


def rate_interval(
    runs: Sequence[np.ndarray], seed: int = 0, resamples: int = 2000
) -> dict[str, float]:
    """Return {"value", "low", "high"}: the mean rate of runs with its 95% interval.

    Args:
        runs: an array [prompt, 2] for each seed, (number that holds, number counted).
        seed: of the resamples.
        resamples: how many.
    """
    columns = [run[:, None] for run in runs]
    return interval(mean_rates(columns)[0], resampled_means(columns, seed, resamples)[0])


def difference_interval(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, float]:
    """Return {"value", "low", "high"}: the mean of second - first, paired by seed and prompt.

    The arguments are as for `rate_interval`, with the same seeds and prompts on both sides.

    Raises:
        ValueError: the two sides do not have the same numbers of seeds and prompts.
    """
    shapes = [[run.shape for run in side] for side in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "paired difference: wanted the same seeds and prompts on both sides, got runs of "
            f"{[shape[0] for shape in shapes[0]]} and of {[shape[0] for shape in shapes[1]]} "
            "prompts; leave out what is on one side only"
        )
    columns = [np.stack(pair, axis=1) for pair in zip(first, second, strict=True)]
    means, draws = mean_rates(columns), resampled_means(columns, seed, resamples)
    return interval(means[1] - means[0], draws[1] - draws[0])
