"""A whole run: prepare, measure, train, measure again, export, report.

Whatever is done lies in the workdir, so the same command continues an interrupted run.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import functools
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gapo_jax import config as configuration
from gapo_jax import io
from gapo_jax.checkpoint import Checkpointer, folder_exists, make_folder
from gapo_jax.compilation import keep_compiled_programs
from gapo_jax.config import Config
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.evaluate.report import write_report
from gapo_jax.evaluate.text_health import text_health
from gapo_jax.models import save_adapter, save_hf
from gapo_jax.train.build import build_models, build_training, initial_state
from gapo_jax.train.clock import PhaseClock, counter, peak_memory_gb
from gapo_jax.train.datasets.self_generated import bootstrap, make_all_prompts, make_pairs
from gapo_jax.train.datasets.user import check_source, own_prompts
from gapo_jax.train.discriminator.batches import store_from_json
from gapo_jax.train.evaluation import compare_sets, evaluate_policy, summarise_sets
from gapo_jax.train.metrics import MetricsWriter, read_metrics
from gapo_jax.train.offline import loop as offline
from gapo_jax.train.online import loop as online
from gapo_jax.train.online.phases import TrainContext
from gapo_jax.train.online.sft_batches import make_sft_batches
from gapo_jax.train.processes import Processes
from gapo_jax.train.restore import card_metrics
from gapo_jax.train.runtime import RunInterrupted, StopRequest
from gapo_jax.train.state import GAPOState, relative_change

log = logging.getLogger("gapo_jax")
VerdictSets = dict[str, list[Verdict]]


def claim_workdir(config: Config, workdir: Path) -> None:
    """Create the workdir, or check that the run in it is this one; write config.json.

    A configuration that never came to anything (no file lies beside it) may be another one.

    Raises:
        ValueError: the workdir holds a run of another configuration; lists what differs.
        OSError: the workdir cannot be written.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if path.exists():
        before = configuration.from_json(io.read_json(path))
        changed = configuration.differences(
            configuration.identity(before), configuration.identity(config)
        )
        if changed and any(p.is_file() and p != path for p in workdir.rglob("*")):
            raise ValueError(
                f"{workdir} holds a run of another configuration ({'; '.join(changed)}); pass "
                "another --workdir, or the configuration that it was started with"
            )
    io.write_json(path, configuration.to_json(config))


def heed_stops(
    stop: StopRequest, processes: Processes, advance: Callable[[int], None]
) -> Callable[[int], None]:
    """Return `advance` for a phase that samples, which ends the run (RunInterrupted) after a batch
    if any process was asked to stop. Such a phase writes its file at its end or not at all."""

    def on_batch(done: int) -> None:
        advance(done)
        if asked := processes.first_word("batch", stop.signal_name):
            raise RunInterrupted(asked)

    return on_batch


def measure(
    ctx: TrainContext, params: Callable[[], Any], name: str, sets: Mapping[str, Sequence[Any]]
) -> VerdictSets:
    """Return the verdicts of all held-out sets; read back from the workdir if already there.

    Raises:
        RunInterrupted: a signal asked for a stop; nothing of the measurement is kept.
    """
    path = ctx.workdir / f"eval_{name}.jsonl"
    if not path.exists():
        with ctx.clock("eval"):
            weights = params()
            records = []
            for set_name, rows in sets.items():
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
                        on_batch=heed_stops(ctx.stop, ctx.processes, advance),
                    )
                records += [{"set": set_name, **dataclasses.asdict(v)} for v in verdicts]
        io.write_jsonl(path, records)
    found: VerdictSets = {}
    for record in io.read_jsonl(path):
        set_name = record.pop("set")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        found.setdefault(set_name, []).append(Verdict(**fields))
    return found


def write_eval(ctx: TrainContext, verdicts: VerdictSets, finished: int) -> None:
    """Write one metrics line with the accuracies of all held-out sets.

    A run that is continued after its last round may have written it already.
    """
    if not ctx.processes.first:
        return
    step = finished * ctx.updates_per_round
    written = read_metrics(ctx.workdir)
    if any(line["phase"] == "eval" and line["step"] == step for line in written):
        return
    metrics: dict[str, float] = {}
    for set_name, summary in summarise_sets(verdicts, ctx.config.eval.resamples).items():
        for metric in ("instruction_strict", "prompt_strict"):
            for part, value in summary[metric].items():
                suffix = "" if part == "value" else f"_{part}"
                metrics[f"eval/{set_name}/{metric}{suffix}"] = value
    metrics["time/eval_s"] = ctx.clock.last.get("eval", 0.0)
    ctx.writer.write(step, finished, "eval", metrics)


def share_workdir(config: Config, workdir: Path, processes: Processes) -> tuple[Path, str]:
    """Return (folder of this process, folder of the checkpoints) of a run.

    The first process works in `workdir`. What it has made there already goes to the others, who
    make the same things from then on, each in a folder of its own that is of no further use.

    Raises:
        ValueError, FileNotFoundError: as `check_source` and `claim_workdir`; or another process
            cannot see the checkpoints.
        ProcessMissing: a process does not come.
    """
    shared = None
    if processes.first:
        check_source(config, workdir)
        claim_workdir(config, workdir)
        checkpoints = config.checkpoint.directory or str(workdir.absolute() / "checkpoints")
        make_folder(checkpoints)
        names = [] if processes.count == 1 else sorted(workdir.glob("*.jsonl"))
        files = {p.name: p.read_text() for p in names if p.stem not in ("metrics", "samples")}
        shared = {"files": files, "checkpoints": checkpoints}
    shared = processes.gather("workdir", shared)[0]
    if processes.first:
        return workdir, shared["checkpoints"]
    if not folder_exists(shared["checkpoints"]):
        raise ValueError(
            f"process {processes.index} cannot see the folder {shared['checkpoints']} of the first "
            "process; set config.checkpoint.directory to one that all see (a shared disk, gs://...)"
        )
    own = Path(tempfile.mkdtemp(prefix="gapo_jax_process_"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    for name, text in shared["files"].items():
        (own / name).write_text(text)
    return own, shared["checkpoints"]


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
        on_batch = heed_stops(stop, processes, advance)
        answers = bootstrap(config, models, prompts, workdir, on_batch)
    with clock("pairs"):
        pairs = make_pairs(config, prompts.type_ids, answers, workdir)
        processes.gather("data")
    training = build_training(config, models, len(pairs.compared))
    state = initial_state(config, models, training)
    checkpointer = Checkpointer(checkpoints, keep=config.checkpoint.keep)
    last_saved, store = None, []
    if checkpointer.latest() is not None:
        state, host = checkpointer.restore(state)
        last_saved, store = int(state.round), store_from_json(host["store"])
        clock.add(host["seconds"])
        log.info("continuing after round %d of %s", last_saved, workdir)
    ctx = TrainContext(
        config=config,
        workdir=workdir,
        models=models,
        training=training,
        prompts=prompts,
        pairs=pairs,
        writer=None,  # type: ignore[arg-type]
        clock=clock,
        checkpointer=checkpointer,
        stop=stop,
        store=store,
        last_saved=last_saved,
        processes=processes,
        verifiers=VerifierPool(config.data.verify_workers),
    )
    if config.ppo.sft_coef and config.method in configuration.ONLINE_METHODS:
        ctx.sft_batches = make_sft_batches(config, models, pairs.train, workdir)
    resume_step = -1 if last_saved is None else last_saved * ctx.updates_per_round
    ctx.writer = MetricsWriter(workdir, resume_step=resume_step)
    return ctx, state


def relative_param_change(ctx: TrainContext, state: GAPOState) -> dict[str, float]:
    """Return |after - before| / |before| of each network: the proof that it learned something."""
    start = initial_state(ctx.config, ctx.models, ctx.training)
    names = ["policy", "discriminator", *(["critic"] if state.critic is not None else [])]
    return {
        name: relative_change(getattr(start, name).params, getattr(state, name).params)
        for name in names
    }


def sample_table(before: VerdictSets, after: VerdictSets, count: int = 3) -> list[dict[str, Any]]:
    """Return prompts with the text before and after: spread over the first held-out set, not
    chosen by outcome."""
    name = next(iter(before))
    olds, news = before[name], after[name]
    picks = [index * len(olds) // count for index in range(count)]
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
    found = [
        {name.removeprefix(prefix): value for name, value in line.items() if prefix in name}
        for line in read_metrics(workdir)
    ]
    found = [line for line in found if line]
    return {"first": found[0], "last": found[-1]} if found else {}


def summarise_run(
    ctx: TrainContext,
    state: GAPOState,
    before: VerdictSets,
    after: VerdictSets,
    changes: Mapping[str, float],
) -> dict[str, Any]:
    """Return the contents of summary.json; `changes` are those of `moved`."""
    resamples = ctx.config.eval.resamples
    last = read_metrics(ctx.workdir)[-1]
    health = {
        label: {
            name: text_health([v.prompt for v in found], [v.response for v in found])
            for name, found in sets.items()
        }
        for label, sets in (("before", before), ("after", after))
    }
    return {
        "method": ctx.config.method,
        "rounds": int(state.round),
        "before": summarise_sets(before, resamples),
        "after": summarise_sets(after, resamples),
        "difference": compare_sets(before, after, resamples),
        "text_health": health,
        "samples": sample_table(before, after),
        "relative_change": dict(changes),
        "types": list(ctx.prompts.type_ids),
        "pairs": len(ctx.pairs.train),
        "judge": discriminator_on_pairs(ctx.workdir),
        "time_s": dict(ctx.clock.seconds),
        "throughput": mean_throughput(ctx.workdir),
        "compile_count": last["compile/count"],
        "compile_s": round(last["compile/seconds"], 1),
        "peak_memory_gb": peak_memory_gb(),
    }


def export(ctx: TrainContext, params: Any, summary: Mapping[str, Any]) -> Path:
    """Write the trained model, the generator (adapters merged) or the discriminator, as an HF
    folder under the workdir; and adapters beside it as a PEFT folder, `adapter`. `params` are
    those of `exported_params`."""
    folder, models = ctx.workdir / "export", ctx.models
    if ctx.config.method == "discriminator":
        save_hf(
            models.discriminator,
            params["model"],
            folder,
            tokenizer=models.disc_tokenizer,
            method=ctx.config.method,
            base=ctx.config.model.discriminator,
        )
        return folder
    save_hf(
        models.decoder,
        params["model"],
        folder,
        tokenizer=models.tokenizer,
        method=ctx.config.method,
        base=ctx.config.model.generator,
        metrics=card_metrics(summary),
    )
    if "lora" in params:
        save_adapter(
            models.decoder,
            params["lora"],
            ctx.workdir / "adapter",
            base=ctx.config.model.generator,
            method=ctx.config.method,
        )
    return folder


def exported_params(ctx: TrainContext, state: GAPOState) -> dict[str, Any]:
    """Return the parameters that `export` writes, whole in the first process: {"model": ...} and,
    of a run that trained adapters, {"lora": ...}."""
    if ctx.config.method == "discriminator":
        params = {"model": state.discriminator.params}
    else:
        params = {"model": ctx.policy_params(state)}
        params |= {k: v for k, v in state.policy.params.items() if k == "lora"}
    return ctx.models.spec.place.host(params)


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
            raise OSError(errno.EIO, str(error), str(ctx.workdir / "export")) from error
    io.write_json(ctx.workdir / "summary.json", summary)
    return summary


def finished(config: Config, workdir: Path) -> dict[str, Any]:
    """Return the summary of a run that has ended with the rounds asked for and left all its files;
    empty otherwise.

    Raises:
        ValueError: as `claim_workdir`.
    """
    path = workdir / "summary.json"
    if not path.is_file():
        return {}
    claim_workdir(config, workdir)
    summary = io.read_json(path)
    exported = not config.export or ("export" in summary and (workdir / "export").is_dir())
    report = workdir / "report.html"
    if summary["rounds"] != config.rounds or not exported or not report.is_file():
        return {}
    log.info("%s holds this run, finished; more rounds go on from there: --config.rounds", workdir)
    return summary | {"report": str(report)}


@contextlib.contextmanager
def closing(ctx: TrainContext) -> Iterator[None]:
    """Close the judges, the writer and the checkpointer of a run at the end, each whatever the
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


def execute(
    config: Config, workdir: Path, stop: StopRequest, processes: Processes | None = None
) -> dict[str, Any]:
    """Run a configuration from start to end, or from where the workdir was left; return the
    summary (the contents of summary.json), which only the first of several processes has. A run
    that has ended is left as it is.

    Raises:
        RunInterrupted, RunStopped: see `online.train`; what a continued run needs is saved.
        CheckpointError, OSError: something could not be written.
        ProcessMissing: a process of the run does not come to a stage.
    """
    processes = processes or Processes()
    summary = finished(config, workdir) if processes.first else {}
    if processes.gather("finished", bool(summary))[0]:
        return summary
    ctx, state = open_run(config, workdir, stop, processes)
    with closing(ctx):
        models = ctx.models
        start = functools.partial(models.for_sampling, models.ref_params)
        before = measure(ctx, start, "before", ctx.prompts.heldout)
        write_eval(ctx, before, 0)
        train = offline.train if config.method in configuration.OFFLINE_METHODS else online.train
        state = train(ctx, state)
        after = before  # the discriminator's training leaves the policy alone
        if config.method != "discriminator":
            end = functools.partial(ctx.sampling_params, state)
            after = measure(ctx, end, f"after_{config.rounds}", ctx.prompts.heldout)
            ctx.stop_if_asked(config.rounds)
        write_eval(ctx, after, config.rounds)
        ctx.checkpointer.wait()
        summary = conclude(ctx, state, before, after)
        ctx.processes.gather("end")
    if ctx.processes.first:
        summary["report"] = str(write_report(workdir))
    return summary
