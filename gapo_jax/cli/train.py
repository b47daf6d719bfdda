"""Train: `gapo-jax train --config FILE.py[:PRESET] [--config.a.b=v ...] [--workdir DIR]`.

Exit status: 0 the run is finished; 1 an error, which is printed; 3 the run stopped itself; 75
SIGTERM or Ctrl-C stopped it after saving, and the same command continues it; 130 a second Ctrl-C
ended it at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import flags

from gapo_jax.cli.experiment import parse_flags
from gapo_jax.config import Config, finalize
from gapo_jax.train.cluster import Place, from_environment

if TYPE_CHECKING:
    from gapo_jax.train.runtime import Processes, RunStopped

# EX_TEMPFAIL of sysexits.h: "try again later". 0 would tell Kubernetes and Slurm that all is done.
CONTINUE = 75
_FAILED, _COLLAPSED, _SIGINT = 1, 3, 130


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "Folder of the run (default: runs/NAME).", flag_values=values
    )
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, for a run of several.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_processes",
        0,
        "Number of processes of this run; 0 is what Slurm, Kubernetes or the TPU VM says.",
        flag_values=values,
    )
    flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.", flag_values=values)
    flags.DEFINE_float(
        "host_timeout_s", 900.0, "How long processes wait for each other.", flag_values=values
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the flags, check the configuration and train; return the exit status."""
    values, path = parse_flags(_define, sys.argv[1:] if argv is None else argv, __doc__)
    try:
        config = finalize(values.config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        place = _place(values)
    except ValueError as error:
        sys.exit(f"error: {error}")
    _quieten(place.index if place else 0)
    join = (lambda: _join(place, values.host_timeout_s)) if place else None
    return train(config, Path(values.workdir or f"runs/{config.name}"), path, join)


def _quieten(process_id: int) -> None:
    """Let one process tell how the run goes, and the others only what is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if process_id:
        logging.getLogger("gapo_jax").setLevel(logging.WARNING)
    for noisy in ("jax", "orbax", "absl", "httpx", "transformers", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # transformers warns that it found no torch, but only its tokenizers are used here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _place(values: flags.FlagValues) -> Place | None:
    """Return which process of several this is, by the flags or else by the environment; None for a
    run of one process."""
    if values.num_processes > 1:
        return Place(values.coordinator, values.num_processes, values.process_id, "flags")
    return None if values.num_processes == 1 else from_environment()


def _join(place: Place, timeout_s: float) -> Processes:
    from gapo_jax.train.runtime import join

    if not place.index:
        logging.getLogger("gapo_jax").info("%d processes, by %s", place.count, place.source)
    return join(place.coordinator, place.count, place.index, timeout_s)


def train(
    config: Config,
    workdir: Path,
    path: Path | None = None,
    join: Callable[[], Processes] | None = None,
) -> int:
    """Run `config`, in this process or in those that `join` connects; return the exit status.

    `path` is the file of the configuration, for the advice of error messages. An error is printed
    as one line and raised as SystemExit; `GAPO_JAX_TRACEBACK=1` raises the error itself.
    """
    # Imported late, so that a wrong flag is reported before JAX is loaded.
    from gapo_jax.checkpoint import CheckpointError
    from gapo_jax.evaluate.console import print_summary
    from gapo_jax.train import runtime
    from gapo_jax.train.lock import locked
    from gapo_jax.train.main import execute

    again = shlex.join([sys.executable, *sys.argv])
    processes = runtime.Processes()
    try:
        processes = join() if join else processes
        own = locked(workdir) if processes.first else contextlib.nullcontext()
        with runtime.stop_requests() as stop, own:
            summary = execute(config, workdir, stop, processes)
    except runtime.ProcessMissing as missing:
        _leave(f"error: {missing}")
    except runtime.RunInterrupted as signal_name:
        if not processes.index:
            print(f"stopped by {signal_name}; all finished rounds are saved in {workdir}")
            print(f"continue with: {again}")
        return CONTINUE
    except runtime.RunStopped as reason:
        print(f"the run stopped itself: {reason}\n{_kept(reason, workdir)}", file=sys.stderr)
        return _COLLAPSED
    except KeyboardInterrupt:
        _leave(f"stopped at once; finished rounds are saved in {workdir}; go on: {again}", _SIGINT)
    except (ValueError, CheckpointError, OSError) as error:
        if os.environ.get("GAPO_JAX_TRACEBACK"):
            raise
        message = _explain(error, workdir, path)
        if processes.count > 1:
            processes.leave(str(error))
            _leave(message)
        sys.exit(message)
    except Exception as error:
        processes.leave(f"{type(error).__name__}: {error}")
        raise
    if summary:
        print_summary(summary)
    return 0


def _kept(reason: RunStopped, workdir: Path) -> str:
    """Return what a run that stopped itself has left, and how to go on."""
    if reason.saved is None:
        return "nothing is saved yet: start with the change and another --workdir"
    return (
        f"the last good state, after round {reason.saved}, is saved in {workdir}: the same command "
        "with that change goes on from there"
    )


def _leave(message: str, status: int = _FAILED) -> NoReturn:
    """Print a message and end this process without the usual clean-up.

    JAX would wait for other processes, which may be gone, and Python for a checkpoint that is
    being written.
    """
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def _explain(error: Exception, workdir: Path, path: Path | None) -> str:
    """Return what to print about an error that the user can mend."""
    from gapo_jax.io import way_out

    what, hint = str(error), ""
    if isinstance(error, ValueError | FileNotFoundError):
        hint = _rehearsal(path)
    elif isinstance(error, OSError) and error.errno is not None:  # else it explains itself
        what = f"cannot use {error.filename or workdir}: {error.strerror}. {way_out(error)}"
    return f"error: {what}\n{hint}(GAPO_JAX_TRACEBACK=1 shows where)"


def _rehearsal(path: Path | None) -> str:
    """Return how to try the configuration without weights or devices, if it has that preset."""
    if path is None or '"rehearse"' not in path.read_text():
        return ""
    return f"The same program runs tiny, on whatever is here, with: --config {path}:rehearse\n"


if __name__ == "__main__":
    sys.exit(main())
