"""Measuring a policy on held-out prompts: before, during and after training, by rule alone.

The discriminator has no say here: a policy that has learned to please it must not look better.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from gapo_jax import io, rng
from gapo_jax.config import Config, system_text
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.evaluate.accuracy import Verdict, paired_difference, read_verdicts, summarise, verify
from gapo_jax.evaluate.bootstrap import as_metrics
from gapo_jax.evaluate.console import levels
from gapo_jax.evaluate.exploits import health_of_verdicts
from gapo_jax.methods import method_of
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream
from gapo_jax.rollout.generate import Generated, generate
from gapo_jax.train.build import Models
from gapo_jax.train.clock import counter
from gapo_jax.train.context import TrainContext
from gapo_jax.train.likelihood import start_logprobs
from gapo_jax.train.metrics import read_metrics
from gapo_jax.train.runtime import stop_between_batches
from gapo_jax.train.state import GAPOState
from gapo_jax.types import Params, PromptRow

# By held-out set.
log = logging.getLogger("gapo_jax")
VerdictSets = dict[str, list[Verdict]]


def measure(ctx: TrainContext, params: Callable[[], Params], name: str) -> VerdictSets:
    """Return the verdicts of all held-out sets on a policy; read back from the workdir where they
    are there already, for the same prompts.

    Args:
        ctx: the run.
        params: makes the policy's parameters as the sampler reads them, if they are needed.
        name: of the file, `eval_NAME.jsonl`.

    Raises:
        RunInterrupted: a signal asked for a stop; nothing of the measurement is kept.
    """
    path = ctx.workdir / f"eval_{name}.jsonl"
    if not ctx.prompts.heldout:
        return {}
    if path.exists():
        kept = read_verdicts(path)
        if _is_of_these_prompts(ctx, kept):
            return kept
        # A run that an earlier version began has other prompts: random streams have changed.
        log.warning("%s is of other held-out prompts than this run has: measuring again", path)
    with ctx.clock("eval"):
        weights, records = params(), []
        for set_name, rows in ctx.prompts.heldout.items():
            total = len(rows) * ctx.config.eval.samples_per_prompt
            with counter(total, f"{name}: {set_name}") as advance:
                verdicts = evaluate_policy(
                    ctx.config,
                    ctx.models,
                    weights,
                    rows,
                    name=set_name,
                    width=ctx.prompts.width,
                    verifiers=ctx.verifiers,
                    on_batch=stop_between_batches(ctx.stop, ctx.processes, advance),
                )
            records += [{"set": set_name, **v.to_json()} for v in verdicts]
    io.write_jsonl(path, records)
    return read_verdicts(path)


def _is_of_these_prompts(ctx: TrainContext, verdicts: VerdictSets) -> bool:
    """Return whether verdicts are of the run's held-out sets as they are, prompt by prompt."""
    return {name: {v.prompt for v in part} for name, part in verdicts.items()} == {
        name: {row.prompt for row in rows} for name, rows in ctx.prompts.heldout.items()
    }


def write_eval(
    ctx: TrainContext,
    verdicts: VerdictSets,
    finished: int,
    more: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Write one metrics line with the accuracies and the text health of all held-out sets, and
    `more` metrics.

    A run that is continued after its last round may have written it already.
    """
    if not ctx.processes.first:
        return
    step = finished * ctx.updates_per_round
    lines = read_metrics(ctx.workdir)
    if any(line["phase"] == "eval" and line["step"] == step for line in lines):
        return
    metrics = dict(more)
    for set_name, summary in summarise_sets(ctx.config, verdicts).items():
        metrics |= _accuracies(summary, f"eval/{set_name}", set_name)
        for name, value in health_of_verdicts(verdicts[set_name]).items():
            metrics[f"eval/{set_name}/{name.removeprefix('response/')}"] = value
    metrics["time/eval_s"] = ctx.clock.last.get("eval", 0.0)
    ctx.writer.write(step, finished, "eval", metrics)


def evaluate_part(ctx: TrainContext, state: GAPOState, finished: int) -> None:
    """Measure the policy on a part of the first held-out set, after `finished` rounds."""
    config = ctx.config
    if method_of(config).trains != "policy":  # it is the one that was measured before
        return
    if not ctx.prompts.heldout:  # nothing to verify: see `online.heldout`
        return
    with ctx.clock("eval"):
        rows = next(iter(ctx.prompts.heldout.values()))[: config.eval.prompts_during]
        verdicts = evaluate_policy(
            config,
            ctx.models,
            ctx.sampling_params(state),
            rows,
            name="during",
            width=ctx.prompts.width,
            verifiers=ctx.verifiers,
        )
        summary = summarise(verdicts, config.seed, config.eval.resamples)
        metrics = _accuracies(summary, "eval", "during")
    metrics["time/eval_s"] = ctx.clock.last["eval"]
    ctx.writer.write(finished * ctx.updates_per_round, finished, "eval", metrics)


def _accuracies(
    summary: Mapping[str, dict[str, float]], prefix: str, set_name: str
) -> dict[str, float]:
    """Return the accuracies to show of a held-out set with their intervals, as metrics."""
    return as_metrics({name: summary[name] for name in levels(set_name)}, f"{prefix}/")


def evaluate_policy(
    config: Config,
    models: Models,
    params: Params,
    rows: Sequence[PromptRow],
    *,
    name: str,
    width: int,
    verifiers: VerifierPool | None = None,
    on_batch: Callable[[int], object] = lambda done: None,
) -> list[Verdict]:
    """Sample `eval.samples_per_prompt` responses for each row and verify them."""
    samples, generated = sample_heldout(
        config, models, params, rows, name=name, width=width, on_batch=on_batch
    )
    verdicts = verify(samples, generated.texts, verifiers)
    if not config.eval.likelihood:
        return verdicts
    likely_B = start_logprobs(models, generated.rollout, config.sampling.batch_size)
    return [
        dataclasses.replace(verdict, start_logprob=float(value))
        for verdict, value in zip(verdicts, likely_B, strict=True)
    ]


def sample_heldout(
    config: Config,
    models: Models,
    params: Params,
    rows: Sequence[PromptRow],
    *,
    name: str,
    width: int,
    on_batch: Callable[[int], object] = lambda done: None,
) -> tuple[list[PromptRow], Generated]:
    """Sample `eval.samples_per_prompt` responses for each row; return the row of each with them.

    The keys depend on seed, set name, row and sample alone, so before and after are sampled with
    the same random numbers and differ by the weights only.
    """
    samples = [row for row in rows for _ in range(config.eval.samples_per_prompt)]
    keys_B = rng.row_keys(config.seed, Stream.EVALUATION, name, count=len(samples))
    generated = generate(
        models.sample,
        params,
        models.tokenizer,
        [row.asked for row in rows],
        keys_B,
        batch_size=config.sampling.batch_size,
        width=width,
        temperature=config.eval.temperature,
        system=system_text(config),
        stop=config.sampling.stop,
        on_batch=on_batch,
    )
    return samples, generated


def summarise_sets(config: Config, verdicts: Mapping[str, Sequence[Verdict]]) -> JsonObject:
    """Return the accuracies of each held-out set with 95% bootstrap intervals."""
    settings = config.seed, config.eval.resamples
    return {name: summarise(rows, *settings) for name, rows in verdicts.items()}


def compare_sets(
    config: Config,
    before: Mapping[str, Sequence[Verdict]],
    after: Mapping[str, Sequence[Verdict]],
) -> JsonObject:
    """Return after minus before for each set, paired by prompt, with 95% intervals."""
    settings = config.seed, config.eval.resamples
    return {name: paired_difference(before[name], after[name], *settings) for name in before}
