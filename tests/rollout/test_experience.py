"""Rewards and advantages of a rollout, against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.rollout import experience
from gapo_jax.types import Rollout


def test_running_statistics_equal_those_of_all_values_at_once():
    rng = np.random.default_rng(0)
    stats, seen = jnp.zeros(3), []
    for size in (5, 1, 17):
        values = rng.normal(3.0, 2.0, size).astype(np.float32)
        seen.append(values)
        stats = experience.merge_stats(stats, jnp.asarray(values))
    every = np.concatenate(seen)
    np.testing.assert_allclose(stats[0], len(every))
    np.testing.assert_allclose(stats[1], every.mean(), rtol=1e-5)
    np.testing.assert_allclose(stats[2], ((every - every.mean()) ** 2).sum(), rtol=1e-4)


def test_scores_that_are_not_finite_stay_out_of_the_running_statistics():
    clean = experience.merge_stats(jnp.array([4.0, 1.0, 2.0]), jnp.array([0.5, 2.0]))
    dirty = jnp.array([jnp.nan, 0.5, jnp.inf, 2.0, -jnp.inf])
    stats = experience.merge_stats(jnp.array([4.0, 1.0, 2.0]), dirty)
    np.testing.assert_allclose(stats, clean, rtol=1e-6)
    for before in (jnp.zeros(3), jnp.array([4.0, 1.0, 2.0])):
        np.testing.assert_array_equal(experience.merge_stats(before, dirty[:1]), before)
    rewards, stats = _standardise(np.asarray(dirty), "running")
    assert np.isfinite(stats).all() and np.isfinite(np.asarray(rewards)[[1, 3]]).all()


def test_scores_that_are_not_finite_are_named_with_a_way_out():
    assert experience.fault_of_scores(np.zeros(3, np.float32)) is None
    scores = np.array([0.0, np.nan, 1.0, -np.inf], np.float32)
    message = experience.fault_of_scores(scores)
    assert message is not None
    assert message.startswith("2 of the discriminator's 4 scores are not finite (nan of response 1")
    assert (
        "-inf of response 3)" in message and "config.discriminator.round_learning_rate" in message
    )


def _standardise(scores, mode, **changes):
    options = {"mode": mode, "group_size": 4, "clip": 10.0} | changes
    return experience.standardise_rewards(jnp.asarray(scores), jnp.zeros(3), **options)


def test_standardised_rewards():
    scores = np.array([0.25, 0.9, 1.7, -1.0, 5.0, 5.5, 6.0, 6.5], np.float32)
    rewards, _ = _standardise(scores, "batch")
    wanted = (scores - scores.mean()) / scores.std(ddof=1)
    np.testing.assert_allclose(rewards, wanted, rtol=1e-4)
    grouped, _ = _standardise(scores, "group")
    np.testing.assert_allclose(np.asarray(grouped).reshape(2, 4).sum(1), 0, atol=1e-5)
    assert (np.diff(np.asarray(grouped)[4:]) > 0).all()
    # Fractions survive: a peer truncates rewards to integers.
    assert len(set(np.round(np.asarray(rewards), 4))) == len(scores)


def test_a_group_of_hardly_different_scores_is_not_blown_up():
    scores = np.array([0.50, 0.51, 0.50, 0.51, 0.0, 1.0, 0.0, 1.0], np.float32)
    for eps in (0.05, 1e-4):
        rewards, _ = _standardise(scores, "group", group_eps=eps)
        deviations = np.array([0.01, 1.0]) * np.sqrt(1 / 3)  # of 1/2 and -1/2 times these, n - 1
        want = np.array([0.005, 0.5]) / (deviations + eps)
        np.testing.assert_allclose(np.asarray(rewards).reshape(2, 4)[:, 1], want, rtol=1e-4)


def test_rewards_are_clipped_and_may_be_left_alone():
    scores = np.array([0.0, 0.1, 0.2, 100.0], np.float32)
    rewards, _ = _standardise(scores, "batch", clip=0.5)
    assert np.abs(np.asarray(rewards)).max() <= 0.5
    alone, stats = _standardise(scores, "none")
    np.testing.assert_array_equal(alone, np.minimum(scores, 10.0))
    np.testing.assert_allclose(stats[1], scores.mean(), rtol=1e-5)


def test_scores_of_each_source():
    logits, rules = np.array([0.0, 2.0, -50.0], np.float32), np.array([1.0, 0.5, 0.25], np.float32)

    def score(source, squash="none"):
        return experience.response_scores(
            logits, rules, source=source, squash=squash, verifier_weight=0.25
        )

    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_array_equal(score("discriminator"), logits)
    np.testing.assert_allclose(score("discriminator", "sigmoid"), probability, rtol=1e-5)
    np.testing.assert_array_equal(score("verifier"), rules)
    np.testing.assert_allclose(
        score("mix", "sigmoid"), 0.75 * probability + 0.25 * rules, rtol=1e-5
    )


def test_the_soft_punishment_of_long_responses_by_hand():
    lengths = np.array([0, 80, 90, 95, 100])
    found = experience.overlong_penalty(lengths, limit=100, soft=20)
    np.testing.assert_allclose(found, [0, 0, -0.5, -0.75, -1.0], atol=1e-6)


@pytest.mark.parametrize("pad", [0, 3])
def test_experience_equals_a_plain_loop_and_ignores_padding(pad):
    rng = np.random.default_rng(1)
    lengths, width = [4, 2, 3], 4 + pad
    mask = np.array([[1] * n + [0] * (width - n) for n in lengths], np.int32)
    old, ref, values = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(3))
    old, ref, values = (
        np.pad(x, ((0, 0), (0, pad)), constant_values=7.0) for x in (old, ref, values)
    )
    rewards = np.array([0.25, 0.9, 1.7], np.float32)
    prompt = np.zeros((3, 2), np.int32)
    rollout = Rollout(
        tokens_BT=jnp.asarray(np.concatenate([prompt, mask], 1)),
        mask_BT=jnp.asarray(np.concatenate([prompt + 1, mask], 1)),
        response_mask_BR=jnp.asarray(mask),
        logprobs_BR=jnp.asarray(old),
    )
    made, metrics = experience.build_experience(
        rollout,
        jnp.asarray(old),
        jnp.asarray(ref),
        jnp.asarray(values),
        jnp.asarray(rewards),
        jnp.float32(0.1),
        gamma=1.0,
        lam=0.95,
        whiten_advantages=False,
    )
    for row, length in enumerate(lengths):
        advantage, following = 0.0, 0.0
        score = rewards[row]
        for t in reversed(range(length)):
            reward = -0.1 * (old[row, t] - ref[row, t]) + (score if t == length - 1 else 0.0)
            advantage = reward + following - values[row, t] + 0.95 * advantage
            following = values[row, t]
            np.testing.assert_allclose(made.advantages_BR[row, t], advantage, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                made.returns_BR[row, t], advantage + values[row, t], rtol=1e-4, atol=1e-5
            )
        assert not np.asarray(made.advantages_BR[row, length:]).any()
    difference = [(old[r, :n] - ref[r, :n]).sum() for r, n in enumerate(lengths)]
    np.testing.assert_allclose(metrics["kl/ref"], sum(difference) / sum(lengths), rtol=1e-4)


def test_rows_that_are_masked_still_count_and_rows_that_fill_do_not():
    mask_BR = jnp.ones((4, 3), jnp.int32)
    rollout = Rollout(
        jnp.zeros((4, 5), jnp.int32), jnp.ones((4, 5), jnp.int32), mask_BR, -1.0 * mask_BR
    )
    found, _ = experience.build_experience(
        rollout, -1.0 * mask_BR, -1.5 * mask_BR, None, jnp.arange(4.0), 0.1,
        jnp.array([True, False, True, False]), jnp.array([True, True, True, False]),
        estimator="grpo", group_size=2,
    )  # fmt: skip
    np.testing.assert_array_equal(found.response_mask_BR.sum(axis=1), [3, 0, 3, 0])
    np.testing.assert_array_equal(found.counted_B, [1, 1, 1, 0])
