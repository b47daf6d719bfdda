"""Which process of a run this is, read out of the environments of Slurm, Kubernetes and TPU VMs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from by_path import ROOT
from jax._src.clusters.slurm_cluster import SlurmCluster

from gapo_jax.train.cluster import from_environment


def nobody(key):
    """The metadata server of a machine that is no TPU VM."""
    return ""


def slurm(nodes, job=7, count=4, index=2):
    return {
        "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": nodes, "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index), "SLURM_LOCALID": "0",
    }  # fmt: skip


@pytest.mark.parametrize(
    "nodes", ["node7", "node7,other2", "node[07-12,15],other", "tpu-a[3,7-9]", "a-b,c[1-2]"]
)
def test_slurm_as_jax_reads_it(nodes, monkeypatch) -> None:
    place = from_environment(slurm(nodes), nobody)
    for key, value in slurm(nodes).items():
        monkeypatch.setenv(key, value)
    assert place.coordinator.rpartition(":")[0] == SlurmCluster.get_coordinator_address(1, "1")[:-2]
    assert (place.count, place.index) == (4, 2)
    assert 61440 <= int(place.coordinator.rpartition(":")[2]) < 65535  # the port after it is used


def test_an_allocation_without_a_step_or_with_one_task_is_one_process() -> None:
    environ = slurm("node7")
    del environ["SLURM_STEP_NODELIST"]
    assert from_environment(environ, nobody) is None
    assert from_environment(slurm("node7", count=1, index=0), nobody) is None
    assert from_environment({}, nobody) is None
    assert from_environment({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None


def test_kubernetes_gke_and_tpu_vms() -> None:
    job = {"JAX_COORDINATOR_ADDRESS": "run-0-0.run", "JAX_NUM_PROCESSES": "4"}
    place = from_environment(job | {"JOB_COMPLETION_INDEX": "3"}, nobody)
    assert place[:3] == ("run-0-0.run:8476", 4, 3)
    gke = {"TPU_WORKER_HOSTNAMES": "w-0.run,w-1.run", "TPU_WORKER_ID": "1"}
    assert from_environment(gke, nobody)[:3] == ("w-0.run:8476", 2, 1)
    told = {"worker-network-endpoints": "a:z:10.0.0.2,b:z:10.0.0.3", "agent-worker-number": "1"}
    assert from_environment({}, told.__getitem__)[:3] == ("10.0.0.2:8476", 2, 1)
    alone = {"worker-network-endpoints": "a:z:10.0.0.2", "agent-worker-number": "0"}
    assert from_environment({}, alone.__getitem__) is None


def test_a_variable_that_is_no_number_is_named() -> None:
    job = {"JAX_COORDINATOR_ADDRESS": "h", "JAX_NUM_PROCESSES": "all", "JAX_PROCESS_ID": "0"}
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES must be a number, got 'all'"):
        from_environment(job, nobody)


def test_two_tasks_of_slurm_meet_without_a_flag() -> None:
    """The program's own way from the environment to a run of two processes."""
    job = os.getpid()  # decides on the ports
    code = (
        "from gapo_jax.train.cluster import from_environment; from gapo_jax.train import runtime;"
        "p = from_environment(); r = runtime.join(*p[:3], 120); print(r.gather('hello', r.index))"
    )
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ
            | slurm("127.0.0.1", job, 2, i)
            | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for task in tasks:
        out, errors = task.communicate(timeout=240)
        assert task.returncode == 0 and "[0, 1]" in out, errors
