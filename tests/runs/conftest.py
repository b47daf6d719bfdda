"""Whole runs of the tiny configuration: in a process of its own as a user starts it, or, where the
process itself is not what is tested, by the same function in this one."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest
from by_path import ROOT, load

from gapo_jax.config import change

# What depends on the process rather than on the run.
PROCESS = ("time", "throughput/", "compile/", "device/")


class Runs:
    """Starts runs and reads what they leave."""

    def command(self, workdir, *flags, config="configs/gapo_tiny.py"):
        return [
            sys.executable, "scripts/train.py", "--config", config, "--workdir", str(workdir),
            *flags,
        ]  # fmt: skip

    def options(self):
        own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        own["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as in the tests' own processes
        return {"cwd": ROOT, "env": os.environ | own, "text": True}

    def play(self, workdir, *flags):
        return subprocess.run(
            self.command(workdir, *flags), **self.options(), capture_output=True, check=False,
            timeout=600,
        )  # fmt: skip

    def config(self, file="configs/gapo_tiny.py", **changes):
        """A configuration, the tiny one by default, with changes by path, `__` for a dot."""
        path, _, preset = file.partition(":")
        config = load(path).get_config(preset)
        return change(config, {path.replace("__", "."): x for path, x in changes.items()})

    def run_here(self, workdir, **changes):
        """Play a run (of `file`) in this process by the function that the script calls; return
        (exit status, what it printed, its last word on stderr)."""
        from gapo_jax.cli.train import train
        from gapo_jax.config import finalize

        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = train(finalize(self.config(**changes)), workdir)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
                err.write("" if isinstance(end.code, int) else str(end.code))
        return code, out.getvalue(), err.getvalue()

    def lines(self, workdir, name="metrics.jsonl"):
        return [json.loads(line) for line in (workdir / name).read_text().splitlines()]

    def comparable(self, workdir):
        return [
            {k: v for k, v in line.items() if not k.startswith(PROCESS)}
            for line in self.lines(workdir)
        ]

    def models(self, workdir):
        from gapo_jax.config import finalize, from_json
        from gapo_jax.train.build import build_models

        config = finalize(from_json(json.loads((workdir / "config.json").read_text())))
        return config, build_models(config)

    def host(self, workdir, step):
        """Return what the checkpoint `step` holds beside its arrays."""
        path = workdir / "checkpoints" / str(step) / "host" / "data.json"
        return json.loads(path.read_text())

    def states(self, workdir, *steps):
        """Return the checkpointed states at `steps`."""
        from gapo_jax.checkpoint import Checkpointer
        from gapo_jax.train.build import build_steps, initial_state
        from gapo_jax.train.restore import restore_state

        config, models = self.models(workdir)
        pairs = (workdir / "pairs.jsonl").read_text().count("\n")
        state = initial_state(config, models, build_steps(config, models, pairs))
        with Checkpointer(workdir / "checkpoints", keep=config.checkpoint.keep) as checkpointer:
            return [restore_state(checkpointer, state, step)[0] for step in steps]


@pytest.fixture(scope="session")
def runs():
    return Runs()
