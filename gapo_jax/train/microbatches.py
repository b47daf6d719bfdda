"""Gradient accumulation: rows pass through a network part by part, the loss sees them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def in_parts(function: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """Apply a function of rows part by part and join the results, keeping one part's activations.

    The backward pass runs each part again and adds up the gradients. A loss of the joined result
    is therefore the loss of the whole batch, whatever it reduces over: gradient accumulation
    without the usual errors of unequal token counts or of statistics per part.

    A part takes every `parts`-th row, so that rows which are split over devices stay where they
    are: each device has some of every part.
    """
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), rows)
    joined = jax.lax.map(jax.checkpoint(function), split)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), joined)
