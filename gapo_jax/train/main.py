"""A whole run from start to end: prepare, measure, train, measure again, export, report."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError

from gapo_jax import io
from gapo_jax.checkpoint import Checkpointer
from gapo_jax.compilation import keep_compiled_programs
from gapo_jax.config import Config, updates_per_round
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.evaluate.report import write_report
from gapo_jax.methods import method_of
from gapo_jax.train.build import build_models, build_steps, initial_state
from gapo_jax.train.clock import PhaseClock, counter
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.self_generated import bootstrap, make_all_prompts, make_pairs
from gapo_jax.train.datasets.user import own_prompts
from gapo_jax.train.discriminator.pair_prompts import with_prompts_of_pairs
from gapo_jax.train.evaluation import VerdictSets, measure, write_eval
from gapo_jax.train.export import export, exported_params
from gapo_jax.train.metrics import MetricsWriter, read_metrics
from gapo_jax.train.offline import loop as offline
from gapo_jax.train.online import loop as online
from gapo_jax.train.online.rollout import rollout_widths
from gapo_jax.train.online.sft_batches import make_sft_batches
from gapo_jax.train.restore import restore_state
from gapo_jax.train.runtime import Processes, RunInterrupted, StopRequest, stop_between_batches
from gapo_jax.train.state import GAPOState
from gapo_jax.train.summary import relative_param_change, summarise_run
from gapo_jax.train.workdir import EXPORT, SUMMARY, finished_summary, share_workdir

log = logging.getLogger("gapo_jax")


def execute(
    config: Config, workdir: Path, stop: StopRequest, processes: Processes | None = None
) -> dict[str, Any]:
    """Run a configuration from start to end, or from where the workdir was left.

    Returns:
        The contents of summary.json, which only the first of several processes has. A run that has
        ended is left as it is.

    Raises:
        RunInterrupted, RunStopped: see `online.train`; what a continued run needs is saved.
        CheckpointError, OSError: something could not be written.
        ProcessMissing: a process of the run does not come to a stage.
    """
    processes = processes or Processes()
    summary = finished_summary(config, workdir) if processes.first else {}
    if processes.gather("finished", bool(summary))[0]:
        return summary
    method = method_of(config)
    ctx, state = open_run(config, workdir, stop, processes)
    with closing(ctx):
        start = functools.partial(ctx.models.for_sampling, ctx.models.ref_params)
        before = measure(ctx, start, "before")
        write_eval(ctx, before, 0)
        train = online.train if method.loop == "online" else offline.train
        state = train(ctx, state)
        after = before
        if method.trains == "policy":
            end = functools.partial(ctx.sampling_params, state)
            after = measure(ctx, end, f"after_{config.rounds}")
            ctx.stop_if_asked(state, config.rounds)
        write_eval(ctx, after, config.rounds)
        ctx.checkpointer.wait()
        summary = conclude(ctx, state, before, after)
        processes.gather("end")
    if processes.first:
        summary["report"] = str(write_report(workdir))
    return summary


def open_run(
    config: Config, workdir: Path, stop: StopRequest, processes: Processes | None = None
) -> tuple[TrainContext, GAPOState]:
    """Load, prepare and restore everything that the loop needs.

    Raises:
        ValueError, FileNotFoundError: bad configuration, missing weights, another run's workdir.
        ProcessMissing: a process of the run does not come to a stage.
        RunInterrupted: a signal asked for a stop while the bootstrap was sampled.
    """
    clock, processes = PhaseClock(), processes or Processes()
    workdir, checkpoints = share_workdir(config, workdir, processes)
    keep_compiled_programs()
    with clock("load"):
        models = build_models(config)
        processes.gather("load")
        own = config.data.source
        prompts = own_prompts(config, models, workdir) if own else make_all_prompts(config, models)
    with clock("bootstrap"), counter(len(prompts.bootstrap), "bootstrap") as advance:
        on_batch = stop_between_batches(stop, processes, advance)
        answers = bootstrap(config, models, prompts, workdir, on_batch)
    with clock("pairs"):
        pairs = make_pairs(config, prompts.type_ids, answers, workdir)
        processes.gather("data")
    widths, sft_batches = (), None
    if method_of(config).loop == "online":
        if config.discriminator.generated_prompts == "pairs":
            prompts = with_prompts_of_pairs(config, models, prompts, pairs)
        widths = rollout_widths(config, models, prompts)
        if config.ppo.sft_coef:
            sft_batches = make_sft_batches(config, models, pairs.train, workdir)
    steps = build_steps(config, models, len(pairs.compared), widths)
    state = initial_state(config, models, steps)
    checkpointer = Checkpointer(checkpoints, keep=config.checkpoint.keep)
    if checkpointer.latest() is not None:
        state, host = restore_state(checkpointer, state)
        if not config.ppo.kl_target:  # a run that stopped itself may go on with another one
            coef = jax.device_put(np.float32(config.ppo.kl_coef), state.kl_coef.sharding)
            state = state.replace(kl_coef=coef)
        clock.add(host["seconds"])
        log.info("continuing after round %d of %s", state.last_saved, workdir)
    saved = state.last_saved
    resume_step = -1 if saved is None else saved * updates_per_round(config)
    ctx = TrainContext(
        config=config,
        workdir=workdir,
        models=models,
        steps=steps,
        prompts=prompts,
        pairs=pairs,
        widths=widths,
        sft_batches=sft_batches,
        processes=processes,
        verifiers=VerifierPool(config.data.verify_workers),
        stop=stop,
        clock=clock,
        writer=MetricsWriter(workdir, resume_step=resume_step),
        checkpointer=checkpointer,
    )
    if saved is not None and processes.first:
        mend_history(ctx, saved, resume_step)
    return ctx, state


def mend_history(ctx: TrainContext, saved: int, step: int) -> None:
    """Write the line of the save that a run continues from, if a kill came in between; say which
    rounds before it metrics.jsonl and samples.jsonl lack.

    Args:
        ctx: the run, about to continue.
        saved: how many rounds its checkpoint has.
        step: of the checkpoint.
    """
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
        ctx.writer.write(step, saved, "save", {})


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, ..., {numbers[-1]}"


def conclude(
    ctx: TrainContext, state: GAPOState, before: VerdictSets, after: VerdictSets
) -> dict[str, Any]:
    """Write the export and summary.json; return the latter's contents (nothing in a process that
    is not the first).

    Raises:
        OSError: they cannot be written.
    """
    changes = relative_param_change(ctx, state)
    params = exported_params(ctx, state) if ctx.config.export else {}
    if not ctx.processes.first:
        return {}
    summary = summarise_run(ctx, state, before, after, changes)
    if params:
        try:
            with ctx.clock("export"):
                summary["export"] = str(export(ctx, params, summary))
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(ctx.workdir / EXPORT)) from error
    io.write_json(ctx.workdir / SUMMARY, summary)
    return summary


@contextlib.contextmanager
def closing(ctx: TrainContext) -> Iterator[None]:
    """Close the verifiers, the writer and the checkpointer of a run at the end, each whatever the
    others do.

    The first error is raised, those after it are logged. A stop by a signal counts as none: it
    says that all is saved, which an error of the last save belies. A second Ctrl-C waits for
    nothing.
    """
    errors: list[Exception] = []
    interrupted: RunInterrupted | None = None
    try:
        yield
    except RunInterrupted as stop:
        interrupted = stop
    except Exception as error:
        errors.append(error)
    for close in (ctx.verifiers.close, ctx.writer.close, ctx.checkpointer.close):
        try:
            close()
        except Exception as error:
            errors.append(error)
    for error in errors[1:]:
        log.error("at the end of the run also: %s: %s", type(error).__name__, error)
    if errors:
        raise errors[0]
    if interrupted:
        raise interrupted
