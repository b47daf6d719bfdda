"""One round, phase by phase: sample, verify, judge, score, learn. `online.py` strings them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gapo_jax.checkpoint import Checkpointer
from gapo_jax.config import Config, system_text, updates_per_round
from gapo_jax.config.online import asks_discriminator, estimator, group_size
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.data.batching import batch_at, epoch_order
from gapo_jax.data.curriculum import in_use
from gapo_jax.evaluate.accuracy import Verdict, summarise
from gapo_jax.evaluate.text_health import text_health
from gapo_jax.losses import adaptive_kl_coef, masked_mean
from gapo_jax.rollout.experience import (
    build_experience,
    overlong_penalty,
    response_scores,
    standardise_rewards,
)
from gapo_jax.rollout.generate import Generated, generate, prompt_lengths, row_keys
from gapo_jax.train.buckets import Frame, at_every_width, frame_of, like_lengths, widths
from gapo_jax.train.build import Models, Training
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.datasets.self_generated import Pairs, Prompts, ended_responses
from gapo_jax.train.discriminator.batches import (
    GeneratedText,
    LabelledText,
    round_texts,
    store_to_json,
    update_store,
)
from gapo_jax.train.discriminator.update import (
    evaluate_pairs,
    mean_metrics,
    round_update,
    score_texts,
)
from gapo_jax.train.evaluation import evaluate_policy
from gapo_jax.train.forward import RolloutLogprobs
from gapo_jax.train.metrics import MetricsWriter
from gapo_jax.train.online.sft_batches import SFTBatches
from gapo_jax.train.online.steps import Steps
from gapo_jax.train.processes import Processes
from gapo_jax.train.runtime import RunInterrupted, RunStopped, StopRequest
from gapo_jax.train.state import GAPOState, TrainState, merge_trainable
from gapo_jax.types import GENERATED, Experience, PromptRow, Rollout

ROLLOUT_STREAM = 102


@dataclasses.dataclass
class TrainContext:
    """All that the loop works with; `store` is the replay of generated text, `grounding` the
    accepted pairs of an SFT term (`ppo.sft_coef`), `hosts` the processes that play together,
    `judges` those that verify text."""

    config: Config
    workdir: Path
    models: Models
    training: Training
    prompts: Prompts
    pairs: Pairs
    writer: MetricsWriter
    clock: PhaseClock
    checkpointer: Checkpointer
    stop: StopRequest
    store: list[GeneratedText] = dataclasses.field(default_factory=list)
    last_saved: int | None = None
    sft_batches: SFTBatches | None = None
    processes: Processes = dataclasses.field(default_factory=Processes)
    verifiers: VerifierPool = dataclasses.field(default_factory=VerifierPool)

    @property
    def updates_per_round(self) -> int:
        """Updates in one round; the `step` of a metrics line counts them."""
        return updates_per_round(self.config)

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """Widths of an online method's batches (`ppo.length_buckets`), () for one. Few rows are
        shorter than half of the prompts."""
        config, rows = self.config, self.prompts.train
        if config.ppo.length_buckets == 1:
            return ()
        prompts = [row.prompt for row in rows]
        lengths = prompt_lengths(self.models.tokenizer, prompts, system_text(config))
        limit = self.prompts.train_width + config.sampling.max_new_tokens
        return widths(config.ppo.length_buckets, float(np.median(lengths)), limit)

    @functools.cached_property
    def steps(self) -> Steps:
        """The compiled steps; the first call of one that takes a frame compiles all `widths`."""
        steps = self.training.steps
        names = ("score", "policy", "critic")
        framed: dict[str, Any] = {name: getattr(steps, name) for name in names}
        ready = {name: step and at_every_width(step, self.widths) for name, step in framed.items()}
        return dataclasses.replace(steps, **ready)

    def policy_params(self, state: GAPOState) -> Any:
        """Return the generator's full parameters, trained parts in place."""
        return merge_trainable(
            self.models.ref_params, state.policy.params, self.models.spec.first_trainable_layer
        )

    def sampling_params(self, state: GAPOState) -> Any:
        """Return the full parameters as they lie for sampling; made once a round."""
        return self.models.for_sampling(self.policy_params(state))

    def save(self, state: GAPOState, finished: int) -> None:
        """Start an asynchronous checkpoint of everything, after `finished` rounds."""
        if self.last_saved == finished:
            return
        with self.clock("save"):
            host = {"store": store_to_json(self.store), "seconds": dict(self.clock.seconds)}
            self.checkpointer.save(finished, state, host)
        self.last_saved = finished
        metrics = {"time/save_s": self.clock.last["save"]}
        self.writer.write(finished * self.updates_per_round, finished, "save", metrics)

    def asked_to_stop(self) -> str:
        """Return the name of the signal that asked any of the processes to stop, or ""."""
        return self.processes.first_word("play", self.stop.signal_name)

    def stop_if_asked(self, finished: int) -> None:
        """Raise RunInterrupted when a signal asked for it and round `finished` is saved.

        Where it is not saved yet, the round in progress is played to its end first.
        """
        asked = self.asked_to_stop()
        if asked and self.last_saved == finished:
            raise RunInterrupted(asked)


def take_rows(tree: Any, rows: np.ndarray | slice) -> Any:
    """Return the given rows of every leaf."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def sample_responses(
    ctx: TrainContext, state: GAPOState, round_index: int, attempt: int = 0
) -> tuple[list[PromptRow], Generated]:
    """Sample `samples_per_prompt` responses to each of the round's prompts.

    Further attempts (see `sampling.py`) take the prompts in other orders, with other keys.
    """
    ppo, sampling = ctx.config.ppo, ctx.config.sampling
    pool, path = ctx.prompts.train, (ROLLOUT_STREAM, round_index, *([attempt] if attempt else []))
    chosen = batch_at(
        ctx.config.seed + 7919 * attempt, round_index, len(pool), ppo.prompts_per_round
    )
    asked = [pool[i] for i in chosen]
    rows = [row for row in asked for _ in range(ppo.samples_per_prompt)]
    generated = generate(
        ctx.models.sample,
        ctx.sampling_params(state),
        ctx.models.tokenizer,
        [row.prompt for row in asked],
        row_keys(state.key, *path, count=len(rows)),
        batch_size=sampling.batch_size,
        width=ctx.prompts.width,
        temperature=sampling.temperature,
        system=system_text(ctx.config),
        stop=sampling.stop,
    )
    return rows, generated._replace(rollout=without_spare(ctx.prompts, generated.rollout))


def without_spare(prompts: Prompts, rollout: Rollout) -> Rollout:
    """Return a rollout without the leading columns that no training prompt reaches: the sampler
    has them for the held-out prompts, but nobody need score or learn from padding."""
    spare = prompts.width - prompts.train_width
    return rollout.replace(
        tokens_BT=rollout.tokens_BT[:, spare:], mask_BT=rollout.mask_BT[:, spare:]
    )


def ended(ctx: TrainContext, rollout: Rollout) -> np.ndarray:
    """Return which responses hold their end-of-sequence token or a stop string, bool [B]."""
    return ended_responses(ctx.config, ctx.models, rollout)


def rollout_metrics(
    ctx: TrainContext, rows: Sequence[PromptRow], generated: Generated, verdicts: Sequence[Verdict]
) -> dict[str, float]:
    """Return constraint accuracy (by rule) and the health of the sampled text."""
    summary = summarise(verdicts, resamples=1)
    metrics = {
        "constraint/instruction_strict": summary["instruction_strict"]["value"],
        "constraint/prompt_strict": summary["prompt_strict"]["value"],
        "response/length": float(np.asarray(generated.rollout.response_mask_BR).sum(1).mean()),
        "response/eos_rate": float(ended(ctx, generated.rollout).mean()),
    }
    metrics |= text_health([row.prompt for row in rows], generated.texts)
    for name, entry in summary["types"].items():
        metrics[f"constraint/type/{name}"] = entry["strict"]["value"]
    return metrics


def score_policy(ctx: TrainContext, state: GAPOState, rollout: Rollout) -> RolloutLogprobs:
    """Score a rollout with reference, policy and critic, a minibatch at a time."""
    size, total = ctx.config.ppo.minibatch_size, rollout.tokens_BT.shape[0]
    lengths_B = np.asarray(rollout.mask_BT).sum(axis=1)
    batches: list[Any] = [slice(start, start + size) for start in range(0, total, size)]
    if ctx.widths:
        batches = list(like_lengths(lengths_B, size, 1, None))
    parts = [
        ctx.steps.score(
            ctx.models.ref_params,
            state.policy.params,
            state.critic.params if state.critic is not None else None,
            take_rows(rollout, chosen),
            frame_of(ctx.widths, lengths_B[chosen]),
        )
        for chosen in batches
    ]
    scored = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return take_rows(scored, np.argsort(np.concatenate(batches))) if ctx.widths else scored


def minibatches(
    ctx: TrainContext, experience: Experience, round_index: int, epochs: int, stream: int
) -> Iterator[tuple[np.ndarray, Frame | None]]:
    """Yield the rows of each minibatch, int64 [minibatch_size], and their frame, epoch after epoch.

    For rpo the samples of a prompt stay next to each other; the rest is shuffled freely. Where
    batches have several widths (`ppo.length_buckets`), they are cut by length and then shuffled.
    """
    config, total = ctx.config, experience.tokens_BT.shape[0]
    size = config.ppo.minibatch_size
    group = group_size(config) if estimator(config) == "rpo" else 1
    lengths_B = np.zeros(total, np.int64)
    if ctx.widths:
        lengths_B = np.asarray(ctx.models.spec.place.host(experience.mask_BT)).sum(axis=1)
    for epoch in range(epochs):
        seed = config.seed + stream, round_index * 1000 + epoch
        if ctx.widths:
            batches = like_lengths(lengths_B, size, group, seed)
        else:
            order_A = epoch_order(*seed, total // group)
            order_B = (order_A[:, None] * group + np.arange(group)).reshape(-1)
            batches = order_B.reshape(-1, size)
        for chosen in batches:
            yield chosen, frame_of(ctx.widths, lengths_B[chosen])


def update_critic(
    ctx: TrainContext,
    state: GAPOState,
    experience: Experience,
    scored: RolloutLogprobs,
    round_index: int,
) -> tuple[TrainState | None, dict[str, float]]:
    """Run the critic's epochs over one experience; nothing to do for a method without one."""
    ppo, critic, update = ctx.config.ppo, state.critic, ctx.steps.critic
    if critic is None or update is None:
        return None, {}
    rows = []
    for chosen, frame in minibatches(ctx, experience, round_index, ppo.critic_epochs, 1):
        critic, metrics = update(
            critic,
            take_rows(experience, chosen),
            take_rows(scored.features_BRD, chosen),
            take_rows(scored.frozen_hidden_BTD, chosen),
            frame,
        )
        rows.append(metrics)
    found = mean_metrics(rows[-max(1, len(rows) // ppo.critic_epochs) :])
    found["value/explained_variance_before"] = float(rows[0]["value/explained_variance"])
    return critic, found


def update_policy(
    ctx: TrainContext,
    state: GAPOState,
    experience: Experience,
    scored: RolloutLogprobs,
    round_index: int,
) -> tuple[GAPOState, dict[str, float]]:
    """Run the critic's and the policy's epochs of minibatches over one experience."""
    ppo, policy, done = ctx.config.ppo, state.policy, round_index * ctx.updates_per_round
    critic, found = update_critic(ctx, state, experience, scored, round_index)
    rows: list[dict[str, Any]] = []
    for chosen, frame in minibatches(ctx, experience, round_index, ppo.epochs, 2):
        policy, metrics = ctx.steps.policy(
            policy,
            ctx.models.ref_params,
            take_rows(experience, chosen),
            take_rows(scored.frozen_hidden_BTD, chosen),
            state.kl_coef,
            ctx.sft_batches.batch(done + len(rows)) if ctx.sft_batches else None,
            frame,
        )
        rows.append(metrics)
    found |= mean_metrics(rows)
    check_finite(found, round_index)
    return state.replace(policy=policy, critic=critic), found


def check_finite(metrics: dict[str, float], round_index: int) -> None:
    """Raise RunStopped when a loss or a gradient is not finite."""
    for name in ("policy/loss", "policy/grad_norm", "value/loss", "disc/loss"):
        if name in metrics and not math.isfinite(metrics[name]):
            raise RunStopped(
                f"{name} is {metrics[name]} in round {round_index + 1}; lower "
                "config.ppo.optim.learning_rate (policy), config.ppo.critic_optim.learning_rate "
                "(value) or config.discriminator.round_learning_rate (disc)"
            )


def check_kl(config: Config, scored: RolloutLogprobs, mask_BR: jax.Array, round_index: int) -> None:
    """Raise RunStopped when the policy has left the reference by more than the limit (nats a
    token, k1 estimate)."""
    gap_BR = scored.old_logprobs_BR - scored.ref_logprobs_BR
    kl = float(masked_mean(gap_BR, mask_BR))
    if not kl <= config.ppo.kl_limit:
        raise RunStopped(
            f"KL to the reference is {kl:.3f} a token in round {round_index + 1}, above "
            f"config.ppo.kl_limit={config.ppo.kl_limit}: the policy is collapsing; lower "
            "config.ppo.optim.learning_rate or raise config.ppo.kl_coef"
        )


def pairs_in_use(ctx: TrainContext, done: float) -> int:
    """Return how many pairs the discriminator draws from after a part `done` of its training."""
    data = ctx.config.data
    return in_use(len(ctx.pairs.compared), done, share=data.curriculum, start=data.curriculum_start)


def update_discriminator(
    ctx: TrainContext, state: GAPOState, fresh: Sequence[GeneratedText], round_index: int
) -> tuple[GAPOState, dict[str, float]]:
    """Update the discriminator on pairs, new text and replayed text (Algorithm 1, odd steps)."""
    settings = ctx.config.discriminator
    known = pairs_in_use(ctx, round_index / ctx.config.rounds)
    texts = round_texts(
        settings,
        ctx.pairs.compared[:known],
        fresh,
        ctx.store,
        seed=ctx.config.seed,
        round_index=round_index,
    )
    network, metrics = round_update(
        state.discriminator,
        ctx.training.steps,
        ctx.models.disc_tokenizer,
        texts,
        settings,
        jax.random.fold_in(state.key, 4),
    )
    check_finite(metrics, round_index)
    metrics["disc/pairs_in_use"] = float(known)
    if (round_index + 1) % ctx.config.eval.pairs_every == 0 or round_index + 1 == ctx.config.rounds:
        metrics |= evaluate_pairs(
            ctx.training.steps,
            network.params,
            ctx.models.disc_tokenizer,
            ctx.pairs.heldout,
            settings,
        )
    ctx.store = update_store(
        ctx.store,
        fresh,
        settings.replay_capacity,
        seed=ctx.config.seed,
        round_index=round_index,
    )
    average = state.judge
    if average is not None:
        average = optax.incremental_update(network.params, average, 1 - settings.ema_decay)
    return state.replace(discriminator=network, judge=average), metrics


def compute_rewards(
    ctx: TrainContext,
    state: GAPOState,
    fresh: Sequence[GeneratedText],
    rollout: Rollout,
    rules_B: np.ndarray,
) -> tuple[GAPOState, np.ndarray | None, jax.Array]:
    """Return (state with new reward statistics, logits [B], rewards [B]) of one snapshot.

    `rules_B` are the rule rewards; the logits are None where `reward.source` does not ask the
    discriminator.
    The penalty of a response without an end comes off after the standardisation, so it is in
    units of the rewards' deviation, and before the choice of the rows to learn from.
    """
    logits_B = None
    if asks_discriminator(ctx.config):
        texts = [LabelledText(text.prompt, text.response, GENERATED, 0.0) for text in fresh]
        logits_B = score_texts(
            ctx.training.steps,
            state.discriminator.params if state.judge is None else state.judge,
            ctx.models.disc_tokenizer,
            texts,
            ctx.config.discriminator,
        )
    reward = ctx.config.reward
    scores_B = response_scores(
        logits_B,
        rules_B,
        source=reward.source,
        squash=reward.squash,
        verifier_weight=reward.verifier_weight,
    )
    if reward.overlong_tokens:
        mask_BR = rollout.response_mask_BR
        scores_B += overlong_penalty(
            mask_BR.sum(axis=1), ctx.config.sampling.max_new_tokens, reward.overlong_tokens
        )
    rewards_B, stats = standardise_rewards(
        scores_B,
        state.reward_stats,
        mode=reward.standardise,
        group_size=ctx.config.ppo.samples_per_prompt,
        clip=reward.clip,
        group_eps=reward.group_eps,
    )
    rewards_B -= reward.missing_eos_penalty * jnp.asarray(~ended(ctx, rollout), jnp.float32)
    return state.replace(reward_stats=stats), logits_B, rewards_B


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


def build_round_experience(
    ctx: TrainContext,
    state: GAPOState,
    rollout: Rollout,
    scored: RolloutLogprobs,
    rewards_B: jax.Array,
    learn_B: np.ndarray | None = None,
) -> tuple[Experience, dict[str, float]]:
    """Turn rewards into advantages by the run's estimator; `learn_B` marks the rows to learn
    from (None: all)."""
    config, ppo, chosen = ctx.config, ctx.config.ppo, estimator(ctx.config)
    options: dict[str, Any] = {"lam": ppo.lam, "whiten_advantages": ppo.whiten_advantages}
    if chosen != "gae":
        options = {
            "group_size": group_size(config),
            "scale": config.grpo.variant != "dr_grpo",
            "group_baseline": ppo.group_baseline,
        }
    experience, metrics = build_experience(
        rollout,
        scored.old_logprobs_BR,
        scored.ref_logprobs_BR,
        scored.values_BR,
        rewards_B,
        state.kl_coef,
        learn_B,
        estimator=chosen,
        gamma=ppo.gamma,
        **options,
    )
    return experience, {key: float(value) for key, value in metrics.items()}


def next_kl_coef(config: Config, state: GAPOState, kl_per_token: float, rows: int) -> GAPOState:
    """Adapt the KL coefficient towards `ppo.kl_target`, if one is set (arXiv 1909.08593)."""
    if not config.ppo.kl_target:
        return state
    coef = adaptive_kl_coef(
        state.kl_coef,
        kl_per_token,
        target=config.ppo.kl_target,
        num_samples=rows,
        horizon=config.ppo.kl_horizon,
    )
    return state.replace(kl_coef=jnp.float32(coef))


def evaluate_during(ctx: TrainContext, state: GAPOState) -> dict[str, float]:
    """Measure the policy on a part of the first held-out set, by rule."""
    rows = next(iter(ctx.prompts.heldout.values()))[: ctx.config.eval.prompts_during]
    verdicts = evaluate_policy(
        ctx.config,
        ctx.models,
        ctx.sampling_params(state),
        rows,
        name="during",
        width=ctx.prompts.width,
        verifiers=ctx.verifiers,
    )
    found = summarise(verdicts, resamples=ctx.config.eval.resamples)
    metrics = {}
    for name in ("instruction_strict", "prompt_strict"):
        for part in ("value", "low", "high"):
            suffix = "" if part == "value" else f"_{part}"
            metrics[f"eval/{name}{suffix}"] = found[name][part]
    return metrics
