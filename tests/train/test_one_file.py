"""scripts/gapo_in_one_file.py is the algorithm of `gapo_jax/train/`: its first gradients are."""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_path import load

from gapo_jax.config import Config
from gapo_jax.rewards.scores import standardise_rewards
from gapo_jax.rng import Stream
from gapo_jax.rollout.experience import build_experience
from gapo_jax.train.discriminator.steps import TextBatch, disc_update_step
from gapo_jax.train.forward import PolicyNetworks, PolicySpec, score_rollout
from gapo_jax.train.online.steps import CriticBatch, PolicyBatch, critic_step, policy_step
from gapo_jax.train.state import TrainState, split_trainable
from gapo_jax.types import ACCEPTED, GENERATED, REJECTED, Rollout

ROWS, PROMPT, RESPONSE = 6, 5, 7
# Moves nothing and keeps the gradient as its state: taken off the parameters, it would lose digits.
OPTIMIZER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradients, state, params=None: (state, gradients),
)


@pytest.fixture(scope="module")
def one():
    return load("scripts/gapo_in_one_file.py")


@pytest.fixture(scope="module")
def policies(one):
    """Starting weights whose distributions differ, and the same after a small step."""
    ones_BT = jnp.ones((1, 2), jnp.int32)
    start = one.start(
        one.generator, one.policy_adam, Stream.GENERATOR_WEIGHTS, ones_BT, ones_BT, scale=8.0
    ).params
    return start, jax.tree.map(
        lambda x: x + 0.01 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), start
    )


@pytest.fixture(scope="module")
def rollout(one):
    """Prompts of 1 to 5 tokens, responses of 2 to 7."""
    rng = np.random.default_rng(0)
    real_BP = np.arange(PROMPT) >= PROMPT - rng.integers(1, PROMPT + 1, (ROWS, 1))
    real_BR = np.arange(RESPONSE) < rng.integers(2, RESPONSE + 1, (ROWS, 1))
    mask_BT = np.concatenate([real_BP, real_BR], axis=1).astype(np.int32)
    tokens_BT = rng.integers(3, len(one.words), mask_BT.shape).astype(np.int32) * mask_BT
    zeros_BR = jnp.zeros(real_BR.shape)
    return Rollout(*map(jnp.asarray, (tokens_BT, mask_BT, mask_BT[:, PROMPT:])), zeros_BR)


def gradient(step, params, *batch):
    state, metrics = jax.jit(step)(TrainState.create(params, OPTIMIZER), *batch)
    return state.opt_state, metrics


def assert_equal(found, wanted):
    """To 1e-5 of the largest entry of each parameter's gradient, in float32."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert (size := float(jnp.abs(b).max())) > 0, path
        np.testing.assert_allclose(a / size, b / size, rtol=0, atol=1e-5, err_msg=str(path))


def test_first_gradients_of_policy_and_critic(one, policies, rollout):
    reference, policy = policies
    value = one.start(one.critic, one.critic_adam, Stream.CRITIC_WEIGHTS, jnp.ones((1, 64))).params
    scores_B = jnp.array([0.5, -2.0, 3.0, 1.0, -0.5, 0.25])
    experience, features_BRD = one.build_experience(policy, reference, value, rollout, scores_B)

    config = Config(method="gapo")
    config.ppo.clip_low = config.ppo.clip_high = one.CLIP
    config.ppo.value_clip, config.ppo.kl_coef = one.VALUE_CLIP, one.KL_COEF
    spec = PolicySpec(
        one.generator.config, first_trainable_layer=0, temperature=1.0, chunk=256,
        critic="reference", critic_hidden=one.WIDTH,
    )  # fmt: skip
    trained = split_trainable(policy, 0, train_embeddings=True)
    scored = jax.jit(functools.partial(score_rollout, spec=spec))(
        PolicyNetworks(reference, trained, {"head": value}), rollout
    )
    rewards_B, _ = standardise_rewards(
        scores_B, jnp.zeros(3), mode="batch", group_size=1, clip=10.0
    )
    wanted, _ = build_experience(
        rollout, scored.old_logprobs_BR, scored.ref_logprobs_BR, scored.values_BR, rewards_B,
        one.KL_COEF, gamma=one.GAMMA, lam=one.LAM,
    )  # fmt: skip
    np.testing.assert_allclose(experience.advantages_BR, wanted.advantages_BR, atol=1e-5)

    # At the policy that sampled, and a step from there, where the clip decides for some tokens.
    for params in (policy, jax.tree.map(lambda x: 1.05 * x, policy)):
        found = jax.jit(jax.grad(one.policy_loss, has_aux=True))(params, experience)
        expected, metrics = gradient(
            functools.partial(policy_step, spec=spec, config=config, optimizer=OPTIMIZER),
            split_trainable(params, 0, train_embeddings=True),
            PolicyBatch(wanted, None),
            reference,
        )
        assert_equal(found[0], expected)
        for name, number in found[1].items():
            assert float(number) == pytest.approx(float(metrics[name]), abs=1e-5), name
    assert float(metrics["policy/clip_fraction"]) > 0

    moved = jax.tree.map(lambda x: 1.5 * x, value)
    found, _ = jax.jit(jax.grad(one.critic_loss, has_aux=True))(moved, experience, features_BRD)
    expected, _ = gradient(
        functools.partial(critic_step, spec=spec, config=config, optimizer=OPTIMIZER),
        {"head": moved},
        CriticBatch(wanted, scored.features_BRD, None),
    )
    assert_equal(found, expected["head"])


def test_first_gradient_of_the_discriminator(one):
    ones_BT = jnp.ones((1, 2), jnp.int32)
    params = one.start(
        one.discriminator, one.disc_adam, Stream.DISCRIMINATOR_WEIGHTS, ones_BT, ones_BT, scale=4.0
    ).params
    sides = [("Write a note about tea. Avoid commas.", "green tea"), ("Describe bread.", "a, b")]
    texts = one.joined(*(one.as_texts(sides, kind) for kind in (ACCEPTED, REJECTED, GENERATED)))
    found, _ = jax.jit(jax.grad(one.discriminator_loss, has_aux=True))(params, texts)

    targets_B = jnp.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    batch = TextBatch(*texts[:3], targets_B, jnp.ones(6), texts.classes_B)
    wanted, metrics = gradient(
        lambda state, batch: disc_update_step(
            state, batch, jax.random.key(0), discriminator=one.discriminator, dropout=False,
            frozen=None, optimizer=OPTIMIZER,
        ),  # fmt: skip
        params,
        batch,
    )  # fmt: skip
    # Rows of an embedding that no text has, and kernels behind a constant, have no gradient.
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        size = max(float(jnp.abs(b).max()), 1e-6)
        np.testing.assert_allclose(a / size, b / size, rtol=0, atol=1e-5, err_msg=str(path))
    assert float(metrics["disc/loss"]) > 0


def test_it_stays_readable(one):
    assert len(pathlib.Path(one.__file__).read_text().splitlines()) <= 300
