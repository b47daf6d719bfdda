"""Choose the rows of each batch, and the width that they are padded to.

Order is a function of a random stream and the step alone and nothing here keeps state: a run that
is resumed at step n asks for batch n. Widths are few, since each is compiled separately.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from gapo_jax.rng import Stream, stream

# Widths are multiples of this many tokens; beyond _LONG tokens of a lane's 128, which kernels pad
# to anyway.
_UNIT, _LONG, _LANE = 8, 1024, 128


# Of a million rows it takes longer than an update of a small network.
@functools.lru_cache(maxsize=4)
def _permutation(seed: int, name: Stream, counters: tuple[int, ...], n: int) -> np.ndarray:
    order = stream(seed, name, *counters).permutation(n)
    order.setflags(write=False)  # as many callers share it
    return order


def epoch_order(seed: int, name: Stream, *counters: int, n: int) -> np.ndarray:
    """Return the order of n rows in an epoch: int64 [n], a permutation drawn from one stream."""
    if n < 1:
        raise ValueError("cannot order an empty dataset: got n = 0 rows")
    return _permutation(seed, name, counters, n)


def batch_at(
    seed: int, name: Stream, *counters: int, step: int, n: int, batch_size: int
) -> np.ndarray:
    """Return the rows of batch `step`: int64 [batch_size].

    Rows come without replacement within an epoch; a batch that reaches the end of an epoch goes
    on with the next one, so every batch is full and every row is seen equally often. The order of
    an epoch is drawn from (seed, name, counters, n, epoch): where a curriculum changes n, the
    orders of few and of many rows are independent.
    """
    if batch_size < 1 or step < 0:
        raise ValueError(f"need batch_size >= 1 and step >= 0, got {batch_size} and {step}")
    start, parts = step * batch_size, []
    remaining = batch_size
    while remaining:
        epoch, offset = divmod(start, n) if n else (0, 0)
        part = epoch_order(seed, name, *counters, n, epoch, n=n)[offset : offset + remaining]
        parts.append(part)
        start += len(part)
        remaining -= len(part)
    return np.concatenate(parts)


def round_up(length: int, limit: int, unit: int = _UNIT) -> int:
    """Return `length` rounded up to a multiple of `unit`, at most `limit`."""
    return min(limit, -(-length // unit) * unit)


def bucket(length: int, widths: Sequence[int]) -> int:
    """Return the smallest of `widths` that holds `length`; ValueError when none does."""
    fitting = [width for width in widths if width >= length]
    if not fitting:
        raise ValueError(f"a length of {length} exceeds the largest bucket of {sorted(widths)}")
    return min(fitting)


def bucket_widths(count: int, shortest: float, limit: int) -> tuple[int, ...]:
    """Return at most `count` widths up to `limit`, ascending: a geometric series that starts one
    factor above `shortest`; () for one, where nothing is cut.

    Lengths that are spread evenly over their logarithm are then padded by equal shares.
    """
    if count == 1:
        return ()
    unit = _UNIT if limit < _LONG else _LANE
    sizes = (limit * (min(shortest, limit) / limit) ** (k / count) for k in range(count))
    return tuple(sorted({round_up(round(size), limit, unit) for size in sizes}))


def text_buckets(limit: int) -> tuple[int, ...]:
    """Return the widths for texts whose lengths are not known beforehand: three eighths, a half,
    two thirds and all of `limit`."""
    return tuple(sorted({max(8, -(-limit * part // 24)) for part in (9, 12, 16, 24)}))


def length_sorted_batches(
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    rng: np.random.Generator | None = None,
) -> list[np.ndarray]:
    """Group rows of similar length: index arrays of `batch_size` (the last one may be shorter).

    Every row occurs once. Without `rng` the batches go from short to long, ties in row order;
    with it ties are broken and the batches are ordered at random, for training.
    """
    if batch_size < 1:
        raise ValueError(f"need batch_size >= 1, got {batch_size}")
    lengths_B = np.asarray(lengths)
    if rng is None:
        order = np.argsort(lengths_B, kind="stable")
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    shuffled = rng.permutation(len(lengths_B))
    order = shuffled[np.argsort(lengths_B[shuffled], kind="stable")]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def like_lengths(
    lengths_B: np.ndarray, size: int, group: int, rng: np.random.Generator | None
) -> Iterator[np.ndarray]:
    """Yield batches of `size` rows as `length_sorted_batches` does, int64, keeping each `group` of
    neighbouring rows together (sorted by the longest of them)."""
    longest_A = lengths_B.reshape(-1, group).max(axis=1)
    for chosen_A in length_sorted_batches(longest_A, size // group, rng):
        yield (chosen_A[:, None] * group + np.arange(group)).reshape(-1)


def mixed_batches(
    kinds: Sequence[Hashable], lengths: Sequence[int], batch_size: int, rng: np.random.Generator
) -> list[int]:
    """Order rows so that each `batch_size` neighbours have similar lengths and the mix of kinds
    that all rows have; the batches come in a random order, one that is not full last.

    Each kind is spread over the batches as evenly as possible, its shortest rows into the first
    and its longest into the last.
    """
    members: dict[Hashable, list[int]] = {}
    for i in rng.permutation(len(kinds)).tolist():
        members.setdefault(kinds[i], []).append(i)
    place = np.zeros(len(kinds))
    for rows in members.values():
        rows.sort(key=lambda i: lengths[i])
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.argsort(place, kind="stable")
    full = len(kinds) // batch_size
    starts = [int(batch) * batch_size for batch in rng.permutation(full)] + [full * batch_size]
    return [int(i) for start in starts for i in order[start : start + batch_size]]
