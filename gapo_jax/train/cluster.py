"""Which process of which run this is, where the environment says so: Slurm, Kubernetes, TPU VMs.

`jax.distributed.initialize` finds these out as well, but with a client of Kubernetes' interface, a
minute of waiting where no metadata server answers, and no say about a missing process
(`runtime.join`). What it reads is read here without any of them.
"""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

_PORT = 8476  # and the one after it
# Slurm runs several jobs on a machine: each has ports of its own, as jax chooses them.
_SLURM_PORTS = range(61440, 65534)
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
_METADATA_S = 3.0


class Place(NamedTuple):
    """The address of process 0, the number of processes, the number of this one, and who said
    so."""

    coordinator: str
    count: int
    index: int
    source: str


def metadata(key: str) -> str:
    """Return what a TPU VM's metadata server says of a key, or "" where there is no TPU or no
    server."""
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    if not chips or os.environ.get("TPU_SKIP_MDS_QUERY"):
        return ""
    request = urllib.request.Request(_METADATA + key, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=_METADATA_S) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def from_environment(
    environ: Mapping[str, str] = os.environ, ask: Callable[[str], str] = metadata
) -> Place | None:
    """Return which process of several this is, or None where nothing says that there are several.

    In this order: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID (or, in an
    indexed job of Kubernetes, JOB_COMPLETION_INDEX); a step of Slurm; the TPU hosts of GKE; the
    metadata of a TPU VM.

    Raises:
        ValueError: one of these variables is there but is no number; names it.
    """
    for read in (_from_jax, _from_slurm, _from_gke):
        place = read(environ)
        if place is not None:
            break
    else:
        place = _from_metadata(ask)
    return place if place is not None and place.count > 1 else None


def _number(environ: Mapping[str, str], key: str) -> int:
    try:
        return int(environ[key])
    except ValueError:
        raise ValueError(
            f"{key} must be a number, got {environ[key]!r}; correct it, or give --coordinator, "
            "--num_processes and --process_id"
        ) from None


def _from_jax(environ: Mapping[str, str]) -> Place | None:
    index = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environ else "JOB_COMPLETION_INDEX"
    if not {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", index} <= set(environ):
        return None
    address = environ["JAX_COORDINATOR_ADDRESS"]
    address = address if ":" in address else f"{address}:{_PORT}"
    count = _number(environ, "JAX_NUM_PROCESSES")
    return Place(address, count, _number(environ, index), "JAX_COORDINATOR_ADDRESS")


def _from_slurm(environ: Mapping[str, str]) -> Place | None:
    """Only within a step (`srun`): an allocation alone starts one process."""
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"} <= set(environ):
        return None
    nodes = environ["SLURM_STEP_NODELIST"]  # node7 | node7,other | node[07-12,15],other
    match = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    if match is None:
        return None
    port = _SLURM_PORTS[_number(environ, "SLURM_JOB_ID") % len(_SLURM_PORTS)]
    count, index = _number(environ, "SLURM_NTASKS"), _number(environ, "SLURM_PROCID")
    return Place(f"{match[1]}{match[2] or ''}:{port}", count, index, "Slurm")


def _from_gke(environ: Mapping[str, str]) -> Place | None:
    names = [name for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(names) < 2 or "TPU_WORKER_ID" not in environ:
        return None
    index = _number(environ, "TPU_WORKER_ID")
    return Place(f"{names[0]}:{_PORT}", len(names), index, "TPU_WORKER_HOSTNAMES")


def _from_metadata(ask: Callable[[str], str]) -> Place | None:
    # Entries are ID:ZONE:ADDRESS, sorted by worker.
    entries = [entry for entry in ask("worker-network-endpoints").split(",") if entry]
    if len(entries) < 2:
        return None
    index = _number({"agent-worker-number": ask("agent-worker-number")}, "agent-worker-number")
    return Place(f"{entries[0].split(':')[2]}:{_PORT}", len(entries), index, "TPU VM metadata")
