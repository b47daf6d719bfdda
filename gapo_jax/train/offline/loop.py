"""The loop of the offline methods: rounds of updates on examples made before training.

A round is `offline.steps_per_round` updates and the unit of logging, evaluation and saving. What an
update learns from is the matter of its batch source: pairs as comparisons of prompts or responses
(`data/preferences.py`), rows of one's own (`row_batches.py`), the texts of the discriminator alone,
or what a method samples in between (`inverse_q.py`, `sgpo.py`). The batch of an update depends on
the seed and its number alone, so a continued run is the same run. `step` in metrics.jsonl counts
updates; `throughput/*` counts the tokens of prompts and responses that pass through the update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gapo_jax.methods import Batches, asks_discriminator, batches_of, method_of
from gapo_jax.train.buckets import Bucketed, compile_all_widths
from gapo_jax.train.checks import OFFLINE_RATES, check_finite, check_kl
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.scoring import evaluate_pairs
from gapo_jax.train.discriminator.warmup import warm_up
from gapo_jax.train.metrics import mean_metrics
from gapo_jax.train.offline.batch_sources import BatchSource, pair_batches, pair_text_batches
from gapo_jax.train.offline.inverse_q import SampledBatches
from gapo_jax.train.offline.row_batches import row_batches, row_text_batches
from gapo_jax.train.offline.sgpo import RefinementBatches
from gapo_jax.train.rounds import PhaseMetrics, run_rounds, save
from gapo_jax.train.state import GAPOState, TrainState
from gapo_jax.types import Metrics

SOURCES: dict[Batches, Callable[[TrainContext, GAPOState], BatchSource]] = {
    "examples": pair_batches,
    "texts": pair_text_batches,
    "samples": SampledBatches,
    "refinements": RefinementBatches,
}
# (state of the network that is trained, batch, widths of the batches) -> (next state, metrics)
Update = Callable[[TrainState, Any, tuple[int, ...]], tuple[TrainState, Metrics]]


def train(ctx: TrainContext, state: GAPOState) -> GAPOState:
    """Run all rounds that are left, saving at round boundaries; return the final state.

    Raises:
        RunInterrupted: asked to stop by a signal; everything needed to continue is saved.
        RunStopped: a loss is not finite or the policy collapses; the last good state, if there is
            one, is saved.
        ValueError: the data gives too few examples that fit; names the keys to change.
    """
    if state.last_saved is None:
        if ctx.rows is None and asks_discriminator(ctx.config):
            state = warm_up(ctx, state)
        state = save(ctx, state, 0)
    with ctx.clock("examples"):
        source = batch_source(ctx, state)
    run_round = functools.partial(offline_round, source, compiled_update(ctx, state))
    return run_rounds(ctx, state, run_round)


def batch_source(ctx: TrainContext, state: GAPOState) -> BatchSource:
    """Return what the updates of a run learn from."""
    if ctx.rows is None:
        return SOURCES[batches_of(ctx.config)](ctx, state)
    texts = method_of(ctx.config).trains == "discriminator"
    return row_text_batches(ctx, ctx.rows) if texts else row_batches(ctx, ctx.rows)


def compiled_update(ctx: TrainContext, state: GAPOState) -> Update:
    """Return the update of the network that the method trains."""
    if method_of(ctx.config).trains == "discriminator":
        return lambda network, batch, widths: ctx.steps.disc_update(network, batch, state.key)
    steps = functools.cache(functools.partial(compile_all_widths, ctx.steps.offline))
    return lambda network, batch, widths: steps(widths)(network, batch, ctx.models.ref_params)


def offline_round(
    source: BatchSource, update: Update, ctx: TrainContext, state: GAPOState, index: int
) -> tuple[GAPOState, PhaseMetrics]:
    """Run the updates of round `index` (from 0); return the state and one line of metrics.

    Raises:
        RunStopped: a loss is not finite or the policy has left the reference.
    """
    source.begin_round(state, index)
    name, first = method_of(ctx.config).trains, index * ctx.updates_per_round
    network, updates, tokens = getattr(state, name), [], np.zeros(2)
    with ctx.clock(name):
        for number in range(first, first + ctx.updates_per_round):
            batch = source.batch(number)
            tokens += token_counts(batch)
            network, metrics = update(network, batch, tuple(source.widths))
            updates.append(metrics)
        metrics = mean_metrics(updates)
    seconds = ctx.clock.last[name]
    check(ctx, metrics, index + 1)
    if name == "discriminator":
        metrics |= evaluate_pairs(
            ctx.steps,
            network.params,
            ctx.models.disc_tokenizer,
            ctx.pairs.heldout,
            ctx.config.discriminator,
        )
    metrics |= {
        f"time/{name}_s": seconds,
        "throughput/real_tokens_per_s": float(tokens[0] / seconds),
        "throughput/padded_tokens_per_s": float(tokens[1] / seconds),
    }
    return state.replace(**{name: network}), {name: metrics}


def token_counts(batch: Any) -> np.ndarray:
    """Return (real, padded) tokens of the rows of a batch, float64 [2]."""
    whole = batch.batch if isinstance(batch, Bucketed) else batch
    mask_BT = np.asarray(whole.mask_BT)
    width = batch.width if isinstance(batch, Bucketed) else mask_BT.shape[1]
    return np.array([mask_BT.sum(), len(mask_BT) * width], np.float64)


def check(ctx: TrainContext, metrics: dict[str, float], number: int) -> None:
    """Raise RunStopped when a loss or gradient is not finite, or own samples show a collapse."""
    when = f"round {number}"
    check_finite(metrics, when, OFFLINE_RATES)
    remedy = f"lower {OFFLINE_RATES['policy']} or config.inverse_q.strength"
    check_kl(metrics.get("kl/ref", 0.0), ctx.config.ppo.kl_limit, when, remedy)
