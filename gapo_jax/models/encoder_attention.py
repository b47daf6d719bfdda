"""Attention of the encoders: sliding windows in blocks, a global first token, disentangled.

Plain functions of projected heads. They apply dropout to attention weights as
`drop(weights, index)` (see `make_drop`); calls with different indices drop different weights.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax import rng
from gapo_jax.models.attention import MASKED, apply_weights, attention_weights, padding_bias
from gapo_jax.models.layers import wide
from gapo_jax.rng import Stream

Drop = Callable[[jax.Array, jax.Array | int], jax.Array]

# Up to this length, in blocks, one matrix is cheaper: a block reads three blocks of keys anyway.
_DENSE_BLOCKS = 3
# The most queries, in blocks, that layers without a window take at a time.
_CHUNK_BLOCKS = 8


def make_drop(rate: float, key: jax.Array | None, name: Stream) -> Drop:
    """Return inverted dropout at `rate`, as a function of an array and an index.

    What is dropped depends on `key`, `name` and the index. Without a key the function returns its
    array unchanged.
    """

    def drop(weights: jax.Array, index: jax.Array | int) -> jax.Array:
        if key is None:
            return weights
        kept = jax.random.bernoulli(rng.key(key, name, index), 1.0 - rate, weights.shape)
        return jnp.where(kept, weights / (1.0 - rate), 0.0).astype(weights.dtype)

    return drop


def biased_attention(
    q_BTNH: jax.Array, k_BSNH: jax.Array, v_BSNH: jax.Array, bias_BTS: jax.Array, drop: Drop
) -> jax.Array:
    """Attend under an additive bias, with dropout (`attention.attend`); returns [B, T, N, H]."""
    weights_BKGTS = attention_weights(q_BTNH, k_BSNH, bias_BTS)
    return apply_weights(drop(weights_BKGTS, 0), v_BSNH)


def windowed_attention(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    mask_BT: jax.Array,
    window: jax.Array,
    windows: tuple[int, ...],
    drop: Drop,
    first_BT: jax.Array | None = None,
) -> jax.Array:
    """Compute the self-attention of one layer among layers with different windows.

    Memory is linear in T. Layers with a window work in blocks of the largest one (Longformer, arXiv
    2004.05150, section 3); layers without take queries in chunks and recompute them in the backward
    pass.

    Args:
        q_BTNH, k_BTNH, v_BTNH: queries, keys and values.
        mask_BT: int32, 1 = real token; only real tokens are seen.
        window: how many places away, to either side, a token sees; 0 for everywhere. An int32
            scalar out of `windows`, which may be traced.
        windows: the windows of all layers.
        drop: dropout of the attention weights.
        first_BT: marks at most one token in each row (bool) that is seen from everywhere.
    """
    block = max(windows)
    length = q_BTNH.shape[1]
    if length <= _DENSE_BLOCKS * block:
        places = jnp.arange(length)
        near_TS = jnp.abs(places[:, None] - places[None, :]) <= window
        seen_BTS = ((window == 0) | near_TS)[None]
        if first_BT is not None:
            seen_BTS = seen_BTS | first_BT[:, None, :]
        bias_BTS = jnp.where(seen_BTS & (mask_BT[:, None, :] > 0), 0.0, MASKED)
        return biased_attention(q_BTNH, k_BTNH, v_BTNH, bias_BTS, drop)

    def local(q, k, v):
        return block_attention(q, k, v, mask_BT, window, block, drop, first_BT)

    def everywhere(q, k, v):
        return chunked_attention(q, k, v, padding_bias(mask_BT), _CHUNK_BLOCKS * block, drop)

    if min(windows) > 0:
        return local(q_BTNH, k_BTNH, v_BTNH)

    # Without the checkpoint each layer would keep what both branches need for the backward pass.
    @jax.checkpoint
    def chosen(q, k, v):
        return jax.lax.cond(window > 0, local, everywhere, q, k, v)

    return chosen(q_BTNH, k_BTNH, v_BTNH)


def block_attention(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    mask_BT: jax.Array,
    window: jax.Array | int,
    block: int,
    drop: Drop,
    first_BT: jax.Array | None = None,
) -> jax.Array:
    """Attend within a window, each block of queries to its own block and the two next to it.

    `window` is at most `block`; the other arguments are as in `windowed_attention`. Returns
    [B, T, N, H].
    """
    batch, length, num_heads, head_dim = q_BTNH.shape
    count = -(-length // block)
    local_BT = mask_BT > 0
    if first_BT is not None:
        local_BT = local_BT & ~first_BT  # the first token has its own slot
    q_BMCNH = _pad_tokens(q_BTNH, 0, count * block - length).reshape(
        batch, count, block, num_heads, head_dim
    )
    k_BMSNH, v_BMSNH = (_with_neighbours(x, count, block) for x in (k_BTNH, v_BTNH))
    places_S = jnp.arange(3 * block) - block
    near_CS = jnp.abs(places_S[None, :] - jnp.arange(block)[:, None]) <= window
    seen_BMCS = near_CS & _with_neighbours(local_BT, count, block)[:, :, None, :]
    if first_BT is not None:
        k_BMSNH, v_BMSNH = (
            jnp.concatenate([_first_slot(x, first_BT, count), slots], axis=2)
            for x, slots in ((k_BTNH, k_BMSNH), (v_BTNH, v_BMSNH))
        )
        exists_B111 = first_BT.any(axis=1)[:, None, None, None]
        exists_BMC1 = jnp.broadcast_to(exists_B111, (*seen_BMCS.shape[:3], 1))
        seen_BMCS = jnp.concatenate([exists_BMC1, seen_BMCS], axis=3)
    scores_BMNCS = jnp.einsum(
        "bmcnh,bmsnh->bmncs",
        q_BMCNH * head_dim**-0.5,
        k_BMSNH,
        preferred_element_type=wide(q_BTNH.dtype),
    )
    bias_BMCS = jnp.where(seen_BMCS, 0.0, MASKED)
    weights_BMNCS = jax.nn.softmax(scores_BMNCS + bias_BMCS[:, :, None], axis=-1)
    weights_BMNCS = drop(weights_BMNCS.astype(q_BTNH.dtype), 0)
    out_BMCNH = jnp.einsum("bmncs,bmsnh->bmcnh", weights_BMNCS, v_BMSNH)
    return out_BMCNH.reshape(batch, count * block, num_heads, head_dim)[:, :length]


def _pad_tokens(x_BT: jax.Array, before: int, after: int) -> jax.Array:
    """Pad the token axis (1) of any array with zeros."""
    return jnp.pad(x_BT, ((0, 0), (before, after)) + ((0, 0),) * (x_BT.ndim - 2))


def _with_neighbours(x_BT: jax.Array, count: int, block: int) -> jax.Array:
    """Cut tokens [B, T, ...] into blocks, each with the block before and after: [B, M, 3C, ...]."""
    padded = _pad_tokens(x_BT, block, (count + 1) * block - x_BT.shape[1])
    blocks = padded.reshape(x_BT.shape[0], count + 2, block, *x_BT.shape[2:])
    return jnp.concatenate([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], axis=2)


def _first_slot(x_BTNH: jax.Array, first_BT: jax.Array, count: int) -> jax.Array:
    """Repeat the marked token's vectors for every block: [B, M, 1, N, H]."""
    first_B1NH = take_first(x_BTNH, first_BT)
    return jnp.broadcast_to(first_B1NH[:, None], (x_BTNH.shape[0], count, *first_B1NH.shape[1:]))


def take_first(x_BT: jax.Array, first_BT: jax.Array) -> jax.Array:
    """Take the token that `first_BT` marks, or the first column if none is marked: [B, 1, ...]."""
    index_B = jnp.argmax(first_BT, axis=1)
    return jnp.take_along_axis(x_BT, index_B.reshape(-1, *(1,) * (x_BT.ndim - 1)), axis=1)


def first_tokens(mask_BT: jax.Array) -> jax.Array:
    """Mark the first real token of each row, boolean [B, T]."""
    return (mask_BT > 0) & (jnp.cumsum(mask_BT, axis=1) == 1)


def chunked_attention(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    bias_B1T: jax.Array,
    chunk: int,
    drop: Drop,
) -> jax.Array:
    """Attend to all tokens with up to `chunk` queries at a time, so that no array is [T, T]."""
    batch, length, num_heads, head_dim = q_BTNH.shape
    count = -(-length // chunk)
    if count == 1:
        return biased_attention(q_BTNH, k_BTNH, v_BTNH, bias_B1T, drop)
    chunk = -(-length // count)
    padded = _pad_tokens(q_BTNH, 0, count * chunk - length)
    q_MBCNH = padded.reshape(batch, count, chunk, num_heads, head_dim).swapaxes(0, 1)

    @jax.checkpoint
    def attend_chunk(item):
        index, q_BCNH = item
        return biased_attention(
            q_BCNH, k_BTNH, v_BTNH, bias_B1T, lambda weights, _: drop(weights, index)
        )

    out_MBCNH = jax.lax.map(attend_chunk, (jnp.arange(count), q_MBCNH))
    out_BTNH = out_MBCNH.swapaxes(0, 1).reshape(batch, count * chunk, num_heads, head_dim)
    return out_BTNH[:, :length]


def log_buckets(distances: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Return DeBERTa's bucket of each signed distance, int32.

    Buckets are exact up to `buckets` / 2 and log-spaced beyond; `max_distance` falls into the last
    one, `buckets` - 1 (arXiv 2006.03654, appendix A.5, and the v2 release). Computed in float32, as
    in the code that trained the checkpoints.
    """
    middle = buckets // 2
    absolute = np.maximum(np.abs(distances), 1).astype(np.float32)
    scale = np.log(np.float32((max_distance - 1) / middle))
    log_places = np.ceil(np.log(absolute / np.float32(middle)) / scale * np.float32(middle - 1))
    far = (log_places + middle) * np.sign(distances)
    return np.where(np.abs(distances) <= middle, distances, far).astype(np.int32)


def disentangled_attention(
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    relative_q_RNH: jax.Array,
    relative_k_RNH: jax.Array,
    bias_B1T: jax.Array,
    max_distance: int,
    drop: Drop,
) -> jax.Array:
    """Attend by content and relative position separately (DeBERTa, arXiv 2006.03654, Eq. 4).

    The score of query i and key j is the sum of content to content, content to position (with the
    bucket of i - j as key) and position to content (with the same bucket as query), divided by
    sqrt(3 H). `relative_q_RNH` and `relative_k_RNH` are the projected embeddings of the
    2 x `buckets` relative positions, bucket 0 in the middle. Returns [B, T, N, H].
    """
    length, head_dim = q_BTNH.shape[1], q_BTNH.shape[3]
    span = relative_k_RNH.shape[0] // 2
    # One row per distance i - j, ascending from -(T - 1). Each matrix of scores is then a product
    # with 2 T - 1 rows, skewed, and needs no gather over [T, T].
    distances = np.arange(-(length - 1), length)
    rows = np.clip(log_buckets(distances, span, max_distance) + span, 0, 2 * span - 1)
    scale = (3 * head_dim) ** -0.5
    q_BTNH, k_scaled_BTNH = q_BTNH * scale, k_BTNH * scale

    def scores(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(equation, left, right, preferred_element_type=wide(q_BTNH.dtype))

    content_BNTS = scores("btnh,bsnh->bnts", q_BTNH, k_BTNH)
    to_position_BNTS = _skew(scores("btnh,rnh->bntr", q_BTNH, relative_k_RNH[rows[::-1]]))
    from_position_BNST = _skew(scores("bsnh,rnh->bnsr", k_scaled_BTNH, relative_q_RNH[rows]))
    scores_BNTS = content_BNTS + to_position_BNTS + from_position_BNST.swapaxes(2, 3)
    weights_BNTS = jax.nn.softmax(scores_BNTS + bias_B1T[:, None], axis=-1)
    return apply_weights(drop(weights_BNTS.astype(q_BTNH.dtype), 0)[:, :, None], v_BTNH)


def _skew(x_BNTR: jax.Array) -> jax.Array:
    """Return y[..., i, j] = x[..., i, T - 1 - i + j] for x [B, N, T, 2 T - 1].

    One pad and one reshape: Transformer-XL's shift (arXiv 1901.02860, appendix B).
    """
    batch, heads, length, width = x_BNTR.shape
    padded = jnp.pad(x_BNTR, ((0, 0), (0, 0), (0, 0), (1, 0)))
    flat = padded.reshape(batch, heads, length * (width + 1))[:, :, length:]
    return flat.reshape(batch, heads, length, width)[..., :length]
