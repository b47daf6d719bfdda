"""The Slurm script, the JobSet of GKE and the SkyPilot file, as their tools would read them."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml
from by_path import ROOT

from gapo_jax.train.cluster import from_environment

SCRIPTS = ROOT / "scripts"
TRAIN = ("--config", "configs/gapo_tiny.py", '--config.name=two words "quoted"')
GKE = (
    "--name", "gapo", "--image", "gcr.io/p/gapo:1", "--bucket", "gs://b/run", "--nodes", "4",
    "--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4",
)  # fmt: skip


def bash(script: str, *flags: str, cwd: pathlib.Path = ROOT, **environment: str):
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *flags], cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def stub(folder: pathlib.Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (folder / name).chmod(0o755)


def words(text: str) -> list[str]:
    """Return the words that bash makes of a line."""
    command = f'printf "%s\\n" {text}'
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout.split(
        "\n"
    )


def test_slurm_starts_one_process_a_node_with_the_flags_as_they_are() -> None:
    done = bash("slurm.sh", "--dry-run", *TRAIN)
    assert done.returncode == 0, done.stderr
    started = words(done.stdout)
    assert started[0] == "srun" and "scripts/train.py" in started
    assert all(flag in started for flag in TRAIN)
    assert "--coordinator" not in done.stdout  # the processes read Slurm's variables
    text = (SCRIPTS / "slurm.sh").read_text()
    assert "#SBATCH --ntasks-per-node=1" in text and "#SBATCH --signal=TERM@" in text
    assert bash("slurm.sh").returncode == 2


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (3, False)])
def test_slurm_queues_a_stopped_run_again(status, requeued, tmp_path) -> None:
    stub(tmp_path / "bin", "srun", f"exit {status}")
    stub(tmp_path / "bin", "scontrol", 'echo "$@" > requeued')
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = bash("slurm.sh", *TRAIN, cwd=tmp_path, PATH=path, SLURM_JOB_ID="7")
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == requeued


def test_a_jobset_asks_for_what_was_asked_and_its_processes_find_each_other() -> None:
    done = bash("launch_gke.sh", "--dry-run", *GKE, "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    jobset = yaml.safe_load(done.stdout)
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "gapo")
    (job,) = jobset["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert tuple(container["args"][-3:]) == TRAIN
    assert "--config.checkpoint.directory=gs://b/run/checkpoints" in container["args"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    environ = {item["name"]: item["value"] for item in container["env"]}
    place = from_environment(environ | {"JOB_COMPLETION_INDEX": "2"}, lambda key: "")
    assert place[:3] == ("gapo-run-0-0.gapo:8476", 4, 2)
    # 75, a run that a signal stopped, is started again; errors are not.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2, 3]


def test_a_jobset_of_gpus_and_what_is_missing() -> None:
    done = bash("launch_gke.sh", "--dry-run", *GKE[:8], "--gpu", "nvidia-h100-80gb", "--", *TRAIN)
    (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}
    for flags, message in (
        (GKE[2:], "--name is missing"),
        (GKE[:8], "--accelerator and --topology are missing"),
        (GKE, "put the flags of scripts/train.py behind --"),
        (("--nam", "t"), "unknown option '--nam'"),
    ):
        done = bash("launch_gke.sh", *flags)
        assert done.returncode == 2 and message in done.stderr


def test_the_skypilot_file_starts_every_node_with_its_number(tmp_path) -> None:
    task = yaml.safe_load((SCRIPTS / "sky_tpu.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    subprocess.run(["bash", "-n", "-c", task["setup"]], check=True)
    stub(tmp_path / ".venv" / "bin", "python", 'printf "%s\\n" "$@"; exit 75')
    stub(tmp_path / "bin", "gcloud", "exit 0")
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "BUCKET": "gs://b/run", "CONFIG": "configs/gapo_tiny.py", "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1",
    }  # fmt: skip
    # Without the loop that mirrors every minute, which would outlive the test.
    program = task["run"].replace("(while sleep 60; do mirror; done)", "true")
    assert program != task["run"]
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 75, done.stderr
    started = done.stdout.splitlines()
    assert started[started.index("--coordinator") + 1] == "10.0.0.1:8476"
    assert started[started.index("--process_id") + 1] == "1"


@pytest.mark.parametrize("script", ["slurm.sh", "launch_gke.sh"])
def test_shellcheck(script) -> None:
    tool = shutil.which("shellcheck") or str(pathlib.Path(sys.executable).parent / "shellcheck")
    if not pathlib.Path(tool).exists():
        pytest.skip("shellcheck is not installed; it is in the extra 'test'")
    done = subprocess.run([tool, SCRIPTS / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
