"""A whole run from start to end: prepare, measure, train, measure again, export, report."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gapo_jax import io
from gapo_jax.checkpoint import Checkpointer
from gapo_jax.compilation import keep_compiled_programs
from gapo_jax.config import Config, updates_per_round
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.evaluate.report import write_report
from gapo_jax.methods import method_of, needs_pairs
from gapo_jax.records import JsonObject
from gapo_jax.train.best import best_state
from gapo_jax.train.build import Models, build_models, build_steps, initial_state
from gapo_jax.train.clock import PhaseClock, counter
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.given import with_given
from gapo_jax.train.datasets.prompts import (
    UserPrompts,
    read_user_prompts,
    takes_prompts,
    user_prompts,
)
from gapo_jax.train.datasets.rows import name_streamed, open_rows, reads_rows
from gapo_jax.train.datasets.self_generated import (
    NO_PAIRS,
    NO_PROMPTS,
    Pairs,
    Prompts,
    bootstrap,
    make_all_prompts,
    make_pairs,
    reads_discriminator,
)
from gapo_jax.train.datasets.user import own_prompts
from gapo_jax.train.discriminator.pair_prompts import with_prompts_of_pairs
from gapo_jax.train.evaluation import VerdictSets, measure, write_eval
from gapo_jax.train.export import export, exported_params
from gapo_jax.train.history import continued, mend_history
from gapo_jax.train.metrics import MetricsWriter
from gapo_jax.train.offline import loop as offline
from gapo_jax.train.online import loop as online
from gapo_jax.train.online.heldout import measure_rewards, reward_metrics, rewards_in_summary
from gapo_jax.train.online.reward_sources import (
    OWN_COLUMNS,
    RewardSources,
    load_reward_models,
    start_functions,
)
from gapo_jax.train.online.rollout import rollout_widths
from gapo_jax.train.online.sft_batches import make_sft_batches
from gapo_jax.train.row_evaluation import measure_rows, write_rows
from gapo_jax.train.runtime import Processes, RunInterrupted, StopRequest, stop_between_batches
from gapo_jax.train.sinks import require_sinks
from gapo_jax.train.state import GAPOState
from gapo_jax.train.summary import relative_param_change, summarise_rows, summarise_run
from gapo_jax.train.workdir import EXPORT, SUMMARY, finished_summary, share_workdir

log = logging.getLogger("gapo_jax")


def execute(
    config: Config, workdir: Path, stop: StopRequest, processes: Processes | None = None
) -> JsonObject:
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
    ctx, state = open_run(config, workdir, stop, processes)
    with closing(ctx):
        learn = learn_in_rounds if ctx.rows is None else learn_from_rows
        state, before, after = learn(ctx, state)
        ctx.checkpointer.wait()
        summary = conclude(ctx, state, before, after)
        processes.gather("end")
        if processes.first:
            report = write_report(workdir)
            ctx.writer.file(report)
            summary["report"] = str(report)
    return summary


def learn_in_rounds(
    ctx: TrainContext, state: GAPOState
) -> tuple[GAPOState, VerdictSets, VerdictSets]:
    """Train on prompts and pairs; return the last state, and the verdicts on the held-out prompts
    before and after."""
    config, method = ctx.config, method_of(ctx.config)
    start = functools.partial(ctx.models.for_sampling, ctx.models.ref_params)
    before = measure(ctx, start, "before")
    write_eval(ctx, before, 0, reward_metrics(ctx, measure_rewards(ctx, start, "before")))
    train = online.train if method.loop == "online" else offline.train
    state = train(ctx, state)
    after, rewards = before, {}
    if method.trains == "policy":
        end, name = functools.partial(ctx.sampling_params, state), f"after_{config.rounds}"
        after = measure(ctx, end, name)
        rewards = reward_metrics(ctx, measure_rewards(ctx, end, name))
        ctx.stop_if_asked(state, config.rounds)
    write_eval(ctx, after, config.rounds, rewards)
    return state, before, after


def learn_from_rows(
    ctx: TrainContext, state: GAPOState
) -> tuple[GAPOState, dict[str, float], dict[str, float]]:
    """Train on the rows of `config.data.source`; return the last state, with the best parameters of
    `config.checkpoint.best`, and what the held-out rows say before and after."""
    fresh = functools.partial(initial_state, ctx.config, ctx.models, ctx.steps)
    before = measure_rows(ctx, fresh if state.last_saved is not None else lambda: state, "before")
    write_rows(ctx, before, 0)
    state, best = best_state(ctx, offline.train(ctx, state))
    assert ctx.rows is not None
    name_streamed(ctx.workdir, ctx.rows)
    finished = int(state.round)
    after = measure_rows(ctx, lambda: state, f"after_{finished}")
    ctx.stop_if_asked(state, finished)
    if best == finished:  # else it is no measurement of this round
        write_rows(ctx, after, finished)
    return state, before, after


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
    require_sinks(config.log.to)
    workdir, checkpoints = share_workdir(config, workdir, processes)
    keep_compiled_programs()
    direct = reads_rows(config, workdir)
    with clock("load"):
        models, asking, rewards = load_networks(config, workdir, processes)
        processes.gather("load")
    prompts, pairs, rows, widths, sft_batches = NO_PROMPTS, NO_PAIRS, None, (), None
    if direct:
        with clock("rows"):
            rows = open_rows(config, models, workdir)
            processes.gather("data")
    else:
        prompts, pairs = made_data(config, models, asking, workdir, stop, processes, clock)
    if method_of(config).loop == "online":
        widths = rollout_widths(config, models, prompts)
        if config.ppo.sft_coef:
            sft_batches = make_sft_batches(config, models, pairs.train, workdir)
    steps = build_steps(config, models, len(pairs.compared), widths)
    state = initial_state(config, models, steps)
    checkpointer = Checkpointer(checkpoints, keep=config.checkpoint.keep)
    if checkpointer.latest() is not None:
        state = continued(config, checkpointer, state, clock)
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
        rows=rows,
        widths=widths,
        sft_batches=sft_batches,
        processes=processes,
        verifiers=VerifierPool(config.data.verify_workers),
        stop=stop,
        clock=clock,
        writer=MetricsWriter(workdir, resume_step=resume_step, config=config),
        checkpointer=checkpointer,
        rewards=rewards,
    )
    mend_history(ctx, saved)
    return ctx, state


def load_networks(
    config: Config, workdir: Path, processes: Processes
) -> tuple[Models, UserPrompts | None, RewardSources]:
    """Return the networks of a run, the prompts that a user gives it, and what scores responses
    beside verifiers and discriminator.

    Raises:
        ValueError, FileNotFoundError: rows, a reward source or a network cannot be used. What is
            wrong with rows and functions is said before a weight is read.
    """
    prompts = read_user_prompts(config, workdir) if takes_prompts(config, workdir) else None
    functions = start_functions(config, processes, prompts.columns if prompts else OWN_COLUMNS)
    try:
        models = build_models(config, discriminator=reads_discriminator(config, workdir))
        networks = load_reward_models(config, models.spec.place)
    except BaseException:
        RewardSources(functions).close()
        raise
    dialogues = prompts is not None and any(row.turns for row in prompts.train)
    return models, prompts, RewardSources(functions, networks, dialogues)


def made_data(
    config: Config,
    models: Models,
    asking: UserPrompts | None,
    workdir: Path,
    stop: StopRequest,
    processes: Processes,
    clock: PhaseClock,
) -> tuple[Prompts, Pairs]:
    """Return the prompts and pairs of a run: a user's prompts without pairs, those of a mined
    folder, or what the generator makes; no pairs where nothing learns from them."""
    with clock("load"):
        if asking is not None:
            prompts = user_prompts(config, models, workdir, asking)
        elif config.data.source:
            prompts = own_prompts(config, models, workdir)
        else:
            prompts = make_all_prompts(config, models)
        prompts = with_given(config, models, workdir, prompts)
    if not needs_pairs(config):
        processes.gather("data")
        return prompts, NO_PAIRS
    with clock("bootstrap"), counter(len(prompts.bootstrap), "bootstrap") as advance:
        on_batch = stop_between_batches(stop, processes, advance)
        answers = bootstrap(config, models, prompts, workdir, on_batch)
    with clock("pairs"):
        pairs = make_pairs(config, prompts.type_ids, answers, workdir)
        processes.gather("data")
    if method_of(config).loop == "online" and config.discriminator.generated_prompts == "pairs":
        prompts = with_prompts_of_pairs(config, models, prompts, pairs)
    return prompts, pairs


def conclude(ctx: TrainContext, state: GAPOState, before: Any, after: Any) -> JsonObject:
    """Write the export and summary.json; return the latter's contents (nothing in a process that
    is not the first).

    Raises:
        OSError: they cannot be written.
    """
    changes = relative_param_change(ctx, state)
    params = exported_params(ctx, state) if ctx.config.export else {}
    if not ctx.processes.first:
        return {}
    summarise = summarise_run if ctx.rows is None else summarise_rows
    summary = summarise(ctx, state, before, after, changes) | rewards_in_summary(ctx)
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
    """Close the workers, the writer and the checkpointer of a run at the end, each whatever the
    others do.

    Raise the first error and log the rest. `RunInterrupted` is raised only if closing succeeded,
    because it tells the user that everything was saved. A second Ctrl-C waits for nothing.
    """
    errors: list[Exception] = []
    interrupted: RunInterrupted | None = None
    try:
        yield
    except RunInterrupted as stop:
        interrupted = stop
    except Exception as error:
        errors.append(error)
    closes = ctx.verifiers.close, ctx.rewards.close, ctx.writer.close, ctx.checkpointer.close
    for close in closes:
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
