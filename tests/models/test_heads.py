"""Scalar heads and the discriminator's pooling."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.models import Discriminator, Encoder, EncoderConfig, ScalarHead


def apply(module, params, *args, method="__call__", **kwargs):
    """`module.apply`, compiled as a whole: many times faster to compile than op by op."""
    bound = functools.partial(module.apply, method=method, **kwargs)
    return jax.jit(bound)({"params": params}, *args)


CONFIG = EncoderConfig(
    vocab_size=50, num_layers=2, d_model=16, num_heads=2, d_ff=24, max_positions=32
)
TOKENS_BT = np.array([[2, 7, 9, 4, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0]], np.int32)
MASK_BT = (TOKENS_BT > 0).astype(np.int32)


def initialised(module):
    return jax.jit(module.init)(jax.random.key(0), TOKENS_BT, MASK_BT)["params"]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_logits_are_the_head_of_the_pooled_text(pooling):
    discriminator = Discriminator(CONFIG, pooling=pooling)
    params = initialised(discriminator)
    assert set(params) == {"encoder", "head"}
    hidden_BTD = apply(Encoder(CONFIG), params["encoder"], TOKENS_BT, MASK_BT)
    first, second = np.asarray(hidden_BTD[0]), np.asarray(hidden_BTD[1])
    means = np.stack([first[:5].mean(axis=0), second[:3].mean(axis=0)])
    pooled_BD = means if pooling == "mean" else np.stack([first[0], second[0]])
    out = params["head"]["out"]
    expected_B = (pooled_BD @ out["kernel"] + out["bias"])[:, 0]
    logits_B = apply(discriminator, params, TOKENS_BT, MASK_BT)
    assert logits_B.shape == (2,) and logits_B.dtype == jnp.float32
    assert np.abs(expected_B).max() > 1e-4
    np.testing.assert_allclose(logits_B, expected_B, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_does_not_count(pooling):
    discriminator = Discriminator(CONFIG, pooling=pooling)
    params = initialised(discriminator)
    logits_B = apply(discriminator, params, TOKENS_BT, MASK_BT)
    noisy_BT = np.where(MASK_BT > 0, TOKENS_BT, 13)
    np.testing.assert_array_equal(logits_B, apply(discriminator, params, noisy_BT, MASK_BT))
    longer = [np.pad(array_BT, ((0, 0), (0, 5))) for array_BT in (TOKENS_BT, MASK_BT)]
    np.testing.assert_allclose(logits_B, apply(discriminator, params, *longer), atol=1e-6)


def test_the_head_is_float32_on_half_precision_hidden_states():
    hidden_BTD = jax.random.normal(jax.random.key(1), (2, 3, 8)).astype(jnp.bfloat16)
    for hidden_dim in (None, 5):
        head = ScalarHead(hidden_dim)
        params = head.init(jax.random.key(0), hidden_BTD)["params"]
        x = np.asarray(hidden_BTD, np.float32)
        if hidden_dim:
            x = np.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
        expected_BT = (x @ params["out"]["kernel"] + params["out"]["bias"])[..., 0]
        value_BT = apply(head, params, hidden_BTD)
        assert value_BT.dtype == jnp.float32 and value_BT.shape == (2, 3)
        np.testing.assert_allclose(value_BT, expected_BT, atol=1e-6)


def test_unknown_pooling_names_the_choices():
    with pytest.raises(ValueError, match="mean.*cls.*got 'max'"):
        initialised(Discriminator(CONFIG, pooling="max"))
