"""Rewards and advantages of a rollout, against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.rollout import experience
from gapo_jax.types import Rollout


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
