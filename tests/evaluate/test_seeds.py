"""The bootstrap over seeds and prompts: against a plain slow one, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from gapo_jax.evaluate import seeds


def _runs(rng, sizes, rate=0.5):
    """Runs whose prompts have 1 to 3 constraints, and seeds that differ."""
    runs = []
    for size in sizes:
        counted = rng.integers(1, 4, size=size)
        own = np.clip(rate + rng.normal(0, 0.1), 0.05, 0.95)
        runs.append(np.stack([rng.binomial(counted, own), counted], axis=1).astype(float))
    return runs


def _slow(first, second, rng, resamples):
    """Means of second - first of resamples, one drawn number after the other."""
    means = []
    for _ in range(resamples):
        rates = []
        for _ in first:
            run = int(rng.integers(len(first)))
            held, counted = np.zeros(2), np.zeros(2)
            for _ in range(len(first[run])):
                prompt = int(rng.integers(len(first[run])))
                for side, runs in enumerate((first, second)):
                    held[side] += runs[run][prompt, 0]
                    counted[side] += runs[run][prompt, 1]
            rates.append(held[1] / counted[1] - held[0] / counted[0])
        means.append(np.mean(rates))
    return np.array(means)


def test_it_draws_as_the_plain_slow_bootstrap_does():
    rng = np.random.default_rng(0)
    first, second = _runs(rng, (15, 20, 12)), _runs(rng, (15, 20, 12), 0.6)
    for a, b in zip(first, second, strict=True):
        b[:, 0] = np.minimum(b[:, 0], a[:, 1])
        b[:, 1] = a[:, 1]  # a prompt asks both sides for as much
    slow = _slow(first, second, rng, 3000)
    fast = seeds.resampled_means(
        [np.stack(pair, axis=1) for pair in zip(first, second, strict=True)], 1, 20000
    )
    fast = fast[1] - fast[0]
    assert fast.mean() == pytest.approx(slow.mean(), abs=4 * slow.std() / np.sqrt(3000))
    assert fast.std() == pytest.approx(slow.std(), rel=0.06)
    got = seeds.difference_interval(first, second, resamples=20000)
    low, high = np.percentile(slow, [2.5, 97.5])
    assert (got["low"], got["high"]) == pytest.approx((low, high), abs=0.02)
    rates = [b[:, 0].sum() / b[:, 1].sum() - a[:, 0].sum() / a[:, 1].sum()
             for a, b in zip(first, second, strict=True)]  # fmt: skip
    assert got["value"] == pytest.approx(np.mean(rates))


def test_the_variance_is_that_of_two_stages():
    # With one constraint a prompt and runs of equal size n, S of them: the variance of a resample
    # is (variance of the runs' means + mean variance within a run / n) / S.
    rng = np.random.default_rng(3)
    runs = [np.stack([rng.random(40) < p, np.ones(40)], axis=1).astype(float)
            for p in (0.2, 0.5, 0.6, 0.8)]  # fmt: skip
    means = np.array([run[:, 0].mean() for run in runs])
    within = np.mean([run[:, 0].var() / 40 for run in runs])
    draws = seeds.resampled_means([run[:, None] for run in runs], 0, 40000)[0]
    assert draws.var() == pytest.approx((means.var() + within) / 4, rel=0.03)
    assert draws.mean() == pytest.approx(means.mean(), abs=0.003)


def test_pairing_takes_out_what_both_sides_share():
    # Prompts differ much, the second side is better by one constraint in every prompt.
    rng = np.random.default_rng(4)
    first = [np.stack([rng.integers(0, 9, 50), np.full(50, 10)], axis=1).astype(float)] * 3
    second = [run + [1, 0] for run in first]
    got = seeds.difference_interval(first, second)
    assert got == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    wide = seeds.rate_interval(first)
    assert wide["high"] - wide["low"] > 0.05
    assert seeds.difference_interval(first, second, seed=1) == pytest.approx(got)


def test_a_single_seed_draws_its_prompts_alone_and_a_seed_repeats_its_draws():
    runs = _runs(np.random.default_rng(5), (60,))
    held, counted = runs[0].T
    got = seeds.rate_interval(runs, resamples=4000)
    # Delta method for a ratio of sums.
    rate = held.sum() / counted.sum()
    error = np.sqrt(np.sum((held - rate * counted) ** 2)) / counted.sum()
    assert got["value"] == pytest.approx(rate)
    assert got["high"] - got["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert seeds.rate_interval(runs, resamples=4000) == got


def test_sides_that_do_not_match_are_refused():
    runs = _runs(np.random.default_rng(6), (10, 10))
    with pytest.raises(ValueError, match="same seeds and prompts"):
        seeds.difference_interval(runs, runs[:1])
    with pytest.raises(ValueError, match="same seeds and prompts"):
        seeds.difference_interval(runs, [runs[0], runs[1][:9]])
