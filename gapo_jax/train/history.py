"""What a run that continues finds of its past: lines that are missing, values that may change."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import jax
import numpy as np

from gapo_jax.checkpoint import Checkpointer
from gapo_jax.config import Config
from gapo_jax.methods import method_of
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.context import TrainContext
from gapo_jax.train.metrics import read_metrics
from gapo_jax.train.restore import restore_state
from gapo_jax.train.state import GAPOState

log = logging.getLogger("gapo_jax")


def continued(
    config: Config, checkpointer: Checkpointer, abstract: GAPOState, clock: PhaseClock
) -> GAPOState:
    """Return the state of the newest checkpoint; its seconds go to the clock.

    The KL coefficient is that of the configuration, unless it is adaptive: a run that stopped
    itself may go on with another one.
    """
    state, kept = restore_state(checkpointer, abstract)
    clock.add(kept["seconds"])
    if config.ppo.kl_target:
        return state
    coef = jax.device_put(np.float32(config.ppo.kl_coef), state.kl_coef.sharding)
    return state.replace(kl_coef=coef)


def mend_history(ctx: TrainContext, saved: int | None) -> None:
    """Write the line of the save that a run continues from, if a kill came in between; say which
    rounds before it metrics.jsonl and samples.jsonl lack.

    Args:
        ctx: the run, about to continue.
        saved: how many rounds its checkpoint has; None for a new run, which has no past.
    """
    if saved is None or not ctx.processes.first:
        return
    for name in ("metrics.jsonl", "samples.jsonl"):
        if name == "samples.jsonl" and method_of(ctx.config).loop == "offline":
            continue
        present = {line["round"] for line in read_metrics(ctx.workdir / name)}
        if missing := sorted(set(range(1, saved + 1)) - present):
            log.warning(
                "%s lacks %d of the %d rounds that its checkpoint has behind it (%s): the report "
                "will lack them. Put the file back from a copy before you go on, if there is one",
                ctx.workdir / name, len(missing), saved, _listed(missing)
            )  # fmt: skip
    lines = read_metrics(ctx.workdir)
    if not any((line["phase"], line["round"]) == ("save", saved) for line in lines):
        ctx.writer.write(saved * ctx.updates_per_round, saved, "save", {})


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, ..., {numbers[-1]}"
