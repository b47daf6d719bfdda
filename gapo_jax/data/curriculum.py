"""From easy to hard: pairs in order of how near a miss their rejected prompt is, and how many of
them are in use.

Competence-based curriculum (Platanios et al., arXiv 1903.09848) in its linear form: at any time the
batches are drawn evenly from the easiest share of the pairs, which grows from `start` to all. What
is hard is the project's choice: a miss that is nearly a hit (`constraints.difficulty`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gapo_jax import constraints
from gapo_jax.types import PreferentialPair


def cycles_of(pairs: Sequence[PreferentialPair]) -> np.ndarray:
    """Return the cycle of each pair, int64 [n]: pairs that have a prompt in common share it."""
    parent = list(range(len(pairs)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    seen: dict[str, int] = {}
    for i, pair in enumerate(pairs):
        for prompt in (pair.prompt_accepted, pair.prompt_rejected):
            parent[root(i)] = root(seen.setdefault(prompt, i))
    return np.array([root(i) for i in range(len(pairs))], np.int64)


def easiest_first(pairs: Sequence[PreferentialPair]) -> list[PreferentialPair]:
    """Return the pairs by the mean difficulty of their cycle, those of one cycle together.

    Within a cycle every prompt is as often accepted as rejected, so no prompt gives the label away
    among the easiest either (`data/preferential.py`).
    """
    cycles, hard = cycles_of(pairs), np.array([constraints.difficulty(pair) for pair in pairs])
    sums, counts = (np.bincount(cycles, weights=w) for w in (hard, None))
    mean = sums[cycles] / counts[cycles]
    return [pairs[i] for i in np.lexsort((cycles, mean))]


def in_use(count: int, done: float, *, share: float, start: float) -> int:
    """Return how many of `count` pairs, the easiest, are drawn from at a moment of training.

    Args:
        done: the part of the training that lies behind, in [0, 1].
        share: the part of it over which pairs come in, in [0, 1]; 0 uses all from the beginning.
        start: the share of the pairs to begin with, in (0, 1].
    """
    if not share:
        return count
    return max(1, math.ceil(count * min(1.0, start + (1 - start) * done / share)))
