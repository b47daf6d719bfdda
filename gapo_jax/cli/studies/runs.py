"""Run the grid of a study over several processes, each run a subprocess of `train`.

Runs of one seed have their bootstrap, their pairs and their first evaluation in common. They are
handed over as files, which a run reads back as if it were continued: one run makes them while the
others of that key wait, and the scheduler gives their place to runs of other keys.

Everything lies in files, so a study that is killed goes on with the same command: a run with a line
is done, a run with a checkpoint continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import gapo_jax
from gapo_jax import io
from gapo_jax.cli.studies.definition import Run, sharing_key
from gapo_jax.cli.studies.sessions import Session, close_session, open_session

SHARED = ("bootstrap.jsonl", "pairs.jsonl", "pairs_heldout.jsonl", "eval_before.jsonl")
_LAST_SHARED = SHARED[-1]  # a run makes them in this order
_POLL_S = 0.5
FINISHED, STOPPED, INTERRUPTED = 0, 3, 75  # exit statuses of `train`


@dataclasses.dataclass
class Job:
    """A run in progress: its process, its place among the cores, and the key of the files that it
    makes for others ("" for none)."""

    run: Run
    workdir: Path
    process: subprocess.Popen[bytes]
    slot: int
    session: Session
    makes: str


@dataclasses.dataclass
class Stop:
    """Whether a signal asked the study to stop."""

    asked: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Record the signal."""
        self.asked = True


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a `Stop` while the block runs."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(
    runs: Sequence[Run],
    folder: Path,
    processes: int,
    stop: Stop,
    done: Callable[[Job, int], None],
) -> int:
    """Run what is given, `processes` at a time; return how many failed.

    Args:
        runs: in the order of their start.
        folder: of their workdirs, and of what they share.
        processes: how many at a time; each has its share of the cores.
        stop: where it is asked for, all runs are told to save, and nothing more is started.
        done: called with each job that ended and its exit status, FINISHED or STOPPED.
    """
    keys = {run.key: sharing_key(run.config()) for run in runs}
    pending, active, failures = list(runs), [], 0
    while active or (pending and not stop.asked):
        while len(active) < processes and not stop.asked:
            run = _next(pending, active, keys)
            if run is None:
                break
            pending.remove(run)
            slot = min(set(range(processes)) - {job.slot for job in active})
            active.append(_start(run, keys[run.key], folder, slot, processes))
        for job in list(active):
            if stop.asked:
                _tell_to_stop(job)
            _hand_over(job, folder)
            status = close_session(job.session, job.process, job.workdir)
            if status is None:
                continue
            active.remove(job)
            if status in (FINISHED, STOPPED):
                done(job, status)
            elif not (job.session.told and status in (INTERRUPTED, -signal.SIGTERM)):
                # A run that is told before it listens just ends; it has nothing to save yet.
                failures += 1
                _complain(job, status)
        if active:
            time.sleep(_POLL_S)
    return failures


def _next(
    pending: Sequence[Run], active: Sequence[Job], keys: dict[tuple[str, int], str]
) -> Run | None:
    """Return the first run that need not wait for files that another one is making."""
    making = {job.makes for job in active if job.makes}
    return next((run for run in pending if keys[run.key] not in making), None)


def _start(run: Run, key: str, folder: Path, slot: int, processes: int) -> Job:
    workdir, shared = folder / run.folder, folder / "shared" / key
    workdir.mkdir(parents=True, exist_ok=True)
    there = (shared / _LAST_SHARED).exists()
    if there:
        for name in SHARED:
            if (shared / name).exists() and not (workdir / name).exists():
                io.write_bytes(workdir / name, (shared / name).read_bytes())
    command = [sys.executable, "-m", "gapo_jax.cli.train", *run.flags()]
    environment = dict(os.environ)
    root = str(Path(gapo_jax.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (root, environment.get("PYTHONPATH", "")))
    )
    print(f"{run.folder}: starting, log in {workdir / 'log.txt'}", flush=True)
    with (workdir / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--workdir", str(workdir)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches the study alone, which then tells each run once.
            start_new_session=True,
        )
    cores = _pin(process.pid, slot, processes)
    session = open_session(workdir, cores, made_shared=not there)
    return Job(run, workdir, process, slot, session, "" if there else key)


def _pin(pid: int, slot: int, processes: int) -> int:
    """Keep a process, before it starts threads, to its share of the cores; return their number."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))
    share = [cores[i] for i in range(slot % len(cores), len(cores), min(processes, len(cores)))]
    if processes > 1:
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(pid, share)
    return len(share if processes > 1 else cores)


def _hand_over(job: Job, folder: Path) -> None:
    """Copy the files that others wait for, as soon as the last of them is there."""
    if not job.makes or not (job.workdir / _LAST_SHARED).exists():
        return
    shared = folder / "shared" / job.makes
    shared.mkdir(parents=True, exist_ok=True)
    for name in SHARED:  # the one that says that all are there is written last
        if (job.workdir / name).exists():
            io.write_bytes(shared / name, (job.workdir / name).read_bytes())
    job.makes = ""


def _tell_to_stop(job: Job) -> None:
    if not job.session.told:
        job.session.told = True
        print(f"{job.run.folder}: saving", flush=True)
        with contextlib.suppress(ProcessLookupError):
            # Not `send_signal`, which would take the exit status from `close_session`.
            os.kill(job.process.pid, signal.SIGTERM)


def _complain(job: Job, status: int) -> None:
    tail = (job.workdir / "log.txt").read_text(errors="replace").strip().splitlines()[-4:]
    print(f"{job.run.folder}: failed with status {status}:", *tail, sep="\n  ", flush=True)
