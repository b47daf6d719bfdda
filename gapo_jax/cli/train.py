"""Train: `python scripts/train.py --config configs/X.py [--config.a.b=v ...] [--workdir DIR]`."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, configs/NAME.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (default: runs/NAME).")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of the first of several processes; it uses PORT + 1 too."
)
_PROCESSES = flags.DEFINE_integer("num_processes", 1, "How many processes play this run together.")
_PROCESS = flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.")
_TIMEOUT = flags.DEFINE_float("host_timeout_s", 900.0, "How long processes wait for each other.")
_COLLAPSED, _SIGINT = 3, 130


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; a misspelt configuration key ends here, with the nearest valid one."""
    from gapo_jax.config import check_path

    for argument in argv:
        if argument.startswith("--config."):
            try:
                check_path(argument.removeprefix("--config.").split("=")[0])
            except ValueError as error:
                sys.exit(f"error: {error}")
    return flags.FLAGS(argv)


def main(argv: list[str]) -> None:
    """Check the configuration, then run it; see gapo_jax/train/main.py."""
    if len(argv) > 1:
        raise app.UsageError(f"arguments that are not flags: {argv[1:]}")
    from gapo_jax.config import finalize

    try:
        config = finalize(_CONFIG.value)
    except ValueError as error:
        sys.exit(f"error: {error}")
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    # One process says how the run goes; the others only what is wrong.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if _PROCESS.value:
        logging.getLogger("gapo_jax").setLevel(logging.WARNING)
    for noisy in ("jax", "orbax", "absl", "httpx", "transformers", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # transformers says that it found no torch; only its tokenizers are used here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    _train(config, workdir, Path(path), _join if _PROCESSES.value > 1 else None)


def _join():
    """Meet the other processes of the run."""
    from gapo_jax.train.processes import join

    return join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _TIMEOUT.value)


def _rehearsal(path: Path | None) -> str:
    """Return what runs without weights or devices, where the configuration offers that."""
    if path is None or '"rehearse"' not in path.read_text():
        return ""
    return f"The same program runs tiny, on whatever is here, with: --config {path}:rehearse\n"


def _leave(message: str, status: int = 1) -> None:
    """End this process at once: JAX would wait for other ones, which may be gone, and Python for a
    checkpoint that is being written."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def _unwritten(error: OSError, workdir: Path) -> str:
    """Return what to do about a file that could not be written (or read)."""
    if error.errno is None:
        return str(error)  # of a library, in its own words
    return (
        f"cannot use {error.filename or workdir}: {error.strerror}. Free some space, and the same "
        "command continues the run; or give a folder that can be written to with another --workdir"
    )


def _train(config, workdir: Path, path: Path | None = None, join=None) -> None:
    """Run the configuration of the file `path`, in one process or in those that `join` meets."""
    from gapo_jax.checkpoint import CheckpointError
    from gapo_jax.evaluate.console import print_summary
    from gapo_jax.train.main import execute
    from gapo_jax.train.processes import Processes, ProcessMissing
    from gapo_jax.train.runtime import RunInterrupted, RunStopped, stop_requests

    again = shlex.join([sys.executable, *sys.argv])
    processes = Processes()
    try:
        processes = join() if join else processes
        with stop_requests() as stop:
            summary = execute(config, workdir, stop, processes)
    except ProcessMissing as missing:
        _leave(f"error: {missing}")
    except RunInterrupted as signal_name:
        if processes.index:
            return
        print(f"stopped by {signal_name}; all finished rounds are saved in {workdir}")
        print(f"continue with: {again}")
        return
    except RunStopped as reason:
        print(f"the run stopped itself: {reason}", file=sys.stderr)
        kept = f"the last good state, after round {reason.saved}, is saved in {workdir}"
        if reason.saved is None:
            kept = "nothing is saved yet: start with the change and another --workdir"
        print(kept, file=sys.stderr)
        sys.exit(_COLLAPSED)
    except KeyboardInterrupt:
        _leave(f"stopped at once; finished rounds are saved in {workdir}; go on: {again}", _SIGINT)
    except (ValueError, CheckpointError, OSError) as error:
        if os.environ.get("GAPO_JAX_TRACEBACK"):
            raise
        what, hint = str(error), ""
        if isinstance(error, ValueError | FileNotFoundError):
            hint = _rehearsal(path)
        elif isinstance(error, OSError):
            what = _unwritten(error, workdir)
        message = f"error: {what}\n{hint}(GAPO_JAX_TRACEBACK=1 shows where)"
        if processes.count > 1:
            _leave(message)
        sys.exit(message)
    if summary:
        print_summary(summary)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
