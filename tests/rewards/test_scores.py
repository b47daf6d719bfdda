"""Scores and standardised rewards, against plain numpy."""

import jax.numpy as jnp
import numpy as np

from gapo_jax.rewards import scores as reward_scores


def test_running_statistics_equal_those_of_all_values_at_once():
    rng = np.random.default_rng(0)
    stats, seen = jnp.zeros(3), []
    for size in (5, 1, 17):
        values = rng.normal(3.0, 2.0, size).astype(np.float32)
        seen.append(values)
        stats = reward_scores.merge_stats(stats, jnp.asarray(values))
    every = np.concatenate(seen)
    np.testing.assert_allclose(stats[0], len(every))
    np.testing.assert_allclose(stats[1], every.mean(), rtol=1e-5)
    np.testing.assert_allclose(stats[2], ((every - every.mean()) ** 2).sum(), rtol=1e-4)


def test_scores_that_are_not_finite_stay_out_of_the_running_statistics():
    clean = reward_scores.merge_stats(jnp.array([4.0, 1.0, 2.0]), jnp.array([0.5, 2.0]))
    dirty = jnp.array([jnp.nan, 0.5, jnp.inf, 2.0, -jnp.inf])
    stats = reward_scores.merge_stats(jnp.array([4.0, 1.0, 2.0]), dirty)
    np.testing.assert_allclose(stats, clean, rtol=1e-6)
    for before in (jnp.zeros(3), jnp.array([4.0, 1.0, 2.0])):
        np.testing.assert_array_equal(reward_scores.merge_stats(before, dirty[:1]), before)
    rewards, stats = _standardise(np.asarray(dirty), "running")
    assert np.isfinite(stats).all() and np.isfinite(np.asarray(rewards)[[1, 3]]).all()


def test_scores_that_are_not_finite_are_named_with_a_way_out():
    assert reward_scores.fault_of_scores(np.zeros(3, np.float32)) is None
    scores = np.array([0.0, np.nan, 1.0, -np.inf], np.float32)
    message = reward_scores.fault_of_scores(scores)
    assert message is not None
    assert message.startswith("2 of the discriminator's 4 scores are not finite (nan of response 1")
    assert (
        "-inf of response 3)" in message and "config.discriminator.round_learning_rate" in message
    )


def _standardise(scores, mode, **changes):
    options = {"mode": mode, "group_size": 4, "clip": 10.0} | changes
    return reward_scores.standardise_rewards(jnp.asarray(scores), jnp.zeros(3), **options)


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


def test_scores_of_the_discriminator():
    logits = np.array([0.0, 2.0, -50.0], np.float32)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_array_equal(reward_scores.discriminator_scores(logits, "none"), logits)
    squashed = reward_scores.discriminator_scores(logits, "sigmoid")
    np.testing.assert_allclose(squashed, probability, rtol=1e-5)


def test_rows_without_a_score_are_in_no_statistic():
    """As if they were not there; where all are there, the plain path gives the same."""
    scores = np.array([0.25, 0.9, np.nan, -1.0, np.nan, np.nan, 6.0, np.nan], np.float32)
    grouped, stats = _standardise(scores, "group")
    seen = scores[[0, 1, 3]].astype(np.float64)
    want = (seen - seen.mean()) / (seen.std(ddof=1) + 0.05)
    np.testing.assert_allclose(np.asarray(grouped)[[0, 1, 3]], want, rtol=1e-5)
    assert float(grouped[6]) == 0 and np.isnan(np.asarray(grouped)[[2, 4, 5, 7]]).all()
    assert float(stats[0]) == 4
    whole = np.where(np.isnan(scores), 0.5, scores)
    plain, _ = _standardise(whole, "group")
    rewards = reward_scores._group_normalise_scored(jnp.asarray(whole), 4, 0.05)
    np.testing.assert_allclose(rewards, plain, rtol=1e-5)


def test_a_row_without_a_reward_does_not_move_the_baseline_of_its_group():
    rewards = jnp.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan, np.nan, np.nan])
    filled, scored = reward_scores.fill_unscored(rewards, 4)
    np.testing.assert_allclose(filled, [1, 3, 3, 5, 0, 0, 0, 0])
    np.testing.assert_array_equal(scored, [True, False, True, True] + [False] * 4)
    same, scored = reward_scores.fill_unscored(filled, 4)
    assert same is filled and scored.all()


def test_the_soft_punishment_of_long_responses_by_hand():
    lengths = np.array([0, 80, 90, 95, 100])
    found = reward_scores.overlong_penalty(lengths, limit=100, soft=20)
    np.testing.assert_allclose(found, [0, 0, -0.5, -0.75, -1.0], atol=1e-6)
