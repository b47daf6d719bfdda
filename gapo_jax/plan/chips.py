"""The chips that plans are made for, and the environment in which their compiler runs anywhere.

Imports no JAX: `prepare` sets variables that JAX and libtpu read when they are loaded.
"""

from __future__ import annotations

import os

# HBM per chip in GB (10^9 bytes; the published GiB less what the compiler reserves), peak bf16
# TFLOP/s and GB/s as published by the maker, clock in GHz (assumed).
CHIPS = {
    "v5e": {"hbm_gb": 15.75 * 1.0737, "tflops": 197.0, "gb_s": 819.0, "ghz": 1.5},
    "v5p": {"hbm_gb": 95.0 * 1.0737, "tflops": 459.0, "gb_s": 2765.0, "ghz": 1.75},
    "v6e": {"hbm_gb": 31.25 * 1.0737, "tflops": 918.0, "gb_s": 1640.0, "ghz": 1.75},
}


def prepare(topology: str) -> None:
    """Set the environment for a topology, KIND:SHAPE; to be called before JAX is imported.

    Raises:
        ValueError: the topology is unknown.
    """
    kind, _, shape = topology.partition(":")
    os.environ["JAX_PLATFORMS"] = "cpu"
    if kind == "cpu" and shape.isdigit():
        count = f"--xla_force_host_platform_device_count={shape}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    elif kind in CHIPS and shape:
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_LOG_DIR": "disabled",
        }  # no look-up of a machine's metadata, no lock on a device, no log
        # The TPU compiler aborts when it meets a flag that only the CPU compiler knows.
        given = os.environ.get("XLA_FLAGS", "").split()
        kept = [flag for flag in given if not flag.startswith("--xla_cpu_")]
        os.environ["XLA_FLAGS"] = " ".join(kept)
    else:
        raise ValueError(
            f"wanted --topology KIND:SHAPE with a kind of {sorted(CHIPS)} (v5e:8x8, v5p:2x2x4) or "
            f"cpu:COUNT, got {topology!r}; programs for GPUs compile only where the GPU is"
        )
