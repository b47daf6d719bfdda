"""Rounds one after the other, saved at their boundaries: for the online and the offline methods."""

from __future__ import annotations

from collections.abc import Callable

import jax

from gapo_jax.train.best import is_enough, keep_best
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.texts import replay_to_json
from gapo_jax.train.evaluation import maybe_evaluate
from gapo_jax.train.metrics import progress
from gapo_jax.train.row_evaluation import heldout_metrics, write_rows
from gapo_jax.train.runtime import RunStopped
from gapo_jax.train.state import GAPOState

# By phase, the name of the line in metrics.jsonl.
PhaseMetrics = dict[str, dict[str, float]]
Round = Callable[[TrainContext, GAPOState, int], tuple[GAPOState, PhaseMetrics]]


def run_rounds(ctx: TrainContext, state: GAPOState, run_round: Round) -> GAPOState:
    """Run the rounds that are left by `run_round(ctx, state, index)`, write what they measured, and
    save at their boundaries.

    `step` in metrics.jsonl counts updates; every line of a round carries the count at the end of
    that round, so a continued run knows which lines its checkpoint has not seen.

    Raises:
        RunInterrupted: a signal asked for a stop; everything needed to continue is saved.
        RunStopped: the run stopped itself; the last good round boundary is saved.
    """
    config, finished = ctx.config, ctx.config.rounds
    for index in progress(range(int(state.round), config.rounds), "rounds"):
        if is_enough(ctx):
            finished = index
            break
        ctx.stop_if_asked(state, index)
        # The updates of a round take the memory of this state.
        boundary = None if state.last_saved == index else host_copy(state)
        try:
            state, metrics = run_round(ctx, state, index)
        except RunStopped as stopped:
            if boundary is not None:
                save(ctx, boundary, index)
            ctx.checkpointer.wait()
            stopped.saved = index
            raise
        finished = index + 1
        for phase, values in metrics.items():
            ctx.writer.write(finished * ctx.updates_per_round, finished, phase, values)
        state = state.replace(round=state.round + 1)
        evaluate_round(ctx, state, finished)
        keep_best(ctx, state, finished)
        if ctx.asked_to_stop() or finished % config.checkpoint.every_rounds == 0:
            state = save(ctx, state, finished)
    state = save(ctx, state, finished)
    ctx.stop_if_asked(state, finished)
    return state


def evaluate_round(ctx: TrainContext, state: GAPOState, finished: int) -> None:
    """Measure what is held out, if it is due after `finished` rounds."""
    if ctx.rows is None:
        maybe_evaluate(ctx, state, finished)
        return
    every = ctx.config.eval.every_rounds
    if every and finished % every == 0 and finished < ctx.config.rounds:
        with ctx.clock("eval"):
            metrics = heldout_metrics(ctx, state)
        write_rows(ctx, metrics, finished)


def save(ctx: TrainContext, state: GAPOState, finished: int) -> GAPOState:
    """Start an asynchronous checkpoint of everything, after `finished` rounds; return the state
    that knows of it."""
    if state.last_saved == finished:
        return state
    with ctx.clock("save"):
        host = {"replay": replay_to_json(state.replay), "seconds": dict(ctx.clock.seconds)}
        ctx.checkpointer.save(finished, state, host)
    metrics = {"time/save_s": ctx.clock.last["save"]}
    ctx.writer.write(finished * ctx.updates_per_round, finished, "save", metrics)
    return state.replace(last_saved=finished)


def host_copy(state: GAPOState) -> GAPOState:
    """Return a copy in the memory of the host, in the same shards on every process."""

    def copy(leaf: jax.Array) -> jax.Array:
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))

    return jax.tree.map(copy, state)
