"""What a run says at its end: summary.json, which the console and the report read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gapo_jax.evaluate.exploits import health_of_verdicts
from gapo_jax.records import JsonObject
from gapo_jax.train.best import best_round
from gapo_jax.train.build import initial_state
from gapo_jax.train.clock import peak_memory_gb
from gapo_jax.train.context import TrainContext
from gapo_jax.train.evaluation import VerdictSets, compare_sets, summarise_sets
from gapo_jax.train.metrics import read_metrics
from gapo_jax.train.state import GAPOState, relative_change


def summarise_run(
    ctx: TrainContext,
    state: GAPOState,
    before: VerdictSets,
    after: VerdictSets,
    changes: Mapping[str, float],
) -> JsonObject:
    """Return the contents of summary.json; `changes` are those of `relative_param_change`."""
    config = ctx.config
    last_line = read_metrics(ctx.workdir)[-1]
    health = {
        label: {name: health_of_verdicts(verdicts) for name, verdicts in sets.items()}
        for label, sets in (("before", before), ("after", after))
    }
    return {
        "method": ctx.config.method,
        "rounds": int(state.round),
        "before": summarise_sets(config, before),
        "after": summarise_sets(config, after),
        "difference": compare_sets(config, before, after),
        "text_health": health,
        "samples": sample_table(before, after),
        "relative_change": dict(changes),
        "types": list(ctx.prompts.type_ids),
        "pairs": len(ctx.pairs.train),
        "discriminator": discriminator_on_pairs(ctx.workdir),
        "time_s": dict(ctx.clock.seconds),
        "throughput": mean_throughput(ctx.workdir),
        "compile_count": last_line["compile/count"],
        "compile_s": round(last_line["compile/seconds"], 1),
        "peak_memory_gb": peak_memory_gb(),
    }


def summarise_rows(
    ctx: TrainContext,
    state: GAPOState,
    before: Mapping[str, float],
    after: Mapping[str, float],
    changes: Mapping[str, float],
) -> JsonObject:
    """Return the contents of summary.json of a run that learned from rows of one's own; `before`
    and `after` are what the held-out ones say."""
    assert ctx.rows is not None
    rows, last_line = ctx.rows, read_metrics(ctx.workdir)[-1]
    best = best_round(ctx)[0] if ctx.config.checkpoint.best else int(state.round)
    return {
        "method": ctx.config.method,
        "rounds": int(state.round),
        "rows": {
            "source": ctx.config.data.source,
            "train": len(rows.train),
            "development": len(rows.development),
            "heldout": len(rows.heldout),
            "left_out": rows.table.facts.left_out,
            "kinds": rows.table.facts.kinds,
        },
        "exported_round": best,
        "exported_step": best * ctx.updates_per_round,
        "stopped_early": int(state.round) < ctx.config.rounds,
        "heldout": {"before": dict(before), "after": dict(after)},
        "relative_change": dict(changes),
        "time_s": dict(ctx.clock.seconds),
        "throughput": mean_throughput(ctx.workdir),
        "compile_count": last_line["compile/count"],
        "compile_s": round(last_line["compile/seconds"], 1),
        "peak_memory_gb": peak_memory_gb(),
    }


def relative_param_change(ctx: TrainContext, state: GAPOState) -> dict[str, float]:
    """Return |after - before| / |before| of each network: the proof that it learned something."""
    start = initial_state(ctx.config, ctx.models, ctx.steps)
    names = ["policy", *(["critic"] if state.critic is not None else [])]
    if state.discriminator.params:
        names.insert(1, "discriminator")
    return {
        name: relative_change(getattr(start, name).params, getattr(state, name).params)
        for name in names
    }


def sample_table(before: VerdictSets, after: VerdictSets, count: int = 3) -> list[JsonObject]:
    """Return prompts with the text before and after: spread over the first held-out set, not
    chosen by outcome; none without a set."""
    if not before:
        return []
    name = next(iter(before))
    olds, news = before[name], after[name]
    picks = dict.fromkeys(index * len(olds) // count for index in range(count))
    return [
        {
            "prompt": olds[i].prompt,
            "constraints": list(olds[i].ids),
            "before": olds[i].response,
            "after": news[i].response,
            "verdicts_before": list(olds[i].strict),
            "verdicts_after": list(news[i].strict),
        }
        for i in picks
    ]


def mean_throughput(workdir: Path) -> dict[str, float]:
    """Return the mean speed over all rounds in tokens a second, real and padded: of sampling, or of
    training where the method does not sample."""
    names = ("throughput/real_tokens_per_s", "throughput/padded_tokens_per_s")
    lines = [line for line in read_metrics(workdir) if names[0] in line]
    return {name: sum(line[name] for line in lines) / max(len(lines), 1) for name in names}


def discriminator_on_pairs(workdir: Path) -> dict[str, dict[str, float]]:
    """Return what the discriminator makes of the held-out pairs, when first and when last measured
    ("first", "last"): "accuracy", "acc_accepted", "acc_rejected", "pair_order". Empty without."""
    prefix = "disc/heldout_"
    measured = [
        {name.removeprefix(prefix): value for name, value in line.items() if prefix in name}
        for line in read_metrics(workdir)
    ]
    measured = [metrics for metrics in measured if metrics]
    return {"first": measured[0], "last": measured[-1]} if measured else {}
