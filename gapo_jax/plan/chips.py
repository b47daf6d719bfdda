"""The chips that plans are made for, and the environment in which their compiler runs anywhere.

Imports no JAX: `prepare` sets variables that JAX and libtpu read when they are loaded.
"""

from __future__ import annotations

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device, as its maker publishes it.

    Attributes:
        hbm_gb: memory for programs, GB (10^9 bytes). Of a TPU the published GiB less what the
            compiler reserves; of a GPU three quarters of its memory, the pool that JAX takes.
        tflops: peak of bfloat16 products, dense.
        gb_s: bandwidth of the memory.
        link_gb_s: what a device can send on all links to its neighbours together, one direction.
        ghz: clock, for a TPU's estimated cycles (assumed).
        target: for a GPU, its description for XLA's compiler.
    """

    hbm_gb: float
    tflops: float
    gb_s: float
    link_gb_s: float
    ghz: float = 0.0
    target: str = ""


# A GPU's figures as openxla/xla describes it (xla/backends/gpu/target_config/specs). All fields
# must be there: the compiler dies of a division by zero where one is missing.
_TARGET = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {ghz} device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ {capability} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }} device_description_str: "{name}"
"""
_HOPPER = {
    "cores": 132, "fpus": 128, "shared": 233472, "optin": 232448, "cache": 52428800, "ghz": 1.98,
    "capability": "major: 9 feature_extension: ACCELERATED_FEATURES",
}  # fmt: skip
_AMPERE = {
    "cores": 108, "fpus": 64, "shared": 167936, "optin": 166912, "cache": 41943040, "ghz": 1.41,
    "capability": "major: 8",
}  # fmt: skip


def _gpu(name: str, memory: int, bandwidth: int, tflops: float, link: float, core: dict) -> Chip:
    target = _TARGET.format(name=name, memory=memory, bandwidth=bandwidth, **core)
    return Chip(0.75 * memory / 1e9, tflops, bandwidth / 1e9, link, target=target)


CHIPS = {
    "v5e": Chip(15.75 * 1.0737, 197.0, 819.0, 200.0, 1.5),
    "v5p": Chip(95.0 * 1.0737, 459.0, 2765.0, 600.0, 1.75),
    "v6e": Chip(31.25 * 1.0737, 918.0, 1640.0, 448.0, 1.75),
    "a100": _gpu(
        "NVIDIA A100-SXM4-80GB", 85100068864, 2039040000000, 312.0, 300.0, _AMPERE
    ),
    "h100": _gpu(
        "NVIDIA H100 80GB HBM3", 84942979072, 3352320000000, 989.0, 450.0, _HOPPER
    ),
    "h200": _gpu("NVIDIA H200", 151397597184, 4800000000000, 989.0, 450.0, _HOPPER),
}  # fmt: skip
GPUS = tuple(name for name, chip in CHIPS.items() if chip.target)


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
    elif kind in GPUS and shape.isdigit() and int(shape):
        _drop_cpu_flags()
    elif kind in CHIPS and kind not in GPUS and shape:
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_LOG_DIR": "disabled",
        }  # no look-up of a machine's metadata, no lock on a device, no log
        _drop_cpu_flags()
    else:
        tpus = sorted(set(CHIPS) - set(GPUS))
        raise ValueError(
            f"wanted --topology KIND:SHAPE with a TPU of {tpus} (v5e:8x8, v5p:2x2x4), a GPU of "
            f"{sorted(GPUS)} and a number of them in one machine (h100:8), or cpu:COUNT; got "
            f"{topology!r}"
        )


def _drop_cpu_flags() -> None:
    """Other compilers abort when they meet a flag that only the CPU's knows."""
    given = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in given if not flag.startswith("--xla_cpu_")]
    os.environ["XLA_FLAGS"] = " ".join(kept)
