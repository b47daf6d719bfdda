"""Runs that end early, by a signal, by themselves or for bad input; and PPO, the frozen judge."""

import signal
import subprocess

import numpy as np
import pytest


def test_sigterm_saves_exits_0_and_says_how_to_go_on(runs, tmp_path):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(
        runs.command(workdir, "--config.rounds=500"), **runs.options(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("round   1") and "save" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert "continue with: python scripts/train.py" in out
    assert any((workdir / "checkpoints").glob("[1-9]*"))


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ("--config.ppo.clip_lo=0.3", "did you mean 'clip_low'"),
        ("--config.data.max_prompt_tokens=20", "config.data.max_prompt_tokens=20"),
        ("--config.model.generator=/no/such/model", "/no/such/model"),
    ],
)
def test_bad_input_ends_with_what_to_change(runs, tmp_path, flag, wanted):
    done = runs.play(tmp_path / "run", flag)
    assert done.returncode != 0
    assert wanted in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_collapsing_run_saves_and_stops_itself(runs, tmp_path):
    workdir = tmp_path / "run"
    done = runs.play(workdir, "--config.ppo.kl_limit=0.0001", "--config.checkpoint.every_rounds=3")
    assert done.returncode == 3
    assert "KL to the reference" in done.stderr
    assert "kl_limit" in done.stderr
    # Round 1 was not due for a checkpoint, and is saved all the same.
    assert (workdir / "checkpoints" / "1").is_dir()


def test_ppo_leaves_the_discriminator_frozen(runs, tmp_path):
    workdir = tmp_path / "run"
    done = runs.play(workdir, "--config.method=ppo", "--config.rounds=1", "--config.export=False")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [line for line in runs.lines(workdir) if line["phase"] == "discriminator"]
    first, last = runs.states(workdir, 0, 1)
    import jax

    jax.tree.map(
        np.testing.assert_array_equal, first.discriminator.params, last.discriminator.params
    )
    policies = zip(jax.tree.leaves(first.policy), jax.tree.leaves(last.policy), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in policies)
