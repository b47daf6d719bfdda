"""The log-probs of a row do not depend on the rows beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.models import Decoder, DecoderConfig
from gapo_jax.rollout.sampler import make_sampler

CONFIG = DecoderConfig(
    vocab_size=300, num_layers=3, d_model=48, num_heads=6, num_kv_heads=2, head_dim=8, d_ff=80,
    windows=(0, 6, 6),
)  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "atol"),
    # A bfloat16 has 8 bits; log-probs here reach -8.
    [("float32", 1e-5), ("bfloat16", 8 * 2**-8)],
)
def test_rows_in_batches_of_1_4_and_16(dtype, atol):
    """16 rows of other lengths, padded on the left as prompts are."""
    module = Decoder(DecoderConfig(**{**vars(CONFIG), "dtype": dtype}))
    tokens_BT = jax.random.randint(jax.random.key(1), (16, 20), 0, CONFIG.vocab_size)
    mask_BT = (jnp.arange(20) >= jnp.arange(16)[:, None] % 11).astype(jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), tokens_BT, mask_BT)["params"]
    params = jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, params)

    @jax.jit
    def logprobs(tokens_BT, mask_BT):
        logits_BTV = module.apply({"params": params}, tokens_BT, mask_BT)
        chosen_BT = jax.nn.log_softmax(logits_BTV[:, :-1])
        return jnp.take_along_axis(chosen_BT, tokens_BT[:, 1:, None], axis=-1)[..., 0]

    whole = np.asarray(logprobs(tokens_BT, mask_BT))
    real = np.asarray(mask_BT[:, :-1] > 0)
    assert whole[real].std() > 0.3 and whole[real].min() > -40
    for size in (1, 4):
        parts = [
            logprobs(tokens_BT[i : i + size], mask_BT[i : i + size]) for i in range(0, 16, size)
        ]
        got = np.concatenate(parts)
        np.testing.assert_allclose(got[real], whole[real], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("dtype", "atol"),
    # Sampler and training forward round in another order.
    [("float32", 1e-5), ("bfloat16", 16 * 2**-8)],
)
def test_sampled_rows_in_batches_of_1_4_and_16(dtype, atol):
    """What the sampler says of its tokens, from batches that are padded differently: the same
    tokens are what other batches of prompts, as wide as their longest, score in the training
    forward."""
    module = Decoder(DecoderConfig(**{**vars(CONFIG), "dtype": dtype}))
    lengths, width, new = 3 + np.arange(16) % 9, 14, 6
    tokens_BP = np.random.default_rng(2).integers(1, CONFIG.vocab_size, (16, width), np.int32)
    mask_BP = (np.arange(width) >= width - lengths[:, None]).astype(np.int32)
    one = jnp.ones((1, 4), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(0), one, one)["params"]
    params = jax.tree.map(lambda leaf: 4 * leaf if leaf.ndim > 1 else leaf, params)
    sample = make_sampler(module, max_new_tokens=new, eos_ids=(), pad_id=0)
    keys_B = jax.random.split(jax.random.key(3), 16)
    whole = sample(params, tokens_BP, mask_BP, keys_B, 1.0)
    assert np.asarray(whole.logprobs_BR).std() > 0.3

    @jax.jit
    def scored(tokens_BT, mask_BT):
        logits_BTV = module.apply({"params": params}, tokens_BT, mask_BT)[:, -new - 1 : -1]
        chosen_BR = jax.nn.log_softmax(logits_BTV)
        return jnp.take_along_axis(chosen_BR, tokens_BT[:, -new:, None], axis=-1)[..., 0]

    for size in (1, 4, 16):
        for start in range(0, 16, max(size, 4)):  # of the batches of 1 every fourth
            rows = slice(start, start + size)
            cut = width - lengths[rows].max()
            tokens_BT, mask_BT = whole.tokens_BT[rows, cut:], whole.mask_BT[rows, cut:]
            expected = np.asarray(whole.logprobs_BR)[rows]
            np.testing.assert_allclose(scored(tokens_BT, mask_BT), expected, rtol=0, atol=atol)
            if dtype == "float32" and start == 0:
                again = sample(
                    params, tokens_BP[rows, cut:], mask_BP[rows, cut:], keys_B[rows], 1.0
                )
                np.testing.assert_array_equal(again.tokens_BT[:, -new:], tokens_BT[:, -new:])
                np.testing.assert_allclose(again.logprobs_BR, expected, rtol=0, atol=atol)
