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
_COLLAPSED = 3


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
    """Check the configuration, then run it; see gapo_jax/train/run.py."""
    if len(argv) > 1:
        raise app.UsageError(f"arguments that are not flags: {argv[1:]}")
    from gapo_jax.config import finalize

    try:
        config = finalize(_CONFIG.value)
    except ValueError as error:
        sys.exit(f"error: {error}")
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("jax", "orbax", "absl", "httpx", "transformers", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # transformers says that it found no torch; only its tokenizers are used here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    _train(config, workdir)


def _train(config, workdir: Path) -> None:
    from gapo_jax.checkpoint import CheckpointError
    from gapo_jax.evaluate.console import print_summary
    from gapo_jax.train.interrupt import RunInterrupted, RunStopped, stop_requests
    from gapo_jax.train.run import execute

    again = " ".join(shlex.quote(part) for part in ["python", *sys.argv])
    try:
        with stop_requests() as stop:
            summary = execute(config, workdir, stop)
    except RunInterrupted as signal_name:
        print(f"stopped by {signal_name}; all finished rounds are saved in {workdir}")
        print(f"continue with: {again}")
        return
    except RunStopped as reason:
        print(f"the run stopped itself: {reason}", file=sys.stderr)
        print(f"the last good state is saved in {workdir}", file=sys.stderr)
        sys.exit(_COLLAPSED)
    except (ValueError, FileNotFoundError, CheckpointError) as error:
        if os.environ.get("GAPO_JAX_TRACEBACK"):
            raise
        sys.exit(f"error: {error}\n(GAPO_JAX_TRACEBACK=1 shows where)")
    print_summary(summary)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
