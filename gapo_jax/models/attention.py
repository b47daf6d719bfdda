"""Masked softmax attention with grouped key/value heads."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gapo_jax.models.layers import RopeTables, soft_cap, wide

# Finite, so that a row of padding that may attend to nothing gives numbers and not NaN.
MASKED = -1e30


class AttentionInputs(NamedTuple):
    """What a decoder layer's attention needs beside its queries, keys and values.

    All layers of one kind, with or without a window, share it.

    Attributes:
        rope: cosines and sines of the positions; None with learned positions.
        biases: additive masks, float32: [B, T, T] over the row itself, or, when decoding with a
            cache, one over the prompt and one over the response. Empty where a kernel needs none.
        mask_BT: the real tokens (int32), for the kernels that make their own mask.
    """

    rope: RopeTables | None
    biases: tuple[jax.Array, ...]
    mask_BT: jax.Array | None = None


def causal_bias(mask_BS: jax.Array, window: int = 0) -> jax.Array:
    """Return the additive bias [B, T, S] of causal attention, float32, with T = S.

    It is 0 where query t sees slot s and -1e30 elsewhere. A slot is seen if its `mask_BS` (int32,
    1 = real token) is set, it is not ahead of the query and, with a `window`, it is one of the
    `window` slots that end with the query's own.
    """
    slots = jnp.arange(mask_BS.shape[1])
    back_TS = slots[:, None] - slots[None, :]
    near_TS = (back_TS >= 0) & (back_TS < window) if window else back_TS >= 0
    visible_BTS = (mask_BS[:, None, :] > 0) & near_TS
    return jnp.where(visible_BTS, 0.0, MASKED).astype(jnp.float32)


def padding_bias(mask_BS: jax.Array) -> jax.Array:
    """Return the additive bias [B, 1, S], float32, with which every query sees all real tokens."""
    return jnp.where(mask_BS[:, None, :] > 0, 0.0, MASKED).astype(jnp.float32)


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    bias_BTS: jax.Array,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """Compute scaled dot-product attention (arXiv 1706.03762, Eq. 1), grouped (2305.13245).

    Query head n reads key/value head n // (N / K). Scores are multiplied by `scale` (H ** -0.5 if
    None) and, unless `softcap` is 0, bounded by `layers.soft_cap` before the bias is added. The
    softmax is in float32 (`layers.wide`). Returns [B, T, N, H] in the dtype of the queries.

    Raises:
        ValueError: K does not divide N.
    """
    weights_BKGTS = attention_weights(q_BTNH, k_BSKH, bias_BTS, scale=scale, softcap=softcap)
    return apply_weights(weights_BKGTS, v_BSKH)


def attention_weights(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    bias_BTS: jax.Array,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
) -> jax.Array:
    """Return the softmax weights [B, K, G, T, S] of `attend`, in the dtype of the queries."""
    batch, length, num_heads, head_dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    if num_heads % kv_heads:
        raise ValueError(f"num_kv_heads must divide num_heads, got {kv_heads} and {num_heads}")
    group = num_heads // kv_heads
    q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, group, head_dim)
    q_BTKGH = q_BTKGH * (head_dim**-0.5 if scale is None else scale)
    # One matrix per key/value head, with the queries of its group as rows. XLA would transpose the
    # operands of a product over five axes, which takes a fifth of a layer's time on a CPU.
    q_BKMH = jnp.transpose(q_BTKGH, (0, 2, 3, 1, 4)).reshape(batch, kv_heads, -1, head_dim)
    sum_type = wide(q_BTNH.dtype)
    scores_BKMS = jnp.einsum("bkmh,bskh->bkms", q_BKMH, k_BSKH, preferred_element_type=sum_type)
    scores_BKGTS = scores_BKMS.reshape(batch, kv_heads, group, length, -1)
    scores_BKGTS = soft_cap(scores_BKGTS, softcap) + bias_BTS[:, None, None]
    return jax.nn.softmax(scores_BKGTS, axis=-1).astype(q_BTNH.dtype)


def apply_weights(weights_BKGTS: jax.Array, v_BSKH: jax.Array) -> jax.Array:
    """Average the values under `attention_weights`; returns [B, T, N, H]."""
    batch, kv_heads, group, length, slots = weights_BKGTS.shape
    weights_BKMS = weights_BKGTS.reshape(batch, kv_heads, group * length, slots)
    out_BKMH = jnp.einsum("bkms,bskh->bkmh", weights_BKMS, v_BSKH)
    out_BNTH = out_BKMH.reshape(batch, kv_heads * group, length, -1)
    return jnp.transpose(out_BNTH, (0, 2, 1, 3))
