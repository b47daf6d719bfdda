"""A tiny decoder with a clear best token, and prompts for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.models import Decoder, DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=300, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48,
    rope_theta=700.0, max_positions=64, eos_ids=(2,), pad_id=0, bos_id=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    decoder = Decoder(CONFIG)
    ones_BT = jnp.ones((1, 2), jnp.int32)
    params = jax.jit(decoder.init)(jax.random.key(3), ones_BT, ones_BT)["params"]
    # Ten times the usual spread: logits with a clear best token, so that ties decide nothing.
    return decoder, jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 1 else leaf, params)


@pytest.fixture(scope="module")
def prompts():
    """tokens and mask [4, 7] of 7, 4, 2 and 5 real tokens, padded on the left."""
    mask_BP = (np.arange(7) >= 7 - np.array([[7], [4], [2], [5]])).astype(np.int32)
    tokens_BP = np.random.default_rng(0).integers(3, 300, (4, 7)).astype(np.int32) * mask_BP
    return tokens_BP, mask_BP
