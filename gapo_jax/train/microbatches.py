"""Gradient accumulation: rows pass through a network by microbatches, the loss sees them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax

Rows = TypeVar("Rows")
Result = TypeVar("Result")


def in_microbatches(function: Callable[[Rows], Result], rows: Rows, count: int) -> Result:
    """Apply a function of rows to `count` microbatches in turn and join the results, keeping the
    activations of one.

    The backward pass runs each microbatch again and adds up the gradients. A loss of the joined
    result is therefore the loss of the whole batch, whatever it reduces over: gradient accumulation
    without the usual errors of unequal token counts or of statistics per microbatch.

    A microbatch takes every `count`-th row, so that rows which are split over devices stay where
    they are: each device has some of every microbatch.
    """
    if count == 1:
        return function(rows)
    split = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), rows)
    joined = jax.lax.map(jax.checkpoint(function), split)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), joined)
