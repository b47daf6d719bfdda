"""The best network of a run by a measure of development rows (`config.checkpoint.best`).

Which round is the best one is read off metrics.jsonl, whose lines a continued run cuts back to its
checkpoint, so nothing else has to be remembered. The parameters of the best round lie beside the
checkpoints, in `best/ROUND`.
"""

from __future__ import annotations

from gapo_jax.checkpoint import Checkpointer
from gapo_jax.methods import method_of
from gapo_jax.train.context import TrainContext
from gapo_jax.train.metrics import read_metrics
from gapo_jax.train.row_evaluation import FALLING, heldout_metrics
from gapo_jax.train.state import GAPOState

FOLDER = "best"


def best_round(ctx: TrainContext) -> tuple[int, int]:
    """Return the best round so far, the first of equal ones, and the number of measurements since
    then; (0, 0) before the first."""
    name = ctx.config.checkpoint.best.removeprefix("eval/")
    lines = [line for line in read_metrics(ctx.workdir) if line.get(f"dev/{name}") is not None]
    if not lines:
        return 0, 0
    sign = -1 if name in FALLING else 1
    values = [sign * line[f"dev/{name}"] for line in lines]
    place = values.index(max(values))
    return lines[place]["round"], len(values) - 1 - place


def is_enough(ctx: TrainContext) -> bool:
    """Return whether training shall end, as its last measurements brought no better one."""
    patience = ctx.config.checkpoint.patience
    if ctx.rows is None or not ctx.config.checkpoint.best or not patience:
        return False
    return ctx.processes.gather("patience", _known(ctx))[0][1] >= patience


def keep_best(ctx: TrainContext, state: GAPOState, finished: int) -> None:
    """Measure a state on the development rows if that is due after `finished` rounds, and keep its
    parameters if it is the best so far."""
    config = ctx.config
    every = config.eval.every_rounds or 1
    if ctx.rows is None or not config.checkpoint.best:
        return
    if finished % every and finished != config.rounds:
        return
    with ctx.clock("eval"):
        metrics = heldout_metrics(ctx, state, development=True)
    values = {f"dev/{name}": value for name, value in metrics.items()}
    ctx.writer.write(finished * ctx.updates_per_round, finished, "eval", values)
    # The metrics lie in the workdir of the first process alone.
    if ctx.processes.gather(f"best {finished}", _known(ctx))[0][0] == finished:
        _save(ctx, state, finished)


def _known(ctx: TrainContext) -> tuple[int, int]:
    return best_round(ctx) if ctx.processes.first else (0, 0)


def _save(ctx: TrainContext, state: GAPOState, finished: int) -> None:
    folder = ctx.checkpointer.directory.parent / FOLDER
    with Checkpointer(str(folder / str(finished)), keep=1) as checkpointer:
        params = getattr(state, method_of(ctx.config).trains).params
        checkpointer.save(finished, {"params": params}, {}, wait=True)
    if ctx.processes.first:
        for other in folder.iterdir():
            if other.name != str(finished):
                other.rmtree()


def best_state(ctx: TrainContext, state: GAPOState) -> tuple[GAPOState, int]:
    """Return a state with the parameters of the best round, and that round; the state itself and
    its own round where no measure chooses."""
    if ctx.rows is None or not ctx.config.checkpoint.best:
        return state, int(state.round)
    best = ctx.processes.gather("best", _known(ctx))[0][0]
    if not best:
        return state, int(state.round)
    name = method_of(ctx.config).trains
    network = getattr(state, name)
    folder = ctx.checkpointer.directory.parent / FOLDER / str(best)
    with Checkpointer(str(folder), read_only=True) as checkpointer:
        kept, _ = checkpointer.restore({"params": network.params}, best)
    return state.replace(**{name: network.replace(params=kept["params"])}), best
