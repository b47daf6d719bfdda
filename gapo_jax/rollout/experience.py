"""From rewards to advantages: rewards and KL penalties on tokens, and the estimators."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike, Shaped

from gapo_jax.losses import (
    gae,
    group_normalise,
    k1,
    leave_one_out,
    masked_fill,
    masked_mean,
    token_rewards,
    whiten,
)
from gapo_jax.types import Experience, Metrics, Rollout


def critic_free_advantages(
    estimator: str,
    rewards_B: Float[Array, "B"],
    logprobs_BR: Float[Array, "B R"],
    ref_logprobs_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    kl_coef: ScalarLike,
    *,
    group_size: int,
    gamma: float = 1.0,
    scale: bool = True,
    group_baseline: bool = False,
) -> Float[Array, "B R"]:
    """Return advantages float32 [B, R] of an estimator without a critic, 0 at masked tokens.

    | estimator | advantage of each token |
    |---|---|
    | rloo (arXiv 2402.14740) | R_i - mean of the others' R, R_i = r_i - kl_coef sum_t k1_t |
    | grpo (arXiv 2402.03300) | (r_i - mean) / std in the group; r_i - mean without `scale` |
    | reinforce_pp (arXiv 2501.03262) | return-to-go of -kl_coef k1_t + 1[t = last] r_i, whitened |
    | rpo | the reward: its loss has no advantage |

    With `group_baseline` reinforce_pp takes the group's mean off the rewards and leaves the KL to
    the loss (OpenRLHF's reinforce_baseline). The rows of a group stand next to each other.
    """
    if estimator == "reinforce_pp":
        if group_baseline:
            rewards_B = group_normalise(rewards_B, group_size, scale=False)
            kl_coef = 0.0
        rewards_BR = token_rewards(rewards_B, logprobs_BR, ref_logprobs_BR, mask_BR, kl_coef)
        to_go_BR, _ = gae(rewards_BR, jnp.zeros_like(rewards_BR), mask_BR, gamma, 1.0)
        return whiten(to_go_BR, mask_BR)
    if estimator == "rloo":
        # Before the baseline: a baseline of scores alone belongs to another estimator.
        kl_B = jnp.sum(masked_fill(k1(logprobs_BR, ref_logprobs_BR), mask_BR), axis=1)
        advantages_B = leave_one_out(rewards_B - kl_coef * kl_B, group_size)
    elif estimator == "grpo":
        advantages_B = group_normalise(rewards_B, group_size, scale=scale)
    else:
        advantages_B = rewards_B
    return masked_fill(jnp.broadcast_to(advantages_B[:, None], mask_BR.shape), mask_BR)


# Jitted as a whole: run eagerly, the scan inside `gae` would be compiled anew in every round.
@functools.partial(
    jax.jit,
    static_argnames=(
        "estimator", "group_size", "gamma", "lam", "whiten_advantages", "scale", "group_baseline",
    ),
)  # fmt: skip
def build_experience(
    rollout: Rollout,
    old_logprobs_BR: Float[Array, "B R"],
    ref_logprobs_BR: Float[Array, "B R"],
    values_BR: Float[Array, "B R"] | None,
    rewards_B: Float[Array, "B"],
    kl_coef: ScalarLike,
    learn_B: Shaped[Array, "B"] | None = None,
    counted_B: Shaped[Array, "B"] | None = None,
    *,
    estimator: str = "gae",
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_advantages: bool = True,
    **options: Any,
) -> tuple[Experience, Metrics]:
    """Place rewards on tokens, estimate advantages; return the experience and its metrics.

    With `gae`: r_t = -kl_coef * k1_t + 1[t = last] * reward (GAPO as its code does it, Eq. 7 and 9
    being shorthand); advantages are whitened over the real tokens of the whole rollout. The other
    estimators: `critic_free_advantages` with `options`, `values_BR` being None. Rows whose
    `learn_B` is 0 stay in the statistics, but none of their tokens is left to learn from; means
    over rows count them all the same, unless `counted_B` is 0 (None: all count).
    """
    mask_BR, returns_BR = rollout.response_mask_BR, None
    logprobs = old_logprobs_BR, ref_logprobs_BR
    if estimator == "gae":
        assert values_BR is not None
        rewards_BR = token_rewards(rewards_B, *logprobs, mask_BR, kl_coef)
        advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, gamma, lam)
    else:
        advantages_BR = critic_free_advantages(
            estimator, rewards_B, *logprobs, mask_BR, kl_coef, gamma=gamma, **options
        )
    metrics = {
        "kl/ref": masked_mean(old_logprobs_BR - ref_logprobs_BR, mask_BR),
        "reward/mean": rewards_B.mean(),
        "reward/std": rewards_B.std(),
        "rollout/logprob_gap": masked_mean(jnp.abs(old_logprobs_BR - rollout.logprobs_BR), mask_BR),
        "advantage/std": jnp.sqrt(masked_mean(advantages_BR**2, mask_BR)),
    }
    if values_BR is not None:
        metrics["value/rollout_mean"] = masked_mean(values_BR, mask_BR)
    if estimator == "gae" and whiten_advantages:
        advantages_BR = whiten(advantages_BR, mask_BR)
    experience = Experience(
        tokens_BT=rollout.tokens_BT,
        mask_BT=rollout.mask_BT,
        response_mask_BR=mask_BR if learn_B is None else mask_BR * (learn_B != 0)[:, None],
        old_logprobs_BR=old_logprobs_BR,
        ref_logprobs_BR=ref_logprobs_BR,
        advantages_BR=advantages_BR,
        values_BR=values_BR,
        returns_BR=returns_BR,
        rewards_B=rewards_B,
        counted_B=None if counted_B is None else (counted_B != 0).astype(jnp.int32),
    )
    return experience, metrics
