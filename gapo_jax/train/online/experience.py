"""From rewards to experience: log-probs of policy and reference, values, advantages."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax.data.batching import like_lengths
from gapo_jax.losses import masked_mean
from gapo_jax.methods import estimator
from gapo_jax.records import JsonObject
from gapo_jax.rollout import experience as estimators
from gapo_jax.train.buckets import in_bucket, take_rows
from gapo_jax.train.checks import ONLINE_RATES, check_kl
from gapo_jax.train.context import TrainContext
from gapo_jax.train.forward import PolicyNetworks, RolloutLogprobs
from gapo_jax.train.round import Rewards, RoundExperience, RoundRollout
from gapo_jax.train.state import GAPOState
from gapo_jax.types import Rollout


def build_experience(
    ctx: TrainContext, state: GAPOState, rollout: RoundRollout, rewards: Rewards
) -> RoundExperience:
    """Score the chosen rows with policy, reference and critic, and turn their rewards into
    advantages by the run's estimator.

    Raises:
        RunStopped: the policy has left the reference by more than `ppo.kl_limit`.
        RunInterrupted: a signal asked for a stop, and the last round boundary is saved.
    """
    with ctx.clock("experience"):
        arrays = take_rows(rollout.arrays, rewards.chosen)
        logprobs = score_policy(ctx, state, arrays)
        gap_BR = logprobs.old_logprobs_BR - logprobs.ref_logprobs_BR
        remedy = f"lower {ONLINE_RATES['policy']} or raise config.ppo.kl_coef"
        kl = float(masked_mean(gap_BR, jnp.asarray(arrays.response_mask_BR)))
        check_kl(kl, ctx.config.ppo.kl_limit, f"round {rollout.index + 1}", remedy)
    ctx.stop_if_asked(state, rollout.index)
    rows, metrics = estimators.build_experience(
        arrays,
        logprobs.old_logprobs_BR,
        logprobs.ref_logprobs_BR,
        logprobs.values_BR,
        rewards.rewards_B[rewards.chosen],
        state.kl_coef,
        (rollout.learn_B & rewards.scored_B)[rewards.chosen],
        None if rollout.counted_B is None else rollout.counted_B[rewards.chosen],
        **estimator_options(ctx),
    )
    if ctx.config.sampling.weights != "same":
        rows = rows.replace(sampled_logprobs_BR=jnp.asarray(arrays.logprobs_BR))
    numbers = {key: float(value) for key, value in metrics.items()}
    return RoundExperience(rollout.index, rows, logprobs, numbers)


def score_policy(ctx: TrainContext, state: GAPOState, rollout: Rollout) -> RolloutLogprobs:
    """Score a rollout with reference, policy and critic, a minibatch at a time."""
    size, total = ctx.config.ppo.minibatch_size, rollout.tokens_BT.shape[0]
    critic = state.critic.params if state.critic is not None else None
    networks = PolicyNetworks(ctx.models.ref_params, state.policy.params, critic)
    lengths_B = np.asarray(rollout.mask_BT).sum(axis=1)
    minibatches: list[Any] = [slice(start, start + size) for start in range(0, total, size)]
    if ctx.widths:
        minibatches = list(like_lengths(lengths_B, size, 1, None))
    scored = [
        ctx.steps.score(networks, in_bucket(take_rows(rollout, rows), lengths_B[rows], ctx.widths))
        for rows in minibatches
    ]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *scored)
    return take_rows(joined, np.argsort(np.concatenate(minibatches))) if ctx.widths else joined


def estimator_options(ctx: TrainContext) -> JsonObject:
    """Return what `rollout.experience.build_experience` needs to know of the run's estimator."""
    config, ppo, chosen = ctx.config, ctx.config.ppo, estimator(ctx.config)
    if chosen == "gae":
        options = {"lam": ppo.lam, "whiten_advantages": ppo.whiten_advantages}
    else:
        # GDPO has normalised each source by group already: by group again, a round's groups would
        # all weigh the same.
        by_group = config.reward.combine != "normalise_then_sum"
        options = {
            "group_size": ppo.group_size,
            "scale": config.grpo.variant != "dr_grpo" and by_group,
            "group_baseline": ppo.group_baseline,
        }
    return {"estimator": chosen, "gamma": ppo.gamma, **options}
