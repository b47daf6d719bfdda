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
from gapo_jax.constraints.verifier_pool import JudgePool
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
from gapo_jax.train.build import Players, Training
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
from gapo_jax.train.forward import Scored
from gapo_jax.train.metrics import MetricsWriter
from gapo_jax.train.online.sft_batches import Grounding
from gapo_jax.train.online.steps import Steps
from gapo_jax.train.processes import Hosts
from gapo_jax.train.runtime import RunInterrupted, RunStopped, StopRequest
from gapo_jax.train.state import Network, RunState, merge_trainable
from gapo_jax.types import GENERATED, Experience, PromptRow, Rollout

ROLLOUT_STREAM = 102


@dataclasses.dataclass
class Run:
    """All that the loop works with; `store` is the replay of generated text, `grounding` the
    accepted pairs of an SFT term (`ppo.sft_coef`), `hosts` the processes that play together,
    `judges` those that verify text."""

    config: Config
    workdir: Path
    players: Players
    training: Training
    prompts: Prompts
    pairs: Pairs
    writer: MetricsWriter
    clock: PhaseClock
    checkpointer: Checkpointer
    stop: StopRequest
    store: list[GeneratedText] = dataclasses.field(default_factory=list)
    last_saved: int | None = None
    grounding: Grounding | None = None
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    judges: JudgePool = dataclasses.field(default_factory=JudgePool)

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
        lengths = prompt_lengths(self.players.tokenizer, prompts, system_text(config))
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

    def policy_params(self, state: RunState) -> Any:
        """Return the generator's full parameters, trained parts in place."""
        return merge_trainable(self.players.base, state.policy.params, self.players.spec.first)

    def sampling_params(self, state: RunState) -> Any:
        """Return the full parameters as they lie for sampling; made once a round."""
        return self.players.for_sampling(self.policy_params(state))

    def save(self, state: RunState, finished: int) -> None:
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
        return self.hosts.first_word("play", self.stop.signal_name)

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


def rollout_phase(
    run: Run, state: RunState, round_index: int, attempt: int = 0
) -> tuple[list[PromptRow], Generated]:
    """Sample `samples_per_prompt` responses to each of the round's prompts.

    Further attempts (see `sampling.py`) take the prompts in other orders, with other keys.
    """
    ppo, sampling = run.config.ppo, run.config.sampling
    pool, path = run.prompts.train, (ROLLOUT_STREAM, round_index, *([attempt] if attempt else []))
    chosen = batch_at(
        run.config.seed + 7919 * attempt, round_index, len(pool), ppo.prompts_per_round
    )
    asked = [pool[i] for i in chosen]
    rows = [row for row in asked for _ in range(ppo.samples_per_prompt)]
    generated = generate(
        run.players.sample,
        run.sampling_params(state),
        run.players.tokenizer,
        [row.prompt for row in asked],
        row_keys(state.key, *path, count=len(rows)),
        batch_size=sampling.batch_size,
        width=run.prompts.width,
        temperature=sampling.temperature,
        system=system_text(run.config),
        stop=sampling.stop,
    )
    return rows, generated._replace(rollout=without_spare(run.prompts, generated.rollout))


def without_spare(prompts: Prompts, rollout: Rollout) -> Rollout:
    """Return a rollout without the leading columns that no training prompt reaches: the sampler
    has them for the held-out prompts, but nobody need score or learn from padding."""
    spare = prompts.width - prompts.train_width
    return rollout.replace(
        tokens_BT=rollout.tokens_BT[:, spare:], mask_BT=rollout.mask_BT[:, spare:]
    )


def ended(run: Run, rollout: Rollout) -> np.ndarray:
    """Return which responses hold their end-of-sequence token or a stop string, bool [B]."""
    return ended_responses(run.config, run.players, rollout)


def rollout_metrics(
    run: Run, rows: Sequence[PromptRow], generated: Generated, verdicts: Sequence[Verdict]
) -> dict[str, float]:
    """Return constraint accuracy (by rule) and the health of the sampled text."""
    summary = summarise(verdicts, resamples=1)
    metrics = {
        "constraint/instruction_strict": summary["instruction_strict"]["value"],
        "constraint/prompt_strict": summary["prompt_strict"]["value"],
        "response/length": float(np.asarray(generated.rollout.response_mask_BR).sum(1).mean()),
        "response/eos_rate": float(ended(run, generated.rollout).mean()),
    }
    metrics |= text_health([row.prompt for row in rows], generated.texts)
    for name, entry in summary["types"].items():
        metrics[f"constraint/type/{name}"] = entry["strict"]["value"]
    return metrics


def score_policy(run: Run, state: RunState, rollout: Rollout) -> Scored:
    """Score a rollout with reference, policy and critic, a minibatch at a time."""
    size, total = run.config.ppo.minibatch_size, rollout.tokens_BT.shape[0]
    lengths_B = np.asarray(rollout.mask_BT).sum(axis=1)
    batches: list[Any] = [slice(start, start + size) for start in range(0, total, size)]
    if run.widths:
        batches = list(like_lengths(lengths_B, size, 1, None))
    parts = [
        run.steps.score(
            run.players.base,
            state.policy.params,
            state.critic.params if state.critic is not None else None,
            take_rows(rollout, chosen),
            frame_of(run.widths, lengths_B[chosen]),
        )
        for chosen in batches
    ]
    scored = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    return take_rows(scored, np.argsort(np.concatenate(batches))) if run.widths else scored


def minibatches(
    run: Run, experience: Experience, round_index: int, epochs: int, stream: int
) -> Iterator[tuple[np.ndarray, Frame | None]]:
    """Yield the rows of each minibatch, int64 [minibatch_size], and their frame, epoch after epoch.

    For rpo the samples of a prompt stay next to each other; the rest is shuffled freely. Where
    batches have several widths (`ppo.length_buckets`), they are cut by length and then shuffled.
    """
    config, total = run.config, experience.tokens_BT.shape[0]
    size = config.ppo.minibatch_size
    group = group_size(config) if estimator(config) == "rpo" else 1
    lengths_B = np.zeros(total, np.int64)
    if run.widths:
        lengths_B = np.asarray(run.players.spec.place.host(experience.mask_BT)).sum(axis=1)
    for epoch in range(epochs):
        seed = config.seed + stream, round_index * 1000 + epoch
        if run.widths:
            batches = like_lengths(lengths_B, size, group, seed)
        else:
            order_A = epoch_order(*seed, total // group)
            order_B = (order_A[:, None] * group + np.arange(group)).reshape(-1)
            batches = order_B.reshape(-1, size)
        for chosen in batches:
            yield chosen, frame_of(run.widths, lengths_B[chosen])


def learn_critic(
    run: Run, state: RunState, experience: Experience, scored: Scored, round_index: int
) -> tuple[Network | None, dict[str, float]]:
    """Run the critic's epochs over one experience; nothing to do for a method without one."""
    ppo, critic, update = run.config.ppo, state.critic, run.steps.critic
    if critic is None or update is None:
        return None, {}
    rows = []
    for chosen, frame in minibatches(run, experience, round_index, ppo.critic_epochs, 1):
        critic, metrics = update(
            critic,
            take_rows(experience, chosen),
            take_rows(scored.features_BRD, chosen),
            take_rows(scored.lower_BTD, chosen),
            frame,
        )
        rows.append(metrics)
    found = mean_metrics(rows[-max(1, len(rows) // ppo.critic_epochs) :])
    found["value/explained_variance_before"] = float(rows[0]["value/explained_variance"])
    return critic, found


def learn_phase(
    run: Run, state: RunState, experience: Experience, scored: Scored, round_index: int
) -> tuple[RunState, dict[str, float]]:
    """Run the critic's and the policy's epochs of minibatches over one experience."""
    ppo, policy, done = run.config.ppo, state.policy, round_index * run.updates_per_round
    critic, found = learn_critic(run, state, experience, scored, round_index)
    rows: list[dict[str, Any]] = []
    for chosen, frame in minibatches(run, experience, round_index, ppo.epochs, 2):
        policy, metrics = run.steps.policy(
            policy,
            run.players.base,
            take_rows(experience, chosen),
            take_rows(scored.lower_BTD, chosen),
            state.kl_coef,
            run.grounding.batch(done + len(rows)) if run.grounding else None,
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


def check_kl(config: Config, scored: Scored, mask_BR: jax.Array, round_index: int) -> None:
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


def pairs_in_use(run: Run, done: float) -> int:
    """Return how many pairs the discriminator draws from after a part `done` of its training."""
    data = run.config.data
    return in_use(len(run.pairs.compared), done, share=data.curriculum, start=data.curriculum_start)


def judge_phase(
    run: Run, state: RunState, fresh: Sequence[GeneratedText], round_index: int
) -> tuple[RunState, dict[str, float]]:
    """Update the discriminator on pairs, new text and replayed text (Algorithm 1, odd steps)."""
    settings = run.config.discriminator
    known = pairs_in_use(run, round_index / run.config.rounds)
    texts = round_texts(
        settings,
        run.pairs.compared[:known],
        fresh,
        run.store,
        seed=run.config.seed,
        round_index=round_index,
    )
    network, metrics = round_update(
        state.discriminator,
        run.training.steps,
        run.players.disc_tokenizer,
        texts,
        settings,
        jax.random.fold_in(state.key, 4),
    )
    check_finite(metrics, round_index)
    metrics["disc/pairs_in_use"] = float(known)
    if (round_index + 1) % run.config.eval.pairs_every == 0 or round_index + 1 == run.config.rounds:
        metrics |= evaluate_pairs(
            run.training.steps,
            network.params,
            run.players.disc_tokenizer,
            run.pairs.heldout,
            settings,
        )
    run.store = update_store(
        run.store,
        fresh,
        settings.replay_capacity,
        seed=run.config.seed,
        round_index=round_index,
    )
    average = state.judge
    if average is not None:
        average = optax.incremental_update(network.params, average, 1 - settings.ema_decay)
    return state.replace(discriminator=network, judge=average), metrics


def score_phase(
    run: Run,
    state: RunState,
    fresh: Sequence[GeneratedText],
    rollout: Rollout,
    rules_B: np.ndarray,
) -> tuple[RunState, np.ndarray | None, jax.Array]:
    """Return (state with new reward statistics, logits [B], rewards [B]) of one snapshot.

    `rules_B` are the rule rewards; the logits are None where `reward.source` does not ask the
    discriminator.
    The penalty of a response without an end comes off after the standardisation, so it is in
    units of the rewards' deviation, and before the choice of the rows to learn from.
    """
    logits_B = None
    if asks_discriminator(run.config):
        texts = [LabelledText(text.prompt, text.response, GENERATED, 0.0) for text in fresh]
        logits_B = score_texts(
            run.training.steps,
            state.discriminator.params if state.judge is None else state.judge,
            run.players.disc_tokenizer,
            texts,
            run.config.discriminator,
        )
    reward = run.config.reward
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
            mask_BR.sum(axis=1), run.config.sampling.max_new_tokens, reward.overlong_tokens
        )
    rewards_B, stats = standardise_rewards(
        scores_B,
        state.reward_stats,
        mode=reward.standardise,
        group_size=run.config.ppo.samples_per_prompt,
        clip=reward.clip,
    )
    rewards_B -= reward.missing_eos_penalty * jnp.asarray(~ended(run, rollout), jnp.float32)
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


def experience_phase(
    run: Run,
    state: RunState,
    rollout: Rollout,
    scored: Scored,
    rewards_B: jax.Array,
    learn_B: np.ndarray | None = None,
) -> tuple[Experience, dict[str, float]]:
    """Turn rewards into advantages by the run's estimator; `learn_B` marks the rows to learn
    from (None: all)."""
    config, ppo, chosen = run.config, run.config.ppo, estimator(run.config)
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


def next_kl_coef(config: Config, state: RunState, kl_per_token: float, rows: int) -> RunState:
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


def evaluate_during(run: Run, state: RunState) -> dict[str, float]:
    """Measure the policy on a part of the first held-out set, by rule."""
    rows = next(iter(run.prompts.heldout.values()))[: run.config.eval.prompts_during]
    verdicts = evaluate_policy(
        run.config,
        run.players,
        run.sampling_params(state),
        rows,
        name="during",
        width=run.prompts.width,
        judges=run.judges,
    )
    found = summarise(verdicts, resamples=run.config.eval.resamples)
    metrics = {}
    for name in ("instruction_strict", "prompt_strict"):
        for part in ("value", "low", "high"):
            suffix = "" if part == "value" else f"_{part}"
            metrics[f"eval/{name}{suffix}"] = found[name][part]
    return metrics
