"""Rounds one after the other, saved at their boundaries: for the online and the offline methods."""

from __future__ import annotations

from collections.abc import Callable

import jax

from gapo_jax import io
from gapo_jax.methods import method_of
from gapo_jax.train.best import is_enough, keep_best
from gapo_jax.train.checks import OFFLINE_RATES, ONLINE_RATES, check_networks, norms_of
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.texts import replay_to_json
from gapo_jax.train.evaluation import evaluate_part
from gapo_jax.train.metrics import progress
from gapo_jax.train.online.heldout import measure_part_of_rewards
from gapo_jax.train.row_evaluation import heldout_metrics, write_rows
from gapo_jax.train.runtime import RunStopped
from gapo_jax.train.state import GAPOState
from gapo_jax.train.workdir import STOPPED

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
    rates = ONLINE_RATES if method_of(config).loop == "online" else OFFLINE_RATES
    for index in progress(range(int(state.round), config.rounds), "rounds"):
        if is_enough(ctx):
            finished = index
            break
        ctx.stop_if_asked(state, index)
        # The updates of a round take the memory of this state.
        boundary = None if state.last_saved == index else host_copy(state)
        norms = norms_of(state)
        try:
            state, metrics = run_round(ctx, state, index)
            check_networks(norms, state, f"round {index + 1}", rates)
        except RunStopped as stopped:
            keep_last_good(ctx, boundary, index, stopped)
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
    """Measure what is held out, if it is due after `finished` rounds; after the last one everything
    is measured anyway."""
    every = ctx.config.eval.every_rounds
    if not every or finished % every or finished == ctx.config.rounds:
        return
    if ctx.rows is None:
        evaluate_part(ctx, state, finished)
        measure_part_of_rewards(ctx, state, finished)
        return
    with ctx.clock("eval"):
        metrics = heldout_metrics(ctx, state)
    write_rows(ctx, metrics, finished)


def keep_last_good(
    ctx: TrainContext, boundary: GAPOState | None, index: int, stopped: RunStopped
) -> None:
    """Leave the last good state of a run that stops itself in round `index` (from 0) as its newest
    checkpoint, and note in the workdir that the run stopped itself.

    Args:
        ctx: the run.
        boundary: the state that the round began with; None where that is saved already.
        index: of the round.
        stopped: why; told how many rounds the good state has.
    """
    if not stopped.start_is_good:
        ctx.checkpointer.wait()
        if index in ctx.checkpointer.steps():
            ctx.checkpointer.set_aside(index, "collapsed")
    elif boundary is not None:
        save(ctx, boundary, index)
    ctx.checkpointer.wait()
    stopped.saved = ctx.checkpointer.latest()
    if ctx.processes.first:
        note = {"round": index + 1, "reason": str(stopped), "saved": stopped.saved}
        io.write_json(ctx.workdir / STOPPED, note)


def save(ctx: TrainContext, state: GAPOState, finished: int) -> GAPOState:
    """Start an asynchronous checkpoint of everything, after `finished` rounds; return the state
    that knows of it."""
    if state.last_saved == finished:
        return state
    # On the disk before the checkpoint, so that a kill loses lines of later rounds only.
    ctx.writer.flush()
    with ctx.clock("save"):
        host = {"replay": replay_to_json(state.replay), "seconds": dict(ctx.clock.seconds)}
        ctx.checkpointer.save(finished, state, host)
    if ctx.processes.first:  # a run that goes on well has not stopped itself
        (ctx.workdir / STOPPED).unlink(missing_ok=True)
    metrics = {"time/save_s": ctx.clock.last["save"]}
    ctx.writer.write(finished * ctx.updates_per_round, finished, "save", metrics)
    return state.replace(last_saved=finished)


def host_copy(state: GAPOState) -> GAPOState:
    """Return a copy in the memory of the host, in the same shards on every process."""

    def copy(leaf: jax.Array) -> jax.Array:
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))

    return jax.tree.map(copy, state)
