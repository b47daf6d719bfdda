"""Measuring a policy on held-out prompts that nothing verifies: by the sources of its reward.

This is the measure that there is for a reward of one's own. It is no independent one: a policy that
has learned to please a source looks better by it, whatever people would say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gapo_jax import io
from gapo_jax.config import updates_per_round
from gapo_jax.evaluate.bootstrap import as_metrics, interval, rates, resampled_rates
from gapo_jax.methods import asks_discriminator
from gapo_jax.records import JsonObject
from gapo_jax.rewards.scores import discriminator_scores
from gapo_jax.train.clock import counter
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.prompts import HELDOUT
from gapo_jax.train.discriminator.scoring import score_texts
from gapo_jax.train.discriminator.texts import GeneratedText
from gapo_jax.train.evaluation import sample_heldout
from gapo_jax.train.online.reward_sources import (
    Sampled,
    begin_scoring,
    response_ids,
    run_sources,
)
from gapo_jax.train.runtime import stop_between_batches
from gapo_jax.train.state import GAPOState
from gapo_jax.types import Params, PromptRow

# One for each response: "key", "prompt", "response", "rewards" by source (None: it says nothing).
RewardRecords = list[JsonObject]


def measure_rewards(ctx: TrainContext, params: Callable[[], Params], name: str) -> RewardRecords:
    """Return what the reward sources say of responses to the held-out prompts without constraints;
    read back from the workdir where it is there already.

    Args:
        ctx: the run.
        params: makes the policy's parameters as the sampler reads them, if they are needed.
        name: of the file, `eval_NAME_rewards.jsonl`.

    Raises:
        RunInterrupted: a signal asked for a stop; nothing of the measurement is kept.
    """
    rows = ctx.prompts.rewarded
    if not rows:
        return []
    path = ctx.workdir / _file(name)
    if not path.exists():
        total = len(rows) * ctx.config.eval.samples_per_prompt
        with ctx.clock("eval"), counter(total, f"{name}: rewards") as advance:
            on_batch = stop_between_batches(ctx.stop, ctx.processes, advance)
            records = _sample_and_score(ctx, params(), rows, HELDOUT, on_batch)
        io.write_jsonl(path, records)
    return list(io.read_jsonl(path))


def _file(name: str) -> str:
    return f"eval_{name}_rewards.jsonl"


def measure_part_of_rewards(ctx: TrainContext, state: GAPOState, finished: int) -> None:
    """Write the mean rewards of a part of the held-out prompts, after `finished` rounds."""
    config = ctx.config
    rows = ctx.prompts.rewarded[: config.eval.prompts_during]
    if not rows:
        return
    with ctx.clock("eval"):
        records = _sample_and_score(ctx, ctx.sampling_params(state), rows, "during")
        means = mean_rewards([records], config.eval.resamples)[0]
    metrics = as_metrics(means, "eval/reward/")
    metrics["time/eval_s"] = ctx.clock.last["eval"]
    ctx.writer.write(finished * ctx.updates_per_round, finished, "eval", metrics)


def _sample_and_score(
    ctx: TrainContext,
    params: Params,
    rows: Sequence[PromptRow],
    name: str,
    on_batch: Callable[[int], object] = lambda done: None,
) -> RewardRecords:
    """Sample responses and ask all sources, as many responses at a time as a round has."""
    config = ctx.config
    samples, generated = sample_heldout(
        config, ctx.models, params, rows, name=name, width=ctx.prompts.width, on_batch=on_batch
    )
    names = [source.name for source in run_sources(config)]
    ids, records = response_ids(generated.rollout), []
    size = config.ppo.prompts_per_round * config.ppo.samples_per_prompt
    for start in range(0, len(samples), size):
        part = slice(start, start + size)
        sampled = Sampled(samples[part], generated.texts[part], ids[part])
        for row, text, scores in zip(*sampled[:2], _scores(ctx, sampled), strict=True):
            values = [None if np.isnan(score) else float(score) for score in scores]
            rewards = dict(zip(names, values, strict=True))
            record = {"key": row.key, "prompt": row.prompt, "response": text, "rewards": rewards}
            records.append(record)
    return records


def _scores(ctx: TrainContext, sampled: Sampled) -> np.ndarray:
    """Return the scores of responses, float32 [B, K].

    Before and after training the sources are the same: functions are told that the training is
    over, and a discriminator is asked as it was loaded, since nothing trains it without pairs.
    """
    config = ctx.config
    steps = config.rounds, updates_per_round(config)
    collect = begin_scoring(config, ctx.rewards, ctx.processes, sampled, *steps)
    built_in = {"verifier": np.full(len(sampled.rows), np.nan, np.float32)}
    if asks_discriminator(config):
        texts = [
            GeneratedText(row.prompt, text, False, 0)
            for row, text in zip(sampled.rows, sampled.texts, strict=True)
        ]
        models = ctx.models
        logits_B = score_texts(
            ctx.steps, models.disc_init_params, models.disc_tokenizer, texts, config.discriminator
        )
        built_in["discriminator"] = discriminator_scores(logits_B, config.reward.squash)
    return collect(built_in).scores_BK


def mean_rewards(
    sides: Sequence[RewardRecords], resamples: int
) -> list[dict[str, dict[str, float]]]:
    """Return the mean reward of each source with its 95% interval, for each of several
    measurements of the same prompts, and of two also the difference, second minus first.

    The intervals are by a bootstrap over prompts, with the same draws for all.
    """
    prompts = list(dict.fromkeys((r["key"], r["prompt"]) for r in sides[0]))
    places = {prompt: index for index, prompt in enumerate(prompts)}
    names = [
        name
        for name in sides[0][0]["rewards"]
        if all(any(r["rewards"][name] is not None for r in records) for records in sides)
    ]
    sums = np.zeros((len(prompts), len(sides) * len(names), 2))
    for side, records in enumerate(sides):
        for record in records:
            for k, name in enumerate(names):
                if (value := record["rewards"][name]) is not None:
                    at = places[record["key"], record["prompt"]], side * len(names) + k
                    sums[at] += value, 1
    values = rates(sums.sum(axis=0)).reshape(len(sides), -1)
    draws = resampled_rates(sums, 0, resamples).reshape(len(sides), len(names), -1)
    if len(sides) == 2:
        values = np.concatenate([values, values[1:] - values[:1]])
        draws = np.concatenate([draws, draws[1:] - draws[:1]])
    return [
        {name: interval(values[side, k], draws[side, k]) for k, name in enumerate(names)}
        for side in range(len(values))
    ]


def reward_metrics(ctx: TrainContext, records: RewardRecords) -> dict[str, float]:
    """Return the mean rewards of a measurement as metrics."""
    if not records:
        return {}
    means = mean_rewards([records], ctx.config.eval.resamples)[0]
    return as_metrics(means, f"eval/{HELDOUT}/reward/")


def rewards_in_summary(ctx: TrainContext) -> JsonObject:
    """Return {"rewards": {"before", "after", "difference"}}, each {source: {"value", "low",
    "high"}}, and samples, for summary.json, of the measurements that lie in the workdir; empty
    where nothing is measured."""
    if not ctx.prompts.rewarded:
        return {}
    names = "before", f"after_{ctx.config.rounds}"
    before, after = ([*io.read_jsonl(ctx.workdir / _file(name))] for name in names)
    means = mean_rewards([before, after], ctx.config.eval.resamples)
    summary = {"rewards": dict(zip(("before", "after", "difference"), means, strict=True))}
    if ctx.prompts.heldout:  # whose samples the summary has
        return summary
    picks = dict.fromkeys(index * len(before) // 3 for index in range(3))
    samples = [
        {
            "prompt": before[i]["prompt"],
            "constraints": [],
            "before": before[i]["response"],
            "after": after[i]["response"],
            "verdicts_before": [],
            "verdicts_after": [],
        }
        for i in picks
    ]
    return summary | {"samples": samples}
