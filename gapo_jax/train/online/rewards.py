"""Rewards of a rollout: one snapshot of every source, standardised, and the rows worth learning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax.config import Config
from gapo_jax.methods import asks_discriminator, method_of
from gapo_jax.rewards.combine import combine_scores
from gapo_jax.rewards.scores import (
    discriminator_scores,
    fault_of_scores,
    fill_unscored,
    overlong_penalty,
    standardise_rewards,
)
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.self_generated import ended_responses
from gapo_jax.train.discriminator.scoring import score_texts
from gapo_jax.train.online.reward_sources import (
    Sampled,
    SourceScores,
    begin_scoring,
    response_ids,
)
from gapo_jax.train.round import Rewards, RoundRollout
from gapo_jax.train.runtime import RunStopped
from gapo_jax.train.state import GAPOState, copy_tree
from gapo_jax.types import Params


def snapshot_before(ctx: TrainContext, state: GAPOState) -> Params | None:
    """Return a copy of the discriminator as it is before the round's update, which takes its
    memory; None where the rewards come from another snapshot (`discriminator.score_with`)."""
    config = ctx.config
    if method_of(config).adversarial and config.discriminator.score_with == "pre":
        return copy_tree(state.discriminator.params)
    return None


def compute_rewards(
    ctx: TrainContext, state: GAPOState, rollout: RoundRollout, before: Params | None = None
) -> Rewards:
    """Return the rewards of a rollout and the rows to learn from.

    The discriminator is asked as it was `before` its update if that is given, else as its moving
    average, else as it is now. The penalty of a response without an end comes off after the
    standardisation, so it is in units of the rewards' deviation, and before the choice of rows.

    A response that no source scores is not learned from.

    Raises:
        RunStopped: a score of the discriminator is not finite; or a function failed, and
            `reward.strict`.
    """
    config, reward = ctx.config, ctx.config.reward
    group = config.ppo.samples_per_prompt
    with ctx.clock("score"):
        collect = begin_scoring(
            config,
            ctx.rewards,
            ctx.processes,
            Sampled(rollout.rows, rollout.texts, response_ids(rollout.arrays)),
            rollout.index,
            ctx.updates_per_round,
        )
        logits_B, built_in = None, {"verifier": rollout.rule_rewards_B}
        if asks_discriminator(config):
            logits_B = ask_discriminator(ctx, state, rollout, before)
            built_in["discriminator"] = discriminator_scores(logits_B, reward.squash)
        sources = collect(built_in)
        scores_B = jnp.asarray(combine(config, sources))
        if reward.overlong_tokens:
            lengths_B = rollout.arrays.response_mask_BR.sum(axis=1)
            limit = config.sampling.max_new_tokens
            scores_B += overlong_penalty(lengths_B, limit, reward.overlong_tokens)
        rewards_B, stats = standardise_rewards(
            scores_B,
            state.reward_stats,
            mode=reward.standardise,
            group_size=group,
            clip=reward.clip,
            group_eps=reward.group_eps,
        )
        rewards_B, scored_B = fill_unscored(rewards_B, group)
        endless_B = ~ended_responses(config, ctx.models, rollout.arrays)
        rewards_B -= reward.missing_eos_penalty * jnp.asarray(endless_B, jnp.float32)
        chosen = select_rows(rewards_B, group, config.ppo.train_samples)
    return Rewards(logits_B, rewards_B, stats, chosen, scored_B, sources)


def ask_discriminator(
    ctx: TrainContext, state: GAPOState, rollout: RoundRollout, before: Params | None
) -> np.ndarray:
    """Return the logits of a rollout under the snapshot that the rewards come from, float32 [B].

    Raises:
        RunStopped: one of them is not finite.
    """
    candidates = (before, state.disc_average, state.discriminator.params)
    snapshot = next(params for params in candidates if params is not None)
    logits_B = score_texts(
        ctx.steps,
        snapshot,
        ctx.models.disc_tokenizer,
        rollout.generated,
        ctx.config.discriminator,
    )
    if fault := fault_of_scores(logits_B):
        raise RunStopped(f"in round {rollout.index + 1} {fault}")
    return logits_B


def combine(config: Config, sources: SourceScores) -> np.ndarray:
    """Return one score of each response, float32 [B], by `config.reward.combine`."""
    return combine_scores(
        sources.scores_BK,
        config.reward.source_weights,
        mode=config.reward.combine,
        group_size=config.ppo.samples_per_prompt,
        verdicts=config.reward.verdicts,
        band=config.reward.band,
    )


def select_rows(rewards_B: jax.Array, group: int, keep: int) -> np.ndarray:
    """Return the rows to learn from, int64, in order: all, or the best and worst `keep` / 2 of
    each group of `group` neighbouring samples; ties go to the earlier sample."""
    rewards_AG = np.asarray(rewards_B).reshape(-1, group)
    if not keep or keep == group:
        return np.arange(rewards_AG.size)
    order_AG = np.argsort(rewards_AG, axis=1, kind="stable")
    half = keep // 2
    chosen_AK = np.concatenate([order_AG[:, :half], order_AG[:, -half:]], axis=1)
    return np.sort((chosen_AK + np.arange(len(rewards_AG))[:, None] * group).reshape(-1))
