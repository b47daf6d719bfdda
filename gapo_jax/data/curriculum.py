"""Order pairs from easy to hard, and say how many of them are in use.

This is the competence-based curriculum of Platanios et al. (arXiv 1903.09848) in its linear form:
batches are drawn evenly from the easiest share of the pairs, which grows from `start` to all. What
counts as hard is our choice: a rejected prompt that the response nearly satisfies
(`constraints.difficulty`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from gapo_jax import constraints
from gapo_jax.types import PreferentialPair


def cycles_of(pairs: Sequence[PreferentialPair]) -> np.ndarray:
    """Return the number of each pair's cycle, int64 [n]: pairs that share a prompt share it."""
    if not pairs:
        return np.zeros(0, np.int64)
    prompts: dict[str, int] = {}
    sides = [
        prompts.setdefault(text, len(prompts))
        for pair in pairs
        for text in (pair.prompt_accepted, pair.prompt_rejected)
    ]
    # A graph of pairs and, behind them, prompts; each pair has an edge to both of its prompts.
    edges = (np.repeat(np.arange(len(pairs)), 2), len(pairs) + np.array(sides))
    nodes = len(pairs) + len(prompts)
    graph = scipy.sparse.coo_array((np.ones(len(sides), bool), edges), shape=(nodes, nodes))
    _, labels_N = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return labels_N[: len(pairs)].astype(np.int64)


def easiest_first(pairs: Sequence[PreferentialPair]) -> list[PreferentialPair]:
    """Return the pairs sorted by the mean difficulty of their cycle, keeping each cycle together.

    Within a cycle every prompt is accepted as often as it is rejected (`data/preferential.py`), so
    no prompt gives the label away among the easiest pairs either.
    """
    cycles, hard = cycles_of(pairs), np.array([constraints.difficulty(pair) for pair in pairs])
    sums, counts = (np.bincount(cycles, weights=w) for w in (hard, None))
    mean = sums[cycles] / counts[cycles]
    return [pairs[i] for i in np.lexsort((cycles, mean))]


def in_use(count: int, done: float, *, share: float, start: float) -> int:
    """Return how many of `count` pairs, the easiest ones, batches are drawn from.

    Args:
        count: all pairs.
        done: share of the training that has been done, in [0, 1].
        share: share of the training after which all pairs are in use, in [0, 1]; 0 uses all from
            the start.
        start: share of the pairs that are in use at the start, in (0, 1].
    """
    if not share:
        return count
    return max(1, math.ceil(count * min(1.0, start + (1 - start) * done / share)))
