"""The matrices of a decoder in int8: what is rounded, and what is computed from it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.models import Decoder, DecoderConfig, generation
from gapo_jax.rollout.sampler import make_sampler

CONFIG = DecoderConfig(
    vocab_size=300, num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48,
    max_positions=32, attn_bias="qkv",
)  # fmt: skip


@functools.cache
def weights():
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(Decoder(CONFIG).init)(jax.random.key(0), tokens, tokens)["params"]
    return jax.tree.map(lambda x: np.asarray(x * 4 if x.ndim > 1 else x + 0.1), params)


def restored(params):
    """Return int8 parameters as plain ones, in numpy: a whole number times its column's scale."""

    def plain(group):
        if "scale" not in group or "kernel" not in group:
            return group
        rest = {name: leaf for name, leaf in group.items() if name not in ("kernel", "scale")}
        kernel = np.asarray(group["kernel"], np.float32) * np.asarray(group["scale"])[:, None]
        return {"kernel": kernel, **rest}

    layers = {
        name: {key: plain(value) for key, value in part.items()}
        if name in ("attn", "mlp")
        else part
        for name, part in params["layers"].items()
    }
    return {**params, "layers": layers}


def test_columns_are_rounded_to_127_steps_and_the_rest_is_kept() -> None:
    params = generation.quantised(weights())
    for group, name in (("attn", "q"), ("attn", "o"), ("mlp", "gate"), ("mlp", "down")):
        kernel, entry = weights()["layers"][group][name]["kernel"], params["layers"][group][name]
        largest = np.abs(kernel).max(axis=1)
        assert entry["kernel"].dtype == jnp.int8
        np.testing.assert_allclose(entry["scale"], largest / 127, rtol=1e-6)
        assert np.abs(entry["kernel"]).max(axis=1).min() == 127
        back = restored(params)["layers"][group][name]["kernel"]
        assert (np.abs(back - kernel) <= largest[:, None] / 127 * 0.501).all()
    assert params["layers"]["attn"]["q"]["bias"] is weights()["layers"]["attn"]["q"]["bias"]
    assert params["embed"] is weights()["embed"]


def test_a_column_of_zeros_stays_zero() -> None:
    params = jax.tree.map(np.copy, weights())
    params["layers"]["mlp"]["up"]["kernel"][0, :, 3] = 0
    entry = generation.quantised(params)["layers"]["mlp"]["up"]
    assert entry["scale"][0, 3] == 1 and not np.any(entry["kernel"][0, :, 3])


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.15)])
def test_sampling_gives_the_log_probs_of_the_rounded_matrices(dtype: str, atol: float) -> None:
    """Prefill and decoding, against the training forward on what the whole numbers stand for."""
    config = dataclasses.replace(CONFIG, dtype=dtype)
    params = generation.quantised(weights())
    sample = make_sampler(Decoder(config), max_new_tokens=5, eos_ids=(), pad_id=0)
    tokens = jax.random.randint(jax.random.key(1), (4, 7), 1, 300)
    mask = (jnp.arange(7) >= jnp.arange(4)[:, None]).astype(jnp.int32)
    rollout = sample(params, tokens, mask, jax.random.split(jax.random.key(2), 4), 1.0)

    @jax.jit
    def logprobs(params, tokens_BT, mask_BT):
        logits_BTV = Decoder(config).apply({"params": params}, tokens_BT, mask_BT)
        chosen = jax.nn.log_softmax(logits_BTV[:, 6:-1])
        return jnp.take_along_axis(chosen, tokens_BT[:, 7:, None], axis=-1)[..., 0]

    inputs = rollout.tokens_BT, rollout.mask_BT
    expected = logprobs(restored(params), *inputs)
    np.testing.assert_allclose(rollout.logprobs_BR, expected, atol=atol)
    if dtype == "float32":
        assert np.abs(expected - logprobs(weights(), *inputs)).max() > 1e-3  # the rounding is seen
