"""Run a study, a grid of configurations and seeds, and draw its tables and plots.

    gapo-jax study --config configs/studies/NAME.py [--processes N] [--only PATTERN ...]
    gapo-jax study --config configs/studies/NAME.py --report

Each run is a subprocess of `train`. Runs of one seed share their bootstrap, their pairs and their
first evaluation. A run that has ended appends one line to OUT/NAME.jsonl: its configuration, the
code and the machine, counts for each held-out prompt, text health, rounds, time. A run with a line
is not repeated, an interrupted one continues from its checkpoint: whatever ended the study, the
same command goes on with it.

`--report` draws OUT/NAME.md and its SVGs from the lines alone, also while the study runs.

Exit status: 0 all runs asked for have a line; 1 a run failed, or a wrong argument; 75 a signal
stopped the study after its runs were saved.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gapo_jax.cli import program, summary

_CONTINUE = 75  # as of `train`


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(program("study"), description=summary(__doc__))
    parser.add_argument("--config", required=True, help="FILE.py of the study, or a shipped name")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="PATTERN",
        help="runs by ARM or ARM/SEED: 'gapo*/0'",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results"), help="of lines, tables and plots"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/studies"), help="of the workdirs of the runs"
    )
    parser.add_argument("--report", action="store_true", help="draw tables and plots, run nothing")
    parser.add_argument("--list", action="store_true", help="print the command of each run")
    args = parser.parse_args(argv)
    if args.processes < 1:
        parser.error(f"--processes must be at least 1, got {args.processes}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs of a study, then draw its page; return the exit status."""
    from gapo_jax.cli.studies.definition import load_study
    from gapo_jax.cli.studies.lines import read_lines
    from gapo_jax.cli.studies.page import write_page
    from gapo_jax.train.lock import locked

    args = parse(argv)
    try:
        study = load_study(args.config)
        path = args.out / f"{study.name}.jsonl"
        status = 0
        if not args.report:
            if args.list:
                return _list(study, args)
            with locked(args.runs / study.name):
                status = _run(study, args, path)
        lines = read_lines(path)
        if lines or args.report:
            for made in write_page(study, lines, args.out):
                print(made)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    return status


def _list(study, args: argparse.Namespace) -> int:
    from gapo_jax.cli.studies.definition import runs_of

    for run in runs_of(study, args.only):
        workdir = args.runs / study.name / run.folder
        command = ["gapo-jax", "train", *run.flags(), "--workdir", str(workdir)]
        print(shlex.join(command))
    return 0


def _run(study, args: argparse.Namespace, path: Path) -> int:
    """Make the runs that have no line; return the exit status."""
    from gapo_jax.cli.studies import lines as study_lines
    from gapo_jax.cli.studies.definition import runs_of
    from gapo_jax.cli.studies.runs import FINISHED, Job, run_all, stopping

    runs = runs_of(study, args.only)
    for run in runs:  # a mistake in the last arm is said before the first one has run
        run.config()
    todo = study_lines.unfinished(runs, study_lines.read_lines(path))
    print(f"{study.name}: {len(todo)} of {len(runs)} runs to make", flush=True)

    def done(job: Job, status: int) -> None:
        word = "finished" if status == FINISHED else "stopped"
        line = study_lines.make_line(job.run, job.workdir, word)
        study_lines.append_line(path, line)
        print(f"{job.run.folder}: {word}, {path} has its line", flush=True)

    with stopping() as stop:
        failures = run_all(todo, args.runs / study.name, args.processes, stop, done)
    if failures:
        print(f"{failures} of the runs failed; the same command tries them again", file=sys.stderr)
        return 1
    if stop.asked:
        print("stopped; the same command goes on", flush=True)
        return _CONTINUE
    return 0


if __name__ == "__main__":
    sys.exit(main())
