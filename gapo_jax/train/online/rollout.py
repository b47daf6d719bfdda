"""What a round learns from: sampled responses with their verdicts and rule rewards.

With `grpo.dynamic_sampling` (DAPO, arXiv 2503.14476, section 3.2) groups without a signal are
replaced by groups of further prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gapo_jax.config import Config
from gapo_jax.config.online import estimator
from gapo_jax.evaluate.accuracy import Verdict, verify
from gapo_jax.evaluate.text_health import repetition
from gapo_jax.rollout.generate import Generated
from gapo_jax.train.online.phases import (
    TrainContext,
    ended,
    rollout_metrics,
    sample_responses,
    take_rows,
)
from gapo_jax.train.state import GAPOState
from gapo_jax.types import PromptRow


class Sampled(NamedTuple):
    """A round's responses, the samples of a prompt next to each other.

    `rules_B` are the rule rewards, float32; `learn_B` is 0 for rows that must not be learned from;
    `metrics` and `tokens` (real, padded) are those of everything that was sampled.
    """

    rows: list[PromptRow]
    generated: Generated
    verdicts: list[Verdict]
    rules_B: np.ndarray
    learn_B: np.ndarray
    metrics: dict[str, float]
    tokens: tuple[int, int]


def rule_rewards(config: Config, verdicts: Sequence[Verdict]) -> np.ndarray:
    """Return the rule reward of each response, float32 [B] in [0, 1].

    The share of its constraints that hold (strict), or 1 if `all` do, by `reward.rule`; 0 for a
    response that repeats itself, which satisfies some constraints by accident
    (`discriminator.max_repetition`).
    """
    judge = all if config.reward.rule == "all" else np.mean
    limit = config.discriminator.max_repetition
    return np.array(
        [
            float(judge(verdict.strict)) if repetition(verdict.response) <= limit else 0.0
            for verdict in verdicts
        ],
        np.float32,
    )


def informative(rules_B: np.ndarray, group: int) -> np.ndarray:
    """Return which groups of neighbouring rows have unequal rule rewards, bool [B / group]."""
    rules_AG = rules_B.reshape(-1, group)
    return rules_AG.max(axis=1) > rules_AG.min(axis=1)


def sample_round(ctx: TrainContext, state: GAPOState, round_index: int) -> Sampled:
    """Sample and verify the responses of a round, again for groups without a signal if asked."""
    config, group = ctx.config, ctx.config.ppo.samples_per_prompt
    dynamic = estimator(config) == "grpo" and config.grpo.dynamic_sampling
    rows, verdicts, parts, wanted = [], [], [], config.ppo.prompts_per_round
    rules_B, useful_A = np.zeros(0, np.float32), np.zeros(0, bool)
    for attempt in range(1 + (config.grpo.max_resamples if dynamic else 0)):
        more, generated = sample_responses(ctx, state, round_index, attempt)
        rows, parts = rows + more, [*parts, generated]
        verdicts += verify(more, generated.texts, ctx.verifiers)
        rules_B = rule_rewards(config, verdicts)
        useful_A = informative(rules_B, group)
        if useful_A.sum() >= wanted:
            break
    every = merge(parts)
    metrics = rollout_metrics(ctx, rows, every, verdicts)
    mask_BR = np.asarray(every.rollout.response_mask_BR)
    tokens = (int(mask_BR.sum()), mask_BR.size)
    # Those with a signal first; where there are too few, others fill the static shape unlearned.
    kept_A = np.argsort(~useful_A, kind="stable")[:wanted] if dynamic else np.arange(wanted)
    learn_B = np.repeat(useful_A[kept_A] | (not dynamic), group)
    if dynamic:
        metrics["rollout/groups_sampled"] = float(len(useful_A))
        metrics["rollout/groups_informative"] = float(useful_A.sum())
    chosen = (kept_A[:, None] * group + np.arange(group)).reshape(-1)
    texts = [every.texts[i] for i in chosen]
    kept = Generated(texts, take_rows(every.rollout, chosen), every.device_s)
    if estimator(config) == "grpo" and config.grpo.mask_truncated:
        learn_B &= ended(ctx, kept.rollout)
    return Sampled(
        rows=[rows[i] for i in chosen],
        generated=kept,
        verdicts=[verdicts[i] for i in chosen],
        rules_B=rules_B[chosen],
        learn_B=learn_B,
        metrics=metrics | {"reward/rule_mean": float(rules_B.mean())},
        tokens=tokens,
    )


def merge(parts: Sequence[Generated]) -> Generated:
    """Return several batches of responses as one."""
    if len(parts) == 1:
        return parts[0]
    texts = [text for part in parts for text in part.texts]
    rollouts = [part.rollout for part in parts]
    rollout = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rollouts)
    return Generated(texts, rollout, sum(part.device_s for part in parts))
