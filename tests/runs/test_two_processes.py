"""Runs of several devices and processes, as a user starts them: the same run as on one device."""

import json
import os
import signal
import socket
import subprocess

import numpy as np
import pytest

SMALL = (
    "--config.data.bootstrap_responses=32", "--config.data.pairs=16", "--config.data.prompts=16",
    "--config.data.pairs_heldout=4", "--config.eval.prompts_per_set=32",
    "--config.eval.samples_per_prompt=1", "--config.discriminator.warmup_epochs=1",
    "--config.discriminator.updates_per_round=2", "--config.rounds=2",
    "--config.discriminator.batch_size=4",  # fewer than the mesh has parts: a layout of its own
)  # fmt: skip
MESH = {"data": 2, "fsdp": 4, "tensor": 1, "sampling_tensor": 4}


def mesh(**sizes):
    return [f"--config.mesh.{name}={size}" for name, size in sizes.items()]


def environment(runs, devices):
    options = runs.options()
    options["env"]["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return options


def play(runs, workdir, devices, *flags):
    done = subprocess.run(
        runs.command(workdir, *SMALL, *flags), **environment(runs, devices),
        capture_output=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def start(runs, workdir, process, port, *flags):
    return subprocess.Popen(
        runs.command(
            workdir, *SMALL, *flags, "--coordinator", f"127.0.0.1:{port}",
            "--num_processes", "2", "--process_id", str(process), "--host_timeout_s", "600",
        ),
        **environment(runs, 4), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1] - 1


def same_metrics(runs, one, other, rtol=2e-3):
    """Both runs wrote the same lines, numbers equal to what three Adam updates make of rounding."""
    left, right = runs.comparable(one), runs.comparable(other)
    assert [(x["step"], x["phase"]) for x in left] == [(x["step"], x["phase"]) for x in right]
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], float):
                message = f"{a['phase']} {a['step']} {name}"
                np.testing.assert_allclose(b[name], a[name], rtol=rtol, atol=2e-4, err_msg=message)


@pytest.fixture(scope="module")
def one_device(runs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    play(runs, workdir, 1)
    return workdir


@pytest.mark.slow
def test_two_processes_play_the_run_of_one_device_and_stop_together(runs, one_device, tmp_path):
    """Interrupted by a signal to the second of two processes, continued by one on another mesh."""
    workdir, port = tmp_path / "two", free_port()
    first, second = (start(runs, workdir, i, port, *mesh(**MESH)) for i in (0, 1))
    output = ""
    for line in first.stdout:
        output += line
        if line.startswith("round   1") and "policy" in line:
            second.send_signal(signal.SIGTERM)
            break
    output += first.communicate(timeout=900)[0]
    other = second.communicate(timeout=900)[0]
    assert first.returncode == second.returncode == 0, output + other
    assert "stopped by SIGTERM" in output
    # Only the first process says anything, and only its folder is left.
    assert "round" not in other and "responses in" not in other, other
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    saved = max(int(name) for name in names if name.isdigit())
    assert saved in (0, 1)
    before = len(runs.lines(workdir))
    play(runs, workdir, 8, *mesh(data=1, fsdp=4, tensor=2))
    assert len(runs.lines(workdir)) > before
    same_metrics(runs, one_device, workdir)
    assert (workdir / "export" / "model.safetensors").exists()
    one, two = (json.loads((path / "summary.json").read_text()) for path in (one_device, workdir))
    assert one["after"].keys() == two["after"].keys()


@pytest.mark.slow
def test_the_headline_configuration_is_rehearsed_on_eight_devices(runs, tmp_path):
    done = play(runs, tmp_path, 8, "--config", "configs/gapo_tpu.py:rehearse")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["name"] == "gapo_tpu_rehearse"
    assert (config["mesh"]["fsdp"], config["mesh"]["sampling_tensor"]) == (-1, 4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"policy", "critic", "discriminator"} <= summary["relative_change"].keys(), done.stdout
    assert all(change > 0 for change in summary["relative_change"].values())
    assert (tmp_path / "export" / "model.safetensors").exists()


def test_a_process_that_never_comes_ends_the_run_with_its_name(runs, tmp_path):
    command = runs.command(
        tmp_path, "--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", "2",
        "--process_id", "0", "--host_timeout_s", "1",
    )  # fmt: skip
    done = subprocess.run(command, **runs.options(), capture_output=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "process 1 (host unknown) of 2 did not come to the stage 'join'" in done.stderr
    assert not os.listdir(tmp_path)
