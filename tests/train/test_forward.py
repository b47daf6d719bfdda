"""Scoring against the plain full forward, and the critic's causality."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import Config
from gapo_jax.models import Decoder, DecoderConfig
from gapo_jax.sharding import ONE_DEVICE
from gapo_jax.train import forward
from gapo_jax.train.build import policy_spec
from gapo_jax.train.state import merge_trainable, split_trainable
from gapo_jax.types import Rollout

PROMPT, RESPONSE = 5, 4
CONFIG = DecoderConfig(
    vocab_size=31, num_layers=3, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24
)


# Alternating windows, soft caps, scaled embeddings: what a split into slices could lose.
GEMMA = dataclasses.replace(
    CONFIG,
    windows=(3, 0, 3),
    rope_local_theta=50.0,
    attn_softcap=2.0,
    final_softcap=1.0,
    scale_embeddings=True,
)


def _spec(critic="reference", first=1, temperature=0.7, config=CONFIG):
    return forward.PolicySpec(config, first, temperature, 3, critic, 8)


@functools.partial(jax.jit, static_argnums=0)
def _score(spec, base, trained, critic, rollout):
    networks = forward.PolicyNetworks(base, trained, critic)
    return forward.score_rollout(networks, rollout, spec=spec)


@functools.partial(jax.jit, static_argnums=0)
def _response_logprobs(spec, base, trained, rollout, frozen_hidden_BTD=None):
    return forward.response_logprobs(spec, base, trained, rollout, frozen_hidden_BTD)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens_BT, mask_BT):
    return Decoder(config).apply({"params": params}, tokens_BT, mask_BT)


@pytest.fixture(scope="module")
def base(distinct_weights):
    return distinct_weights(CONFIG)


@pytest.fixture(scope="module")
def rollout():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 31, (3, PROMPT + RESPONSE)).astype(np.int32)
    mask = np.ones_like(tokens)
    mask[0, :2] = mask[2, :4] = 0
    mask[1, -2:] = 0
    return Rollout(
        jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(mask[:, PROMPT:]), jnp.zeros((3, 4))
    )


def _nudged(params, scale=0.05):
    keys = iter(jax.random.split(jax.random.key(9), 100))
    return jax.tree.map(lambda x: x + scale * jax.random.normal(next(keys), x.shape), params)


def _plain_logprobs(params, rollout, temperature, config=CONFIG):
    logits = _logits(config, params, rollout.tokens_BT, rollout.mask_BT)
    logits = np.asarray(logits[:, PROMPT - 1 : -1], np.float64) / temperature
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.asarray(rollout.tokens_BT[:, PROMPT:])
    return np.take_along_axis(logits, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("first, config", [(0, CONFIG), (1, CONFIG), (2, CONFIG), (1, GEMMA)])
def test_scores_equal_the_full_forward_at_the_sampling_temperature(base, rollout, first, config):
    spec = _spec(first=first, config=config)
    trained = _nudged(split_trainable(base, first, train_embeddings=False))
    critic = forward.init_critic(spec, base, jax.random.key(1))
    scored = _score(spec, base, trained, critic, rollout)
    full = merge_trainable(base, trained, first)
    real = np.asarray(rollout.response_mask_BR) > 0
    for got, params in ((scored.old_logprobs_BR, full), (scored.ref_logprobs_BR, base)):
        wanted = _plain_logprobs(params, rollout, spec.temperature, config)
        np.testing.assert_allclose(np.asarray(got)[real], wanted[real], atol=2e-5)
    assert np.abs(np.asarray(scored.old_logprobs_BR - scored.ref_logprobs_BR))[real].max() > 1e-3
    # What the update computes from the cached lower layers is the same number: ratio 1.
    again, _, _ = _response_logprobs(spec, base, trained, rollout, scored.frozen_hidden_BTD)
    np.testing.assert_allclose(again[real], scored.old_logprobs_BR[real], atol=1e-6)


def test_trained_embeddings_are_used_below_and_above(base, rollout):
    spec = _spec(first=0)
    trained = _nudged(split_trainable(base, 0, train_embeddings=True))
    got, _, _ = _response_logprobs(spec, base, trained, rollout)
    real = np.asarray(rollout.response_mask_BR) > 0
    wanted = _plain_logprobs(merge_trainable(base, trained, 0), rollout, spec.temperature)
    np.testing.assert_allclose(np.asarray(got)[real], wanted[real], atol=2e-5)


def test_steps_score_at_the_temperature_that_the_configuration_samples_at():
    config = Config(method="rloo")
    config.sampling.temperature, config.model.trainable_layers = 0.7, 2
    spec = policy_spec(config, CONFIG, ONE_DEVICE)
    assert (spec.temperature, spec.first_trainable_layer, spec.critic) == (0.7, 1, "none")
    # Inverse-Q* adds and subtracts logits as they come out of the product.
    with pytest.raises(ValueError, match=r"final_softcap.*config\.model\.generator"):
        policy_spec(Config(method="inverse_q"), GEMMA, ONE_DEVICE)


@pytest.mark.parametrize("critic", forward.CRITICS)
def test_the_critic_is_causal(base, rollout, critic):
    """V before token t must not change with token t or anything after it (defect 22)."""
    spec = _spec(critic)
    trained = _nudged(split_trainable(base, spec.first_trainable_layer, False))
    weights = _nudged(forward.init_critic(spec, base, jax.random.key(1)), 0.5)

    def values(tokens):
        changed = rollout.replace(tokens_BT=tokens)
        return np.asarray(_score(spec, base, trained, weights, changed).values_BR)

    plain = values(rollout.tokens_BT)
    for t in range(RESPONSE):
        future = rollout.tokens_BT.at[:, PROMPT + t :].add(1) % 31
        np.testing.assert_allclose(values(future)[:, : t + 1], plain[:, : t + 1], atol=1e-6)
    past = values(rollout.tokens_BT.at[:, PROMPT].add(1) % 31)
    assert np.abs(past[:, 1] - plain[:, 1]).min() > 1e-6


def test_padding_does_not_change_scores(base, rollout):
    spec = _spec()
    trained = split_trainable(base, spec.first_trainable_layer, False)
    critic = forward.init_critic(spec, base, jax.random.key(1))
    wide = jax.tree.map(lambda x: x, rollout)
    pad = lambda x, value: jnp.pad(x, ((0, 0), (3, 2)), constant_values=value)  # noqa: E731
    tail = lambda x: jnp.pad(x, ((0, 0), (0, 2)))  # noqa: E731
    wide = Rollout(
        pad(rollout.tokens_BT, 7),
        pad(rollout.mask_BT, 0),
        tail(rollout.response_mask_BR),
        tail(rollout.logprobs_BR),
    )
    narrow_scores = _score(spec, base, trained, critic, rollout)
    wide_scores = _score(spec, base, trained, critic, wide)
    real = np.asarray(rollout.response_mask_BR) > 0
    for name in ("old_logprobs_BR", "ref_logprobs_BR", "values_BR"):
        a = np.asarray(getattr(narrow_scores, name))[real]
        b = np.asarray(getattr(wide_scores, name))[:, :RESPONSE][real]
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_split_and_merge_are_inverse(base):
    for first in (0, 2):
        merged = merge_trainable(base, split_trainable(base, first, True), first)
        jax.tree.map(np.testing.assert_array_equal, merged, dict(base))
    spec = dataclasses.replace(_spec(), first_trainable_layer=2)
    assert jax.tree.leaves(forward.reference_part(spec, base)["layers"])[0].shape[0] == 1
