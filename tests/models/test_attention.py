"""Attention against a plain loop over rows and heads, in numpy and float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.models.attention import attend, causal_bias, padding_bias


def reference(q_BTNH, k_BSKH, v_BSKH, visible_BTS, scale, softcap):
    """Softmax attention written out: one query of one head at a time, visible slots only."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH))
    group = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(q.shape[:3]):
        slots = np.flatnonzero(visible_BTS[b, t])
        scores = k[b, slots, n // group] @ q[b, t, n] * scale
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v[b, slots, n // group] / weights.sum()
    return out


@pytest.mark.parametrize(
    "kv_heads, causal, window, softcap",
    [
        (1, True, 0, 0.0),
        (2, True, 3, 0.0),
        (6, True, 0, 0.4),
        (2, True, 3, 0.4),
        (2, False, 0, 0.0),
    ],
)
def test_attend_matches_the_plain_loop(kv_heads, causal, window, softcap):
    keys = jax.random.split(jax.random.key(kv_heads), 3)
    q_BTNH = jax.random.normal(keys[0], (2, 7, 6, 4))
    k_BSKH = jax.random.normal(keys[1], (2, 7, kv_heads, 4))
    v_BSKH = jax.random.normal(keys[2], (2, 7, kv_heads, 4))
    mask_BS = np.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], np.int32)
    visible_BTS = np.broadcast_to(mask_BS[:, None] > 0, (2, 7, 7))
    if causal:
        visible_BTS = visible_BTS & np.tri(7, dtype=bool)
    if window:
        visible_BTS = visible_BTS & ~np.tri(7, k=-window, dtype=bool)
    bias = causal_bias(mask_BS, window) if causal else padding_bias(mask_BS)
    out_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, bias, scale=0.3, softcap=softcap)
    asks_BT = visible_BTS.any(axis=-1)
    visible_BTS = np.where(asks_BT[..., None], visible_BTS, True)
    expected_BTNH = reference(q_BTNH, k_BSKH, v_BSKH, visible_BTS, 0.3, softcap)
    assert jnp.isfinite(out_BTNH).all()
    np.testing.assert_allclose(out_BTNH[asks_BT], expected_BTNH[asks_BT], atol=1e-6)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads, got 4 and 6"):
        attend(
            jnp.ones((1, 2, 6, 4)),
            jnp.ones((1, 2, 4, 4)),
            jnp.ones((1, 2, 4, 4)),
            jnp.zeros((1, 1, 2)),
        )
