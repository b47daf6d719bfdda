"""A minibatch in microbatches, and in bfloat16: the updates of the online methods' networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gapo_jax.config import Config, OptimConfig
from gapo_jax.losses import ppo_loss
from gapo_jax.models import Decoder, DecoderConfig, Discriminator, EncoderConfig
from gapo_jax.train.discriminator.steps import TextBatch, disc_penalty, disc_update_step
from gapo_jax.train.forward import PolicySpec, frozen_hidden, init_critic
from gapo_jax.train.online.steps import (
    CriticBatch,
    PolicyBatch,
    as_rollout,
    critic_step,
    policy_step,
)
from gapo_jax.train.optimizers import make_optimizer
from gapo_jax.train.state import TrainState, merge_trainable, split_trainable
from gapo_jax.types import ACCEPTED, Experience

ROWS, PROMPT, RESPONSE = 4, 5, 6
DECODER = DecoderConfig(
    vocab_size=31, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24
)
SPEC = PolicySpec(DECODER, 1, 0.7, 8, "decoder", 8)
ENCODER = EncoderConfig(vocab_size=40, num_layers=2, d_model=16, num_heads=2, d_ff=24)
# A step of plain gradient descent shows the gradient itself.
DESCENT = optax.sgd(1.0)


@pytest.fixture(scope="module")
def base(distinct_weights):
    return distinct_weights(DECODER)


@pytest.fixture(scope="module")
def experience():
    """Rows of unequal lengths, so that a mean of the parts' means would be another number."""
    rng = np.random.default_rng(0)
    mask_BT = np.ones((ROWS, PROMPT + RESPONSE), np.int32)
    mask_BT[0, -5:] = mask_BT[1, -2:] = mask_BT[2, :3] = 0
    shape = (ROWS, RESPONSE)
    names = ("ref_logprobs_BR", "values_BR", "advantages_BR", "returns_BR")
    return Experience(
        tokens_BT=jnp.asarray(rng.integers(1, 31, mask_BT.shape), jnp.int32),
        mask_BT=jnp.asarray(mask_BT),
        response_mask_BR=jnp.asarray(mask_BT[:, PROMPT:]),
        old_logprobs_BR=jnp.asarray(-3.4 + 0.1 * rng.normal(size=shape), jnp.float32),
        rewards_B=jnp.asarray(rng.normal(size=ROWS), jnp.float32),
        **{name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in names},
    )


def _trained(base):
    keys = iter(jax.random.split(jax.random.key(9), 100))
    start = split_trainable(base, SPEC.first_trainable_layer, train_embeddings=False)
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), start)


def _config(microbatches, advantage="gae", sft_coef=0.0):
    config = Config()
    config.ppo.advantage, config.ppo.accumulate = advantage, microbatches
    config.ppo.sft_coef = sft_coef
    config.ppo.samples_per_prompt = 2
    return config


def _assert_same(one, other):
    (network, metrics), (again, found) = one, other
    assert found.keys() == metrics.keys()
    for name, value in metrics.items():
        # Order of float32 sums, here and below.
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(network.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("advantage", ["gae", "grpo", "rpo"])
def test_a_policy_update_in_microbatches_is_that_of_the_whole_minibatch(
    base, experience, advantage
):
    sft_coef = 0.5 if advantage == "gae" else 0.0
    frozen_hidden_BTD = frozen_hidden(SPEC, base, experience.tokens_BT, experience.mask_BT)
    examples = as_rollout(experience) if sft_coef else None
    batch = PolicyBatch(experience, frozen_hidden_BTD, 0.1)
    results = []
    for count in (1, 2):
        options = {"spec": SPEC, "config": _config(count, advantage, sft_coef)}
        step = jax.jit(functools.partial(policy_step, **options, optimizer=DESCENT))
        results.append(step(TrainState.create(_trained(base), DESCENT), batch, base, examples))
    assert float(results[0][1]["policy/grad_norm"]) > 1e-3
    _assert_same(*results)
    if sft_coef:
        _check_sft_term(base, experience, results[0][1], sft_coef)


def _check_sft_term(base, experience, metrics, coef):
    """Samples are scored at the temperature that they were drawn at, demonstrations at 1."""
    params = {"params": merge_trainable(base, _trained(base), SPEC.first_trainable_layer)}
    forward = jax.jit(Decoder(DECODER).apply)
    logits_BRV = forward(params, experience.tokens_BT, experience.mask_BT)[:, PROMPT - 1 : -1]
    mask_BR, targets_BR1 = experience.response_mask_BR, experience.tokens_BT[:, PROMPT:, None]
    warm_BR, plain_BR = (
        jnp.take_along_axis(jax.nn.log_softmax(logits_BRV / t), targets_BR1, -1)[..., 0]
        for t in (SPEC.temperature, 1.0)
    )
    policy, _ = ppo_loss(warm_BR, experience.old_logprobs_BR, experience.advantages_BR, mask_BR)
    negative = -float(jnp.sum(plain_BR * mask_BR) / jnp.sum(mask_BR))
    assert float(metrics["sft/loss"]) == pytest.approx(negative, rel=1e-5)
    assert float(metrics["policy/loss"]) == pytest.approx(float(policy) + coef * negative, rel=1e-5)


def test_a_critic_update_in_microbatches_is_that_of_the_whole_minibatch(base, experience):
    frozen_hidden_BTD = frozen_hidden(SPEC, base, experience.tokens_BT, experience.mask_BT)
    critic = init_critic(SPEC, base, jax.random.key(1))
    results = []
    for count in (1, 4):
        options = {"spec": SPEC, "config": _config(count), "optimizer": DESCENT}
        step = jax.jit(functools.partial(critic_step, **options))
        batch = CriticBatch(experience, None, frozen_hidden_BTD)
        results.append(step(TrainState.create(critic, DESCENT), batch))
    _assert_same(*results)


def _texts():
    rng = np.random.default_rng(1)
    mask_BT = np.ones((ROWS, 9), np.int32)
    mask_BT[1, 4:] = 0
    tokens_BT = jnp.asarray(rng.integers(1, 40, mask_BT.shape), jnp.int32)
    return TextBatch(
        tokens_BT=tokens_BT,
        mask_BT=jnp.asarray(mask_BT),
        type_ids_BT=jnp.zeros_like(tokens_BT),
        targets_B=jnp.array([1.0, 0.0, 1.0, 0.2]),
        weights_B=jnp.array([1.0, 0.5, 2.0, 0.0]),
        classes_B=jnp.array([ACCEPTED, 0, ACCEPTED, 2]),
    )


def _discriminator(config=ENCODER):
    module, texts = Discriminator(config), _texts()
    return module, module.init(jax.random.key(2), texts.tokens_BT, texts.mask_BT)["params"]


@pytest.mark.parametrize("loss", ["bce", pytest.param("bradley_terry", marks=pytest.mark.slow)])
def test_a_discriminator_update_in_microbatches_is_that_of_the_whole_batch(loss):
    module, params = _discriminator()
    results = []
    for count, penalty in ((1, 1.0), (2, 1.0), (1, 0.0)):
        step = functools.partial(
            disc_update_step,
            discriminator=module,
            dropout=False,
            frozen=None,
            loss=loss,
            gradient_penalty=penalty,
            accumulate=count,
            optimizer=DESCENT,
        )
        network = TrainState.create(params, DESCENT)
        results.append(jax.jit(step)(network, _texts(), jax.random.key(3)))
    _assert_same(*results[:2])

    # What the penalty adds to a step of descent leads downhill for it.
    slope = jax.jit(functools.partial(disc_penalty, module, frozen_layers=0))
    added = jax.tree.map(lambda a, b: a - b, results[0][0].params, results[2][0].params)
    downhill = jax.tree.map(lambda start, step: start + 1e-3 * step, params, added)
    assert float(slope(downhill, _texts())) < float(slope(params, _texts()))


def test_networks_compute_in_bfloat16_on_float32_weights(base, experience):
    """Steps of 1e-5 of weights of size 1: bfloat16 weights would round them away."""
    config = _config(1)
    adam, factored = (
        make_optimizer(OptimConfig(optimizer=name, learning_rate=1e-5), lambda _: 1e-5)
        for name in ("adamw", "adafactor")
    )
    spec = dataclasses.replace(SPEC, config=dataclasses.replace(DECODER, dtype="bfloat16"))
    frozen_hidden_BTD = frozen_hidden(spec, base, experience.tokens_BT, experience.mask_BT)
    assert frozen_hidden_BTD.dtype == jnp.bfloat16
    bound = {"spec": spec, "config": config}
    policy = functools.partial(policy_step, **bound, optimizer=adam)
    critic = functools.partial(critic_step, **bound, optimizer=factored)
    module, params = _discriminator(dataclasses.replace(ENCODER, dtype="bfloat16"))
    disc = functools.partial(
        disc_update_step, discriminator=module, dropout=False, frozen=None, optimizer=adam
    )
    policy_batch = PolicyBatch(experience, frozen_hidden_BTD, 0.1)
    critic_batch = CriticBatch(experience, None, frozen_hidden_BTD)
    for step, start, inputs in (
        (policy, _trained(base), (policy_batch, base)),
        (critic, init_critic(spec, base, jax.random.key(1)), (critic_batch,)),
        (disc, params, (_texts(), jax.random.key(3))),
    ):
        network = TrainState.create(start, step.keywords["optimizer"])
        network, metrics = jax.jit(step)(network, *inputs)
        kept = jax.tree.leaves((network.params, network.opt_state))
        assert all(x.dtype == jnp.float32 for x in kept if jnp.issubdtype(x.dtype, jnp.floating))
        assert all(metrics[name].dtype == jnp.float32 for name in metrics)
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), network.params, start)
        assert 0 < max(jax.tree.leaves(moved)) < 2e-5
