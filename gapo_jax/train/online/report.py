"""What a round of an online method leaves in metrics.jsonl and samples.jsonl."""

from __future__ import annotations

import numpy as np

from gapo_jax.methods import method_of
from gapo_jax.train.context import TrainContext
from gapo_jax.train.round import Rewards, RoundExperience, RoundRollout


def write_samples(ctx: TrainContext, rollout: RoundRollout, rewards: Rewards) -> None:
    """Append the round's responses with score and verdicts to samples.jsonl."""
    number = rollout.index + 1
    for i, (row, verdict) in enumerate(zip(rollout.rows, rollout.verdicts, strict=True)):
        sample = {
            "step": number * ctx.updates_per_round,
            "round": number,
            "prompt": row.prompt,
            "constraints": [constraint.to_json() for constraint in row.constraints],
            "response": rollout.texts[i],
            "score": None if rewards.logits_B is None else float(rewards.logits_B[i]),
            "rule_reward": _number(rollout.rule_rewards_B[i]),
            "verdicts": list(verdict.strict),
        }
        if ctx.config.reward.sources:
            scores = map(_number, rewards.sources.scores_BK[i])
            sample["scores"] = dict(zip(rewards.sources.names, scores, strict=True))
        if rewards.sources.extra:
            sample["extra"] = {name: values[i] for name, values in rewards.sources.extra.items()}
        ctx.writer.sample(sample)


def _number(value: np.floating) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)


def write_rollout(
    ctx: TrainContext,
    rollout: RoundRollout,
    rewards: Rewards,
    experience: RoundExperience,
    disc_metrics: dict[str, float],
) -> None:
    """Write the lines `rollout` and `discriminator` of a round before the policy is updated: should
    the update end the run, they say what it learned from."""
    metrics = rollout.metrics | rewards.sources.metrics | experience.metrics
    mask_BR, seconds = rollout.response_mask_BR, ctx.clock.last["rollout"]
    metrics["throughput/real_tokens_per_s"] = int(mask_BR.sum()) / seconds
    metrics["throughput/padded_tokens_per_s"] = mask_BR.size / seconds
    if rewards.logits_B is not None:
        metrics["reward/score_mean"] = float(rewards.logits_B.mean())
    metrics |= {
        f"time/{phase}_s": ctx.clock.last[phase] for phase in ("rollout", "experience", "score")
    }
    number = rollout.index + 1
    step = number * ctx.updates_per_round
    ctx.writer.write(step, number, "rollout", metrics)
    if disc_metrics:
        ctx.writer.write(step, number, "discriminator", disc_metrics)


def device_wait(ctx: TrainContext, rollout: RoundRollout) -> float:
    """Return the share of a round in which only the host worked: text decoded and verified. In the
    other phases batches are tokenised while the device computes."""
    last = ctx.clock.last
    phases = ("rollout", "score", "experience", "policy")
    phases += ("discriminator",) if method_of(ctx.config).adversarial else ()
    return (last["rollout"] - rollout.device_s) / sum(last[phase] for phase in phases)
