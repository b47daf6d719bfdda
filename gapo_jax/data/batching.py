"""Which rows make up which batch: a function of (seed, step) alone, so a resumed run is the same.

Nothing here keeps state; a run that continues at step n asks for batch n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the order of n rows in an epoch: int64 [n], a permutation drawn from (seed, epoch)."""
    if n < 1:
        raise ValueError("cannot order an empty dataset: got n = 0 rows")
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch_at(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """Return the rows of batch `step`: int64 [batch_size].

    Rows come without replacement within an epoch; a batch that reaches the end of an epoch goes
    on with the next one, so every batch is full and every row is seen equally often.
    """
    if batch_size < 1 or step < 0:
        raise ValueError(f"need batch_size >= 1 and step >= 0, got {batch_size} and {step}")
    start, parts = step * batch_size, []
    remaining = batch_size
    while remaining:
        epoch, offset = divmod(start, n) if n else (0, 0)
        part = epoch_order(seed, epoch, n)[offset : offset + remaining]
        parts.append(part)
        start += len(part)
        remaining -= len(part)
    return np.concatenate(parts)


def bucket(length: int, sizes: Sequence[int]) -> int:
    """Return the smallest of `sizes` that holds `length`; ValueError when none does."""
    fitting = [size for size in sizes if size >= length]
    if not fitting:
        raise ValueError(f"a length of {length} exceeds the largest bucket of {sorted(sizes)}")
    return min(fitting)


def length_sorted_batches(
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    seed: int | Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Group rows of like length: index arrays of `batch_size` (the last one may be shorter).

    Every row occurs once. Without a seed the batches go from short to long, ties in row order;
    with a seed ties are broken and the batches are ordered at random, for training.
    """
    if batch_size < 1:
        raise ValueError(f"need batch_size >= 1, got {batch_size}")
    lengths_B = np.asarray(lengths)
    if seed is None:
        order = np.argsort(lengths_B, kind="stable")
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths_B))
    order = shuffled[np.argsort(lengths_B[shuffled], kind="stable")]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
