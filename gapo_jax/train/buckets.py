"""Rows of like length in one batch, and no wider than they need (`length_buckets`).

Everywhere else a row is as wide as the longest prompt and the longest response together (types.py).
Its real tokens are neighbours, so a step can take the last `width` columns of rows that are moved
to the right: the networks read positions and what is visible from the mask, and the responses are
in the last columns as before, behind a part of the prompts that the response mask leaves out.
Results go back to the wide layout, so everything between two steps knows that one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax.data.batching import bucket, length_sorted_batches

# Multiples of this many tokens; beyond _LONG tokens of a lane's 128, which kernels pad to anyway.
_UNIT, _LONG, _LANE = 8, 1024, 128


class Frame(flax.struct.PyTreeNode):
    """The width [tokens] of a batch inside a step. It has no arrays: a step is compiled for it."""

    width: int = flax.struct.field(pytree_node=False)

    def tight(self, rows: Any, mask_BT: jax.Array) -> Any:
        """Return rows in the last `width` columns: arrays [B, T, ...] become [B, width, ...] and
        those of response positions [B, R, ...], R < T, [B, min(R, width - 1), ...]; others stay.

        `mask_BT` is that of the rows, of which none may have more than `width` tokens. What lies
        outside a row is 0, in its masks too.
        """
        total, last_B = mask_BT.shape[1], last_columns(mask_BT)

        def move(x_BN: jax.Array) -> jax.Array:
            if x_BN.ndim < 2:
                return x_BN
            whole = x_BN.shape[1] == total
            length = self.width if whole else min(x_BN.shape[1], self.width - 1)
            return _slide(x_BN, last_B + 1 - length - (total - x_BN.shape[1]), length)

        return jax.tree.map(move, rows)

    def wide(self, rows: Any, mask_BT: jax.Array, responses: int) -> Any:
        """Undo `tight` for results of R = `responses` positions: each number goes back to the
        column of its token, and 0 where the tight rows had none. `mask_BT` is the wide one."""
        total, last_B = mask_BT.shape[1], last_columns(mask_BT)

        def move(x_BN: jax.Array) -> jax.Array:
            length = total if x_BN.shape[1] == self.width else responses
            return _slide(x_BN, x_BN.shape[1] - last_B - 1 + (total - length), length)

        return jax.tree.map(move, rows)


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
    found = jnp.take_along_axis(x_BN, places, axis=1)
    return jnp.where(inside_BM.reshape(shape), found, jnp.zeros((), x_BN.dtype))


def widths(count: int, shortest: float, limit: int) -> tuple[int, ...]:
    """Return at most `count` widths up to `limit`, ascending, each by a like factor above the one
    before it and the first by that factor above `shortest`; () for one, which needs no frame.

    A batch of lengths that are spread evenly over their logarithm is then padded by like shares.
    """
    if count == 1:
        return ()
    unit = _UNIT if limit < _LONG else _LANE
    sizes = (limit * (min(shortest, limit) / limit) ** (k / count) for k in range(count))
    return tuple(sorted({min(limit, -(-round(size) // unit) * unit) for size in sizes}))


def frame_of(sizes: Sequence[int], lengths_B: np.ndarray) -> Frame | None:
    """Return the narrowest frame that holds rows of these lengths; None if there are no `sizes`."""
    return Frame(bucket(int(lengths_B.max()), sizes)) if sizes else None


def like_lengths(
    lengths_B: np.ndarray, size: int, group: int, seed: Sequence[int] | None
) -> Iterator[np.ndarray]:
    """Yield batches of `size` rows of like length, int64, `group` neighbours staying together (by
    the longest of them): from short to long, or with a seed in random order, ties too."""
    longest_A = lengths_B.reshape(-1, group).max(axis=1)
    for chosen_A in length_sorted_batches(longest_A, size // group, seed):
        yield (chosen_A[:, None] * group + np.arange(group)).reshape(-1)


def at_every_width(step: Any, sizes: Sequence[int]) -> Callable[..., Any]:
    """Return `step`, among whose inputs is a frame; its first call compiles it for all widths, so
    that no later one does."""
    left = list(sizes)

    def call(*inputs: Any) -> Any:
        while left:
            step.lower(*_framed(inputs, Frame(left.pop()))).compile()
        return step(*inputs)

    return call


def _framed(inputs: Any, frame: Frame) -> Any:
    def is_frame(node: Any) -> bool:
        return isinstance(node, Frame)

    return jax.tree.map(lambda x: frame if is_frame(x) else x, inputs, is_leaf=is_frame)
