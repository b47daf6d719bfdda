"""Runs of several devices and processes, as a user starts them: the same run as on one device."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from gapo_jax.cli.train import CONTINUE

# The headline configuration as it is rehearsed, a mesh of eight devices; with few and short rows.
CONFIG = "configs/gapo_tpu.py:rehearse"
SMALL = {
    "data__bootstrap_responses": 32, "data__pairs": 16, "data__prompts": 16,
    "data__pairs_heldout": 4, "sampling__batch_size": 8, "sampling__max_new_tokens": 8,
    "ppo__prompts_per_round": 2, "ppo__samples_per_prompt": 4, "ppo__minibatch_size": 8,
    "ppo__critic_epochs": 1, "eval__prompts_per_set": 8, "discriminator__warmup_epochs": 1,
    "discriminator__updates_per_round": 2,
    "discriminator__batch_size": 4,  # fewer than the mesh has parts: a layout of its own
}  # fmt: skip
FLAGS = [f"--config.{path.replace('__', '.')}={value}" for path, value in SMALL.items()]


def environment(runs, devices):
    options = runs.options()
    count = f" --xla_force_host_platform_device_count={devices}"
    options["env"]["XLA_FLAGS"] = options["env"].get("XLA_FLAGS", "") + count
    return options


def play(runs, workdir, devices, *flags):
    done = subprocess.run(
        runs.command(workdir, *flags, config=CONFIG), **environment(runs, devices),
        capture_output=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def start(runs, workdir, process, port, flags):
    command = runs.command(
        workdir, *flags, "--coordinator", f"127.0.0.1:{port}", "--num_processes", "2",
        "--process_id", str(process), "--host_timeout_s", "600", config=CONFIG,
    )  # fmt: skip
    return subprocess.Popen(
        command, **environment(runs, 4), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1] - 1  # the port after it is used too


def same_metrics(runs, one, other, rtol=2e-3):
    """Both runs wrote the same lines, numbers equal to what a few Adam updates make of rounding."""
    left, right = runs.comparable(one), runs.comparable(other)
    assert [(x["step"], x["phase"]) for x in left] == [(x["step"], x["phase"]) for x in right]
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], float):
                message = f"{a['phase']} {a['step']} {name}"
                np.testing.assert_allclose(b[name], a[name], rtol=rtol, atol=2e-4, err_msg=message)


@pytest.mark.parametrize("buckets", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_make_the_run_of_one_device_and_stop_together(runs, tmp_path, buckets):
    """Interrupted by a signal to the second of two processes, continued by one on another mesh."""
    alone, workdir, port = tmp_path / "one", tmp_path / "two", free_port()
    flags = (*FLAGS, f"--config.ppo.length_buckets={buckets}")
    first, second = (start(runs, workdir, i, port, flags) for i in (0, 1))
    output, again = "", shlex.join([sys.executable, *first.args[1:]])
    for line in first.stdout:
        output += line
        if line.startswith("round   1") and "policy" in line:
            second.send_signal(signal.SIGTERM)
            break
    output += first.communicate(timeout=900)[0]
    other = second.communicate(timeout=900)[0]
    assert first.returncode == second.returncode == CONTINUE, output + other
    assert "stopped by SIGTERM" in output and f"continue with: {again}\n" in output
    # Only the first process says anything, and only its folder is left.
    assert "round" not in other and "responses in" not in other, other
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    saved = max(int(name) for name in names if name.isdigit())
    assert saved in (0, 1)
    config = json.loads((workdir / "config.json").read_text())
    assert config["name"] == "gapo_tpu_rehearse"
    assert config["mesh"] == {"data": 1, "fsdp": -1, "tensor": 1, "sampling_tensor": 4}
    before = len(runs.lines(workdir))
    play(runs, workdir, 8, *flags, "--config.mesh.fsdp=4", "--config.mesh.tensor=2")
    assert len(runs.lines(workdir)) > before
    code, _, err = runs.run_here(alone, file=CONFIG, **SMALL, ppo__length_buckets=buckets)
    assert code == 0, err
    same_metrics(runs, alone, workdir)
    one, two = (json.loads((path / "summary.json").read_text()) for path in (alone, workdir))
    assert one["after"].keys() == two["after"].keys()
    learned(workdir, two)


def learned(workdir, summary):
    assert {"policy", "critic", "discriminator"} <= summary["relative_change"].keys()
    assert all(change > 0 for change in summary["relative_change"].values())
    assert (workdir / "export" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_headline_configuration_is_rehearsed_on_eight_devices(runs, tmp_path):
    """By its own command, unchanged; the test above runs it too, smaller and in two processes."""
    play(runs, tmp_path, 8)
    learned(tmp_path, json.loads((tmp_path / "summary.json").read_text()))


def test_a_process_that_never_comes_ends_the_run_with_its_name(runs, tmp_path):
    command = runs.command(
        tmp_path, "--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", "2",
        "--process_id", "0", "--host_timeout_s", "1",
    )  # fmt: skip
    done = subprocess.run(command, **runs.options(), capture_output=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "error: process 1 (machine unknown) did not come to the stage 'join'" in done.stderr
    assert not os.listdir(tmp_path)
