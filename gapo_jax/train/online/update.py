"""The policy's part of a round (Algorithm 1 of GAPO, even steps): epochs of minibatches over one
experience, for the critic and then for the policy."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax.config import Config
from gapo_jax.data.batching import epoch_order, like_lengths
from gapo_jax.losses import adaptive_kl_coef
from gapo_jax.methods import estimator
from gapo_jax.rng import Stream, stream
from gapo_jax.train.buckets import in_bucket, take_rows
from gapo_jax.train.checks import ONLINE_RATES, check_finite
from gapo_jax.train.context import TrainContext
from gapo_jax.train.metrics import mean_metrics
from gapo_jax.train.online.steps import CriticBatch, PolicyBatch
from gapo_jax.train.round import RoundExperience
from gapo_jax.train.state import GAPOState, TrainState
from gapo_jax.types import Experience, Metrics


def update_policy(
    ctx: TrainContext, state: GAPOState, experience: RoundExperience
) -> tuple[GAPOState, dict[str, float]]:
    """Run the critic's and the policy's epochs over one experience, and adapt the KL coefficient.

    Raises:
        RunStopped: a loss or a gradient is not finite.
    """
    index, policy, updates = experience.index, state.policy, []
    done = index * ctx.updates_per_round
    with ctx.clock("policy"):
        critic, metrics = update_critic(ctx, state, experience)
        for rows, lengths_B in minibatches(ctx, experience.rows, index, Stream.POLICY_ORDER):
            batch = PolicyBatch(
                take_rows(experience.rows, rows),
                take_rows(experience.logprobs.frozen_hidden_BTD, rows),
                state.kl_coef,
            )
            demonstrations = ctx.sft_batches and ctx.sft_batches.batch(done + len(updates))
            policy, update_metrics = ctx.steps.policy(
                policy,
                in_bucket(batch, lengths_B, ctx.widths),
                ctx.models.ref_params,
                demonstrations,
            )
            updates.append(update_metrics)
        metrics |= mean_metrics(updates)
        check_finite(metrics, f"round {index + 1}", ONLINE_RATES)
        rows = experience.rows.tokens_BT.shape[0]
        kl_coef = next_kl_coef(ctx.config, state, experience.metrics["kl/ref"], rows)
    metrics |= {"kl/coef": float(kl_coef), "time/policy_s": ctx.clock.last["policy"]}
    return state.replace(policy=policy, critic=critic, kl_coef=kl_coef), metrics


def update_critic(
    ctx: TrainContext, state: GAPOState, experience: RoundExperience
) -> tuple[TrainState | None, dict[str, float]]:
    """Run the critic's epochs over one experience; nothing to do for a method without one."""
    critic, step, logprobs = state.critic, ctx.steps.critic, experience.logprobs
    if critic is None or step is None:
        return None, {}
    updates: list[Metrics] = []
    for rows, lengths_B in minibatches(ctx, experience.rows, experience.index, Stream.CRITIC_ORDER):
        batch = CriticBatch(
            take_rows(experience.rows, rows),
            take_rows(logprobs.features_BRD, rows),
            take_rows(logprobs.frozen_hidden_BTD, rows),
        )
        critic, update_metrics = step(critic, in_bucket(batch, lengths_B, ctx.widths))
        updates.append(update_metrics)
    last_epoch = updates[-max(1, len(updates) // ctx.config.ppo.critic_epochs) :]
    metrics = mean_metrics(last_epoch)
    metrics["value/explained_variance_before"] = float(updates[0]["value/explained_variance"])
    return critic, metrics


def minibatches(
    ctx: TrainContext, experience: Experience, index: int, name: Stream
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of each minibatch, int64 [minibatch_size], and their lengths in tokens, epoch
    after epoch.

    For rpo the samples of a prompt stay next to each other; the rest is shuffled freely. Where
    batches have several widths (`ppo.length_buckets`), they are cut by length and then shuffled;
    elsewhere lengths do not matter and are 0.
    """
    config, total = ctx.config, experience.tokens_BT.shape[0]
    size = config.ppo.minibatch_size
    epochs = config.ppo.critic_epochs if name == Stream.CRITIC_ORDER else config.ppo.epochs
    group = config.ppo.group_size if estimator(config) == "rpo" else 1
    lengths_B = np.zeros(total, np.int64)
    if ctx.widths:
        lengths_B = np.asarray(ctx.models.spec.place.host(experience.mask_BT)).sum(axis=1)
    for epoch in range(epochs):
        path = config.seed, name, index, epoch
        if ctx.widths:
            batches = list(like_lengths(lengths_B, size, group, stream(*path)))
        else:
            order_A = epoch_order(*path, n=total // group)
            order_B = (order_A[:, None] * group + np.arange(group)).reshape(-1)
            batches = list(order_B.reshape(-1, size))
        for rows in batches:
            yield rows, lengths_B[rows]


def next_kl_coef(config: Config, state: GAPOState, kl_per_token: float, rows: int) -> jax.Array:
    """Return the KL coefficient, adapted towards `ppo.kl_target` if one is set (arXiv
    1909.08593)."""
    if not config.ppo.kl_target:
        return state.kl_coef
    return jnp.float32(
        adaptive_kl_coef(
            state.kl_coef,
            kl_per_token,
            target=config.ppo.kl_target,
            num_samples=rows,
            horizon=config.ppo.kl_horizon,
        )
    )
