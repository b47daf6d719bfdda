"""From scores to advantages: standardised rewards, KL penalty, GAE, whitening."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from gapo_jax.losses import gae, group_normalise, masked_mean, token_rewards, whiten
from gapo_jax.types import Experience, Rollout


def merge_stats(stats_3: jax.Array, values_B: jax.Array) -> jax.Array:
    """Merge new values into running (count, mean, sum of squared deviations), float32 [3].

    Chan, Golub and LeVeque's parallel update of mean and variance.
    """
    values_B = values_B.astype(jnp.float32)
    count, mean, squares = stats_3
    new_count = jnp.float32(values_B.shape[0])
    new_mean = values_B.mean()
    total = count + new_count
    delta = new_mean - mean
    return jnp.stack(
        [
            total,
            mean + delta * new_count / total,
            squares + jnp.sum((values_B - new_mean) ** 2) + delta**2 * count * new_count / total,
        ]
    )


def standardise_rewards(
    scores_B: jax.Array,
    stats_3: jax.Array,
    *,
    mode: str,
    group_size: int,
    squash: str,
    clip: float,
) -> tuple[jax.Array, jax.Array]:
    """Turn raw discriminator logits into rewards, float32 [B], and update the running statistics.

    `mode` is `running` (over all rounds so far, this one included), `batch` (this round) or
    `group` (the samples of one prompt, which stand next to each other). `squash="sigmoid"` maps
    logits to probabilities first, which bounds what a single confident score can do.
    """
    scores_B = scores_B.astype(jnp.float32)
    if squash == "sigmoid":
        scores_B = jax.nn.sigmoid(scores_B)
    stats_3 = merge_stats(stats_3, scores_B)
    if mode == "group":
        rewards_B = group_normalise(scores_B, group_size, eps=0.05)
    else:
        count, mean, squares = (
            stats_3 if mode == "running" else merge_stats(jnp.zeros(3, jnp.float32), scores_B)
        )
        deviation = jnp.sqrt(squares / jnp.maximum(count - 1.0, 1.0))
        rewards_B = (scores_B - mean) / (deviation + 1e-6)
    return jnp.clip(rewards_B, -clip, clip), stats_3


# Jitted as a whole: run eagerly, the scan inside `gae` would be compiled anew in every round.
@functools.partial(jax.jit, static_argnames=("gamma", "lam", "whiten_advantages"))
def build_experience(
    rollout: Rollout,
    old_logprobs_BR: jax.Array,
    ref_logprobs_BR: jax.Array,
    values_BR: jax.Array,
    rewards_B: jax.Array,
    kl_coef: jax.Array,
    *,
    gamma: float,
    lam: float,
    whiten_advantages: bool,
) -> tuple[Experience, dict[str, jax.Array]]:
    """Place rewards on tokens, run GAE and whiten; return the experience and its metrics.

    r_t = -kl_coef * k1_t + 1[t = last] * reward (GAPO as its code does it, Eq. 7 and 9 being
    shorthand); advantages are whitened over the real tokens of the whole rollout.
    """
    mask_BR = rollout.response_mask_BR
    rewards_BR = token_rewards(
        rewards_B,
        old_logprobs_BR,
        ref_logprobs_BR,
        mask_BR,
        kl_coef,
    )
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, gamma, lam)
    metrics = {
        "kl/ref": masked_mean(old_logprobs_BR - ref_logprobs_BR, mask_BR),
        "reward/mean": rewards_B.mean(),
        "reward/std": rewards_B.std(),
        "rollout/logprob_gap": masked_mean(jnp.abs(old_logprobs_BR - rollout.logprobs_BR), mask_BR),
        "value/rollout_mean": masked_mean(values_BR, mask_BR),
        "advantage/std": jnp.sqrt(masked_mean(advantages_BR**2, mask_BR)),
    }
    if whiten_advantages:
        advantages_BR = whiten(advantages_BR, mask_BR)
    experience = Experience(
        tokens_BT=rollout.tokens_BT,
        mask_BT=rollout.mask_BT,
        response_mask_BR=mask_BR,
        old_logprobs_BR=old_logprobs_BR,
        ref_logprobs_BR=ref_logprobs_BR,
        values_BR=values_BR,
        advantages_BR=advantages_BR,
        returns_BR=returns_BR,
    )
    return experience, metrics
