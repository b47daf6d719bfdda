"""Token rewards, GAE and group advantages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import losses


def slow_gae(rewards, values, mask, gamma, lam):
    """GAE of each row with its masked tokens really taken out, in plain Python."""
    advantages = np.zeros_like(rewards)
    for row in range(len(rewards)):
        places = [t for t in range(rewards.shape[1]) if mask[row, t]]
        for i, t in enumerate(places):
            total = 0.0
            for j in range(i, len(places)):
                after = values[row, places[j + 1]] if j + 1 < len(places) else 0.0
                delta = rewards[row, places[j]] + gamma * after - values[row, places[j]]
                total += (gamma * lam) ** (j - i) * delta
            advantages[row, t] = total
    return advantages


@pytest.mark.parametrize("score", [0.25, 0.9, 1.7, -0.3])
def test_fractions_of_a_reward_survive(score):
    mask, zeros = jnp.ones((1, 3), jnp.int32), jnp.zeros((1, 3))
    rewards = losses.token_rewards(jnp.array([score], jnp.float32), zeros, zeros, mask, 0.1)
    assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, [[0.0, 0.0, score]], rtol=1e-6)


@pytest.mark.parametrize("left", range(4))
def test_the_score_moves_with_the_last_real_token(left):
    """The same 3 tokens at every place of a row of 6: same token, same reward."""
    logprobs, ref = np.array([-1.0, -2.0, -0.5]), np.array([-1.5, -1.0, -0.7])
    row = lambda x: jnp.array(np.pad(x, (left, 3 - left), constant_values=9.9)[None])  # noqa: E731
    mask = jnp.array(np.pad(np.ones(3, np.int32), (left, 3 - left))[None])
    rewards = losses.token_rewards(jnp.array([1.7]), row(logprobs), row(ref), mask, 0.1)
    want = np.zeros(6)
    want[left : left + 3] = -0.1 * (logprobs - ref) + [0.0, 0.0, 1.7]
    np.testing.assert_allclose(rewards[0], want, atol=1e-6)


def test_last_token_of_empty_full_and_broken_rows():
    mask = jnp.array([[0, 0, 0], [1, 1, 1], [1, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(
        losses.last_token_onehot(mask), [[0, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]]
    )


def test_token_rewards_ignore_padding_and_count_each_score_once(batch):
    mask = batch["mask_BR"]
    score = jnp.array([0.25, 0.9, 1.7, 5.0])
    clean = losses.token_rewards(score, batch["logprobs_BR"], batch["old_BR"], mask, 0.0)
    np.testing.assert_allclose(clean.sum(axis=1), [0.25, 0.9, 1.7, 0.0], rtol=1e-6)
    for poison in (np.nan, np.inf):
        dirty = [jnp.where(mask == 1, batch[k], poison) for k in ("logprobs_BR", "old_BR")]
        want = losses.token_rewards(score, batch["logprobs_BR"], batch["old_BR"], mask, 0.3)
        np.testing.assert_array_equal(losses.token_rewards(score, *dirty, mask, 0.3), want)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_token_rewards_jit_and_estimators(batch, estimator):
    arguments = (jnp.arange(4.0), batch["logprobs_BR"], batch["old_BR"], batch["mask_BR"], 0.2)
    plain = losses.token_rewards(*arguments, estimator=estimator)
    jitted = jax.jit(losses.token_rewards, static_argnames="estimator")(
        *arguments, estimator=estimator
    )
    np.testing.assert_allclose(jitted, plain, atol=1e-6)
    kl = getattr(losses, estimator)(batch["logprobs_BR"], batch["old_BR"])
    np.testing.assert_allclose(plain[0, :-1], -0.2 * kl[0, :-1], atol=1e-6)


def test_missing_eos_penalty():
    mask, zeros = jnp.ones((2, 2), jnp.int32), jnp.zeros((2, 2))
    rewards = losses.token_rewards(
        jnp.array([1.0, 1.0]), zeros, zeros, mask, 0.1,
        missing_eos_penalty=0.75, ended_B=jnp.array([1, 0]),
    )  # fmt: skip
    np.testing.assert_allclose(rewards, [[0, 1.0], [0, 0.25]])
    with pytest.raises(ValueError, match="ended_B"):
        losses.token_rewards(jnp.ones(2), zeros, zeros, mask, 0.1, missing_eos_penalty=1.0)
    with pytest.raises(ValueError, match="k4"):
        losses.token_rewards(jnp.ones(2), zeros, zeros, mask, 0.1, estimator="k4")


def test_gae_by_hand():
    rewards, values = jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.25]])
    advantages, returns = losses.gae(rewards, values, jnp.ones((1, 2), jnp.int32), 1.0, 0.5)
    # delta_1 = 1 - 0.25 = 0.75; delta_0 = 0.25 - 0.5 = -0.25; A_0 = -0.25 + 0.5 * 0.75.
    np.testing.assert_allclose(advantages, [[0.125, 0.75]])
    np.testing.assert_allclose(returns, [[0.625, 1.0]])


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_equals_the_slow_version_under_any_mask(rng, gamma, lam):
    rewards, values = rng.normal(size=(2, 6, 7))
    mask = rng.integers(0, 2, size=(6, 7))
    want = slow_gae(rewards, values, mask, gamma, lam)
    poison = np.where(mask == 1, 1.0, np.nan)
    arguments = (jnp.array(rewards * poison), jnp.array(values * poison), jnp.array(mask))
    for function in (losses.gae, jax.jit(losses.gae)):
        advantages, returns = function(*arguments, gamma, lam)
        np.testing.assert_allclose(advantages, want, atol=1e-5)
        np.testing.assert_allclose(returns, (want + values) * mask, atol=1e-5)


def test_gae_with_lambda_one_is_the_return_to_go(batch):
    mask = batch["mask_BR"]
    rewards = batch["returns_BR"] * mask
    _, returns = losses.gae(rewards, batch["values_BR"], mask, 1.0, 1.0)
    to_go = np.cumsum(np.array(rewards)[:, ::-1], axis=1)[:, ::-1] * np.array(mask)
    np.testing.assert_allclose(returns, to_go, atol=1e-5)


def test_group_advantages(rng):
    scores = jnp.array(rng.normal(2.0, 3.0, size=12), jnp.float32)
    groups = np.array(scores).reshape(3, 4)
    alone = losses.leave_one_out(scores, 4).reshape(3, 4)
    for g in range(3):
        for i in range(4):
            others = np.delete(groups[g], i)
            assert float(alone[g, i]) == pytest.approx(groups[g, i] - others.mean(), abs=1e-5)
    np.testing.assert_allclose(alone.sum(axis=1), 0.0, atol=1e-5)
    centred = losses.group_normalise(scores, 4, scale=False)
    np.testing.assert_allclose(centred, alone.reshape(-1) * 3 / 4, atol=1e-5)  # Dr. GRPO and RLOO
    scaled = losses.group_normalise(scores, 4).reshape(3, 4)
    want = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(scaled, want, atol=1e-5)


def test_a_group_of_equals_teaches_nothing_and_explodes_nothing():
    equal = jnp.array([1.0, 1.0, 1.0, 0.1, 0.1, 0.1])
    assert np.abs(losses.group_normalise(equal, 3)).max() < 1e-3
    assert np.abs(losses.leave_one_out(equal, 3)).max() < 1e-6


@pytest.mark.parametrize("function", [losses.leave_one_out, losses.group_normalise])
@pytest.mark.parametrize("group", [1, 5])
def test_groups_that_cannot_be_formed(function, group):
    with pytest.raises(ValueError, match="2 samples"):
        function(jnp.ones(12), group)
