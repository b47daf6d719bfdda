"""Generate and verify: the responses that a round learns from.

With `grpo.dynamic_sampling` (DAPO, arXiv 2503.14476, section 3.2) groups without a signal are
replaced by groups of further prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from gapo_jax import rng
from gapo_jax.config import Config, system_text
from gapo_jax.data.batching import batch_at, bucket_widths
from gapo_jax.evaluate.accuracy import Verdict, summarise, verify
from gapo_jax.evaluate.text_health import repetition, text_health
from gapo_jax.methods import estimator
from gapo_jax.rng import Stream
from gapo_jax.rollout.generate import Generated, generate, prompt_lengths
from gapo_jax.train.buckets import take_rows
from gapo_jax.train.build import Models
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.self_generated import Prompts, ended_responses
from gapo_jax.train.discriminator.batches import is_accepted
from gapo_jax.train.discriminator.pair_prompts import prompts_of_round
from gapo_jax.train.discriminator.texts import GeneratedText
from gapo_jax.train.round import RoundRollout
from gapo_jax.train.state import GAPOState
from gapo_jax.types import PromptRow, Rollout


def sample_rollout(ctx: TrainContext, state: GAPOState, index: int) -> RoundRollout:
    """Sample and verify the responses of round `index`, again for groups without a signal if the
    method asks for it.

    Raises:
        RunInterrupted: a signal asked for a stop, and the last round boundary is saved.
    """
    with ctx.clock("rollout"):
        rollout = _sample(ctx, state, index)
    ctx.stop_if_asked(state, index)
    return rollout


def _sample(ctx: TrainContext, state: GAPOState, index: int) -> RoundRollout:
    """Sample groups until enough of them have a signal, and keep as many as a round has prompts."""
    config, group = ctx.config, ctx.config.ppo.samples_per_prompt
    grpo = config.grpo if estimator(config) == "grpo" else None
    dynamic = grpo is not None and grpo.dynamic_sampling
    rows, verdicts, every, useful_A = _sample_groups(
        ctx, state, index, attempts=1 + (config.grpo.max_resamples if dynamic else 0)
    )
    rule_rewards_B = rule_rewards(config, verdicts)
    metrics = rollout_metrics(ctx, rows, every, verdicts)
    if (verified_B := ~np.isnan(rule_rewards_B)).any():
        metrics["reward/rule_mean"] = float(rule_rewards_B[verified_B].mean())
    kept_A, counted_B = np.arange(config.ppo.prompts_per_round), None
    learn_B = np.ones(len(kept_A) * group, bool)
    if dynamic:
        # Those with a signal first; where there are too few, others fill the static shape.
        kept_A = np.argsort(~useful_A, kind="stable")[: len(kept_A)]
        learn_B = np.repeat(useful_A[kept_A], group)
        counted_B = learn_B.copy()
        metrics["rollout/groups_sampled"] = float(len(useful_A))
        metrics["rollout/groups_informative"] = float(useful_A.sum())
    chosen = (kept_A[:, None] * group + np.arange(group)).reshape(-1)
    arrays = take_rows(every.rollout, chosen)
    if grpo is not None and grpo.mask_truncated:
        learn_B &= ended_responses(config, ctx.models, arrays)
    rows, texts = [rows[i] for i in chosen], [every.texts[i] for i in chosen]
    verdicts = [verdicts[i] for i in chosen]
    return RoundRollout(
        index=index,
        rows=rows,
        texts=texts,
        arrays=arrays,
        verdicts=verdicts,
        generated=[
            GeneratedText(row.prompt, text, is_accepted(config.discriminator, verdict), index + 1)
            for row, text, verdict in zip(rows, texts, verdicts, strict=True)
        ],
        rule_rewards_B=rule_rewards_B[chosen],
        learn_B=learn_B,
        counted_B=counted_B,
        metrics=metrics,
        response_mask_BR=np.asarray(every.rollout.response_mask_BR),
        device_s=every.device_s,
    )


def _sample_groups(
    ctx: TrainContext, state: GAPOState, index: int, attempts: int
) -> tuple[list[PromptRow], list[Verdict], Generated, np.ndarray]:
    """Sample and verify, up to `attempts` times, until a round's prompts have a signal.

    Returns:
        rows, verdicts and responses of all attempts, and which groups have a signal, bool [A].
    """
    config = ctx.config
    rows: list[PromptRow] = []
    verdicts: list[Verdict] = []
    batches: list[Generated] = []
    useful_A = np.zeros(0, bool)
    for attempt in range(attempts):
        more, generated = sample_responses(ctx, state, index, attempt)
        rows, batches = rows + more, [*batches, generated]
        verdicts += verify(more, generated.texts, ctx.verifiers)
        useful_A = informative(rule_rewards(config, verdicts), config.ppo.samples_per_prompt)
        if useful_A.sum() >= config.ppo.prompts_per_round:
            break
    return rows, verdicts, join(batches), useful_A


def sample_responses(
    ctx: TrainContext, state: GAPOState, index: int, attempt: int = 0
) -> tuple[list[PromptRow], Generated]:
    """Sample `samples_per_prompt` responses to each of the round's prompts.

    Further attempts take the prompts in other orders, with other keys.
    """
    config, pool = ctx.config, ctx.prompts.train
    if config.discriminator.generated_prompts == "pairs":
        prompts = prompts_of_round(config, pool, ctx.pairs, index, attempt)
    else:
        chosen = batch_at(
            config.seed,
            Stream.PROMPT_ORDER,
            attempt,
            step=index,
            n=len(pool),
            batch_size=config.ppo.prompts_per_round,
        )
        prompts = [pool[i] for i in chosen]
    rows = [row for row in prompts for _ in range(config.ppo.samples_per_prompt)]
    generated = generate(
        ctx.models.sample_rollouts or ctx.models.sample,
        ctx.rollout_params(state),
        ctx.models.tokenizer,
        [row.asked for row in prompts],
        rng.row_keys(state.key, Stream.ROLLOUT, index, attempt, count=len(rows)),
        batch_size=config.sampling.batch_size,
        width=ctx.prompts.width,
        temperature=config.sampling.temperature,
        system=system_text(config),
        stop=config.sampling.stop,
    )
    return rows, generated._replace(rollout=without_spare(ctx.prompts, generated.rollout))


def without_spare(prompts: Prompts, rollout: Rollout) -> Rollout:
    """Return a rollout without the leading columns that no training prompt reaches: the sampler
    has them for the held-out prompts, but nobody need score or learn from padding."""
    spare = prompts.width - prompts.train_width
    return rollout.replace(
        tokens_BT=rollout.tokens_BT[:, spare:], mask_BT=rollout.mask_BT[:, spare:]
    )


def rollout_widths(config: Config, models: Models, prompts: Prompts) -> tuple[int, ...]:
    """Return the widths of the buckets that rows of a rollout come in (`ppo.length_buckets`), ()
    for one. Few rows are shorter than half of the prompts."""
    if config.ppo.length_buckets == 1:
        return ()
    texts = [row.asked for row in prompts.train]
    lengths = prompt_lengths(models.tokenizer, texts, system_text(config))
    limit = prompts.train_width + config.sampling.max_new_tokens
    return bucket_widths(config.ppo.length_buckets, float(np.median(lengths)), limit)


def join(batches: Sequence[Generated]) -> Generated:
    """Return several batches of responses as one."""
    if len(batches) == 1:
        return batches[0]
    texts = [text for batch in batches for text in batch.texts]
    rollouts = [batch.rollout for batch in batches]
    rollout = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rollouts)
    return Generated(texts, rollout, sum(batch.device_s for batch in batches))


def rule_rewards(config: Config, verdicts: Sequence[Verdict]) -> np.ndarray:
    """Return the rule reward of each response, float32 [B] in [0, 1].

    The share of its constraints that hold (strict), or 1 if `all` do, by `reward.rule`; 0 for a
    response that repeats itself, which satisfies some constraints by accident
    (`discriminator.max_repetition`). NaN for a prompt without constraints.
    """
    combine = all if config.reward.rule == "all" else np.mean
    limit = config.discriminator.max_repetition

    def reward(verdict: Verdict) -> float:
        if not verdict.strict:
            return np.nan
        return float(combine(verdict.strict)) if repetition(verdict.response) <= limit else 0.0

    return np.array([reward(verdict) for verdict in verdicts], np.float32)


def informative(rule_rewards_B: np.ndarray, group: int) -> np.ndarray:
    """Return which groups of neighbouring rows have unequal rule rewards, bool [B / group]."""
    rewards_AG = rule_rewards_B.reshape(-1, group)
    return rewards_AG.max(axis=1) > rewards_AG.min(axis=1)


def rollout_metrics(
    ctx: TrainContext, rows: Sequence[PromptRow], generated: Generated, verdicts: Sequence[Verdict]
) -> dict[str, float]:
    """Return constraint accuracy (by rule, of prompts with constraints) and the health of the
    sampled text."""
    ended_B = ended_responses(ctx.config, ctx.models, generated.rollout)
    metrics = {
        "response/length": float(np.asarray(generated.rollout.response_mask_BR).sum(1).mean()),
        "response/eos_rate": float(ended_B.mean()),
    }
    metrics |= text_health([row.prompt for row in rows], generated.texts)
    if verified := [verdict for verdict in verdicts if verdict.ids]:
        summary = summarise(verified, ctx.config.seed, resamples=1)
        metrics["constraint/instruction_strict"] = summary["instruction_strict"]["value"]
        metrics["constraint/prompt_strict"] = summary["prompt_strict"]["value"]
        for name, entry in summary["types"].items():
            metrics[f"constraint/type/{name}"] = entry["strict"]["value"]
    return metrics
