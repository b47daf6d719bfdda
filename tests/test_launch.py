"""scripts/launch_tpu.sh against a stub of the cloud tool, and against shellcheck."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from by_path import ROOT

SCRIPT = ROOT / "scripts" / "launch_tpu.sh"
FLAGS = ("--name", "t", "--zone", "z", "--type", "v5litepod-8", "--bucket", "gs://b/run")
TRAIN = ("--", "--config", "configs/gapo_tiny.py", "--config.name=two words")
# A cloud whose TPU is made by `create`, gone after `preemptions` runs, and deleted by `delete`. It
# runs nothing; it writes down what it was asked.
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$*" | tr '\\n' ' ' >> "$CLOUD/calls"; echo >> "$CLOUD/calls"
case "$*" in
  *' describe '*) cat "$CLOUD/state" 2>/dev/null || exit 1 ;;
  *' create '*) echo READY > "$CLOUD/state" ;;
  *' delete '*) rm -f "$CLOUD/state" ;;
  *--worker=0*)
    if [ -s "$CLOUD/preemptions" ]; then
      : > "$CLOUD/preemptions"; echo PREEMPTED > "$CLOUD/state"; exit 255
    fi
    exit "${RUN_STATUS:-0}" ;;
esac
"""


def launch(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *flags],
        env={**os.environ, "LAUNCH_TPU_POLL_S": "0", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def cloud(tmp_path: pathlib.Path):
    tool = tmp_path / "bin" / "gcloud"
    tool.parent.mkdir()
    tool.write_text(STUB)
    tool.chmod(0o755)
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"

    def run(*flags: str, **more: str):
        done = launch(*flags, PATH=path, CLOUD=str(tmp_path), **more)
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return tmp_path, run


def verbs(calls: list[str]) -> list[str]:
    """Return what was asked of the cloud, in order, without the questions."""
    words = [call.split()[3] for call in calls]
    return [word for word in words if word != "describe"]


def test_a_run_is_made_followed_and_torn_down(cloud) -> None:
    _, run = cloud
    done, calls = run(*FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", "scp", "ssh", "ssh", "ssh", "delete"]
    install, start, follow = [call for call in calls if " ssh " in call]
    assert "jax[tpu]==" in install and "--worker=all" in install
    assert "uv venv --seed --python 3.12" in install  # where the image's Python is too old
    assert (
        "--worker=all" in start and "--config.checkpoint.directory=gs://b/run/checkpoints" in start
    )
    assert "JAX_COMPILATION_CACHE_DIR=gs://b/run/compiled" in start
    assert r"--config.name=two\ words" in start
    assert "--worker=0" in follow and "train.log" in follow


def test_after_a_preemption_the_tpu_is_made_again_and_the_run_continues(cloud) -> None:
    folder, run = cloud
    (folder / "preemptions").write_text("1")
    done, calls = run(*FLAGS, "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    once = ["create", "scp", "ssh", "ssh", "ssh", "delete"]
    assert verbs(calls) == once + once
    assert "taken away" in done.stdout
    (folder / "preemptions").write_text("1")
    done, _ = run(*FLAGS, "--restarts", "0", *TRAIN)
    assert done.returncode == 2 and "taken away 1 times" in done.stderr


def test_a_ready_tpu_is_taken_a_failed_run_keeps_its_status(cloud) -> None:
    folder, run = cloud
    (folder / "state").write_text("READY")
    done, calls = run(*FLAGS, "--keep", *TRAIN, RUN_STATUS="3")
    assert done.returncode == 3
    assert verbs(calls) == ["scp", "ssh", "ssh", "ssh"]


def test_a_run_that_a_signal_stopped_is_continued_on_the_same_tpu(cloud) -> None:
    _, run = cloud
    done, calls = run(*FLAGS, "--restarts", "1", *TRAIN, RUN_STATUS="75")
    assert verbs(calls) == ["create"] + ["scp", "ssh", "ssh", "ssh"] * 2
    assert done.returncode == 2 and "stopped or TPU t taken away 2 times" in done.stderr


def test_a_bucket_of_odd_characters_stays_one_word(cloud) -> None:
    _, run = cloud
    _, calls = run(*FLAGS[:6], "--bucket", "gs://b/my $(run)", *TRAIN)
    (start,) = [call for call in calls if "COMPILATION_CACHE_DIR" in call]
    assert r"gs://b/my\ \$\(run\)/compiled" in start and "my $(run)" not in start


def test_queued_resources_and_teardown(cloud) -> None:
    folder, run = cloud
    done, calls = run(*FLAGS, "--queued", "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "queued-resources create t --node-id t" in calls[1] and "--spot" in calls[1]
    (folder / "calls").unlink()
    done, calls = run("--name", "t", "--zone", "z", "--down")
    assert [call.split()[2] for call in calls] == ["tpu-vm", "queued-resources"]
    assert all(" delete t" in call for call in calls)


def test_a_dry_run_prints_every_command_and_runs_none(cloud) -> None:
    _, run = cloud
    done, calls = run(*FLAGS, "--dry-run", *TRAIN)
    assert done.returncode == 0 and not calls
    commands = [line for line in done.stdout.splitlines() if line.startswith("+ gcloud")]
    assert [line.split()[5] for line in commands] == [
        "create",
        "scp",
        "ssh",
        "ssh",
        "ssh",
        "delete",
    ]


def test_what_the_workers_run_is_a_script_that_parses(cloud) -> None:
    """The here-documents are quoted twice on their way; bash reads what arrives."""
    _, run = cloud
    done, _ = run(*FLAGS, "--dry-run", *TRAIN)
    lines = [line for line in done.stdout.splitlines() if "--command" in line]
    for line in lines:
        command = line.split("--command ", 1)[1].rsplit(" --zone", 1)[0]
        spelt = subprocess.run(
            ["bash", "-c", f"printf %s {command}"], capture_output=True, text=True, check=True
        ).stdout
        subprocess.run(["bash", "-n", "-c", spelt], check=True)
        if "start.sh" in spelt:
            inner = spelt.split("<<'START'\n", 1)[1].split("\nSTART\n", 1)[0]
            subprocess.run(["bash", "-n", "-c", inner], check=True)
            assert '"${hosts[0]}:8476"' in inner and "$status" in inner


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--zone", "z"), "--name is missing"),
        (("--name", "t", "--zone", "z"), "--type is missing"),
        ((*FLAGS[:6], "--bucket", "b"), "wants gs://BUCKET/FOLDER, got 'b'"),
        (FLAGS, "put the flags of scripts/train.py behind --"),
        (("--nam", "t"), "unknown option '--nam'"),
        ((*FLAGS, *TRAIN), "gcloud is not installed"),
    ],
)
def test_wrong_flags_are_explained_before_anything_is_made(
    flags: tuple[str, ...], message: str, tmp_path: pathlib.Path
) -> None:
    for name in ("bash", "dirname", "git", "mktemp"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = launch(*flags, PATH=str(tmp_path))
    assert done.returncode == 2 and message in done.stderr


def test_shellcheck() -> None:
    tool = shutil.which("shellcheck") or str(pathlib.Path(sys.executable).parent / "shellcheck")
    if not pathlib.Path(tool).exists():
        pytest.skip("shellcheck is not installed; it is in the extra 'test'")
    done = subprocess.run([tool, "-x", str(SCRIPT)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
