"""Rows of like length in one batch, and no wider than they need (`length_buckets`).

Everywhere else a row is as wide as the longest prompt and the longest response together (types.py).
Its real tokens are neighbours, so a step can take the last `width` columns of rows that are moved
to the right: the networks read positions and what is visible from the mask, and the responses are
in the last columns as before, behind a part of the prompts that the response mask leaves out.
Results go back to the whole layout, so everything between two steps knows that one alone.

The caller of a step names the bucket of its batch (`Bucketed`). The rows are cut in the compiled
program, before the step that knows nothing of buckets: cut outside, they would be one more copy on
the device, and every width a second program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax.data.batching import bucket

Tree = TypeVar("Tree")


class Bucketed(flax.struct.PyTreeNode):
    """A batch whose rows a step shall see `width` columns wide; compiled for each width."""

    batch: Any
    width: int = flax.struct.field(pytree_node=False)


def in_bucket(batch: Any, lengths_B: np.ndarray, widths: Sequence[int]) -> Any:
    """Return a batch for the narrowest bucket that holds rows of these lengths; as it is where
    there are no `widths`."""
    return Bucketed(batch, bucket(int(lengths_B.max()), widths)) if len(widths) else batch


def take_rows(tree: Tree, rows: np.ndarray | slice) -> Tree:
    """Return the given rows of every leaf."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def cut_rows(rows: Tree, mask_BT: jax.Array, width: int) -> Tree:
    """Return rows in the last `width` columns: arrays [B, T, ...] become [B, width, ...] and those
    of response positions [B, R, ...], R < T, [B, min(R, width - 1), ...]; others stay.

    `mask_BT` is that of the rows, of which none may have more than `width` tokens. What lies
    outside a row is 0, in its masks too.
    """
    total, last_B = mask_BT.shape[1], last_columns(mask_BT)

    def move(x_BN: jax.Array) -> jax.Array:
        if x_BN.ndim < 2:
            return x_BN
        length = width if x_BN.shape[1] == total else min(x_BN.shape[1], width - 1)
        return _slide(x_BN, last_B + 1 - length - (total - x_BN.shape[1]), length)

    return jax.tree.map(move, rows)


def uncut_rows(results: Tree, mask_BT: jax.Array, width: int, responses: int) -> Tree:
    """Undo `cut_rows` for results of R = `responses` positions: each number goes back to the column
    of its token, and 0 where the cut rows had none. `mask_BT` is that of the whole rows."""
    total, last_B = mask_BT.shape[1], last_columns(mask_BT)

    def move(x_BN: jax.Array) -> jax.Array:
        length = total if x_BN.shape[1] == width else responses
        return _slide(x_BN, x_BN.shape[1] - last_B - 1 + (total - length), length)

    return jax.tree.map(move, results)


def last_columns(mask_BT: jax.Array) -> jax.Array:
    """Return the column of each row's last real token, int32 [B]."""
    behind_B = jnp.argmax(jnp.flip(mask_BT, axis=1) != 0, axis=1)
    return (mask_BT.shape[1] - 1 - behind_B).astype(jnp.int32)


def _slide(x_BN: jax.Array, left_B: jax.Array, length: int) -> jax.Array:
    """Return [B, length, ...], whose column c is column c + left_B[b] of row b; 0 outside it."""
    columns_BM = jnp.arange(length) + left_B[:, None]
    inside_BM = (columns_BM >= 0) & (columns_BM < x_BN.shape[1])
    shape = (*columns_BM.shape, *[1] * (x_BN.ndim - 2))
    places = jnp.clip(columns_BM, 0, x_BN.shape[1] - 1).reshape(shape)
    moved = jnp.take_along_axis(x_BN, places, axis=1)
    return jnp.where(inside_BM.reshape(shape), moved, jnp.zeros((), x_BN.dtype))


def accept_buckets(
    step: Callable[..., Any],
    cut: Callable[[Any, int], Any],
    restore: Callable[[Any, Any, int], Any] | None = None,
) -> Callable[..., Any]:
    """Return `step(state, batch, ...)` that also takes a `Bucketed` batch, to be compiled.

    Args:
        step: a step that knows nothing of buckets.
        cut: makes a batch as wide as told.
        restore: gives the result for a cut batch the layout of the whole batch, which it is told.
    """

    def cut_first(state: Any, batch: Any, *others: Any) -> Any:
        if not isinstance(batch, Bucketed):
            return step(state, batch, *others)
        result = step(state, cut(batch.batch, batch.width), *others)
        return restore(result, batch.batch, batch.width) if restore else result

    cut_first.__name__ = getattr(getattr(step, "func", step), "__name__", "step")
    return cut_first


def compile_all_widths(step: Any, widths: Sequence[int]) -> Callable[..., Any]:
    """Return the compiled `step(state, batch, ...)`; its first call with a `Bucketed` batch
    compiles it for all `widths`, so that no later one does."""
    left = list(widths)

    def call(state: Any, batch: Any, *others: Any) -> Any:
        while left and isinstance(batch, Bucketed):
            step.lower(state, batch.replace(width=left.pop()), *others).compile()
        return step(state, batch, *others)

    return call
