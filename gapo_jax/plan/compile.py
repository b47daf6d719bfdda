"""Compile the steps of a run for a machine that is not here, and derive what they cost there.

`plan` returns one record for a configuration and a topology; `gapo_jax/cli/plan.py` prints it and
says where each figure comes from. The environment has to be prepared first (`chips.prepare`).
"""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from gapo_jax.config import Config, change, finalize, from_json, lookup, to_json
from gapo_jax.methods import has_critic
from gapo_jax.plan import cost, shapes
from gapo_jax.plan.chips import CHIPS, GPUS
from gapo_jax.plan.steps import PlannedStep, planned_steps
from gapo_jax.records import JsonObject
from gapo_jax.sharding import Placement, make_mesh

# What a record of a step holds, in this order; None where the compiler does not say.
_FIGURES = (
    "hbm_gb", "together_gb", "argument_gb", "output_gb", "temp_gb", "alias_gb", "fits",
    "model_tflops", "executed_tflops", "compute_s_estimate", "mfu_upper_bound", "wire_total_gb",
    "wire_gb", "roofline_s", "lower_s", "compile_s",
)  # fmt: skip
_GB = 1e9
# Without the GPU that runs it nobody tries which way to multiply is the fastest. XLA then takes
# Triton's for most products; the other one, cuBLAS, needs other memory.
_GEMM_VARIANTS: dict[str, dict[str, bool]] = {
    "triton": {}, "cublas": {"xla_gpu_enable_triton_gemm": False}
}  # fmt: skip


def devices_of(topology: str) -> Any:
    """Return the devices of a topology, here or described.

    Raises:
        ValueError: the compiler is not installed, or does not describe the topology.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        return jax.devices()
    options: dict[str, str] = {}
    if kind in GPUS:
        if importlib.util.find_spec("jax_cuda13_plugin") is None:
            raise ValueError(
                f"--topology {topology} needs the GPU compiler, which is not installed: `pip "
                f"install jax-cuda13-plugin=={jax.__version__}` and `pip install --no-deps "
                "nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-runtime nvidia-cudnn-cu13` (no GPU and "
                "no driver needed)"
            )
        options = {"target_config": CHIPS[kind].target, "topology": f"1x1x{shape}"}
    platform = "cuda" if kind in GPUS else "tpu"
    try:
        return topologies.get_topology_desc(
            topology_name=topology, platform=platform, **options
        ).devices
    except Exception as error:  # what the plug-ins raise has no common type
        package = f"jax-cuda13-plugin=={jax.__version__}" if kind in GPUS else "libtpu"
        raise ValueError(
            f"the compiler does not describe {topology!r}: {str(error).splitlines()[0]}. Install "
            f"it with `pip install {package}`; a shape is written as v5e:8x8, v5p:2x2x4 or h100:8"
        ) from error


def compile_step(step: PlannedStep, topology: str, folder: Path) -> JsonObject:
    """Compile one step and return its figures; the text of its program is written to `folder`.

    For a GPU it is compiled with either way to multiply matrices, and the figures are those of the
    one that needs more memory.
    """
    kind = topology.partition(":")[0]
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    lowered = step.lower()
    common = {"model_tflops": step.flops / 1e12, "lower_s": round(time.perf_counter() - start, 1)}
    if kind in GPUS:
        records = [
            _compiled(step, lowered, kind, folder / name, options)
            for name, options in _GEMM_VARIANTS.items()
        ]
        record = max(records, key=lambda each: each["hbm_gb"] or math.inf)
    elif kind in CHIPS:
        # as_text() fails for large TPU programs, so the compiler dumps them. On a CPU the dump
        # would be thousands of files, and as_text() works.
        options = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": "True"}
        record = _compiled(step, lowered, kind, folder, options)
    else:
        record = _compiled(step, lowered, kind, folder, {})
    return record | common


def _compiled(
    step: PlannedStep, lowered: Any, kind: str, folder: Path, options: JsonObject
) -> JsonObject:
    """Compile a lowered step with options of the compiler; return its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    record: JsonObject = dict.fromkeys(_FIGURES)
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return record | {"fits": False, "error": _used(str(error))}
    record["compile_s"] = round(time.perf_counter() - start, 1)
    if kind in GPUS or kind not in CHIPS:
        (folder / f"{step.name}.after_optimizations.txt").write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    record |= {
        "argument_gb": memory.argument_size_in_bytes / _GB,
        "output_gb": memory.output_size_in_bytes / _GB,
        "alias_gb": memory.alias_size_in_bytes / _GB,
        "temp_gb": memory.temp_size_in_bytes / _GB,
    }
    record |= costs(step, kind, folder, record)
    record["hbm_gb"] = (
        record["argument_gb"] + record["output_gb"] - record["alias_gb"] + record["temp_gb"]
    )
    return record | {"fits": True}


def _used(message: str) -> str:
    """Return the line of the compiler's message that gives the memory it needed."""
    lines = [line for line in message.splitlines() if "xceeded" in line or "Used" in line]
    return (lines or message.splitlines())[0].strip()[:300]


def costs(step: PlannedStep, kind: str, folder: Path, memory: JsonObject) -> JsonObject:
    """Return the estimates of time and communication from the text of a compiled program; on a GPU
    also the temporary memory, with what cuDNN's attention takes beside."""
    files = sorted(folder.glob("*after_codegen.txt")) or sorted(
        folder.glob("*after_optimizations.txt")
    )
    if not files:
        return {}
    text = max(files, key=lambda path: path.stat().st_size).read_text()
    program = cost.read_program(text)
    wire = cost.wire_bytes(program)
    record: JsonObject = {
        "wire_total_gb": sum(wire.values()) / _GB,
        "wire_gb": {cause: size / _GB for cause, size in list(wire.items())[:12]},
    }
    if kind not in CHIPS:
        return record
    chip = CHIPS[kind]
    count = int(text.partition("num_partitions=")[2].split(",")[0] or 1)
    operations = needed = step.flops / count
    attention = step.attention_flops / count
    if kind in GPUS:
        in_kernels = attention if "__cudnn$fmha" in text else 0.0
        operations = cost.executed_flops(program) + in_kernels
        record["executed_tflops"] = operations / 1e12
        seconds = operations / (chip.tflops * 1e12)
        workspace = cost.cudnn_workspace(program, more=kind == "a100") / _GB
        record["temp_gb"] = memory["temp_gb"] + workspace
    else:
        seconds = cost.cycles(program) / (chip.ghz * 1e9)
        if "tpu_custom_call" in text:
            seconds += attention / (chip.tflops * 1e12)
    record["compute_s_estimate"] = seconds
    record["mfu_upper_bound"] = needed / (chip.tflops * 1e12) / max(seconds, 1e-12)
    if step.loop:
        record["token_ms_floor"] = 1e3 * step.loop_bytes / (chip.gb_s * 1e9)
        if chip.ghz:
            turn = cost.loop_cycles(program, step.loop) / (chip.ghz * 1e9)
            record["token_ms_estimate"] = 1e3 * turn
    # Arguments are read and results written at least once, and temporary memory both.
    moved = memory["argument_gb"] + memory["output_gb"] + 2 * memory["temp_gb"]
    moved = max(moved, step.loop * step.loop_bytes / _GB)
    record["roofline_s"] = {
        "compute": operations / (chip.tflops * 1e12),
        "memory": moved / chip.gb_s,
        "wire": record["wire_total_gb"] / chip.link_gb_s,
    }
    return record


def plan(
    config: Config, topology: str, dump: Path, wanted: list[str], capacity: float | None
) -> JsonObject:
    """Compile the steps of a configuration for a topology and return the record of the plan.

    Args:
        config: the experiment.
        topology: KIND:SHAPE, for which `chips.prepare` has prepared the environment.
        dump: folder for the texts of the compiled programs.
        wanted: names of the steps to compile; empty for all.
        capacity: memory of a device in GB; None for no limit.

    Raises:
        ValueError: the mesh does not fit the topology.
        FileNotFoundError: the shape of a network is unknown.
    """
    mesh = config.mesh
    devices = devices_of(topology)
    place = Placement(make_mesh(mesh.data, mesh.fsdp, mesh.tensor, devices), described=True)
    models = shapes.abstract_models(config, place)
    steps, parts = planned_steps(config, models)
    held = {name: shapes.bytes_per_device(part) / _GB for name, part in parts.items()}
    record: JsonObject = {
        "config": config.name,
        "topology": topology,
        "mesh": dict(place.mesh.shape) if place.mesh else {},
        "sampling_mesh": dict(models.decoding.mesh.shape) if models.decoding.mesh else {},
        "chip_hbm_gb": capacity,
        "resident_gb": held,
        "steps": {},
    }
    for step in steps:
        if wanted and step.name not in wanted:
            continue
        print(f"compiling {step.name} for {topology} ...", file=sys.stderr, flush=True)
        figures = compile_step(step, topology, dump / step.name)
        if figures["hbm_gb"] is not None:
            others = sum(size for name, size in held.items() if name not in step.holds)
            figures["together_gb"] = figures["hbm_gb"] + others
            figures["fits"] = capacity is None or figures["together_gb"] <= capacity
        record["steps"][step.name] = figures
    record["fits"] = all(figures["fits"] for figures in record["steps"].values())
    return record


def changes(config: Config, failing: list[str]) -> list[tuple[str, JsonObject]]:
    """Return changes of the configuration that could make the failing steps fit.

    Each is (command-line flags, fields to set). The cheapest comes first and each contains the one
    before it, except that a higher number of microbatches replaces a lower one.
    """
    base: dict[str, Any] = {}
    if set(failing) & {"prefill", "decode"}:
        base["sampling.batch_size"] = max(1, config.sampling.batch_size // 4)
    if config.model.remat != "full" and set(failing) - {"prefill", "decode"}:
        base["model.remat"] = "full"
    options = [base] if base else []
    microbatches = {
        "ppo.accumulate": (config.ppo.minibatch_size, {"policy_step", "critic_step"}),
        "discriminator.accumulate": (config.discriminator.batch_size, {"disc_step"}),
    }
    for count in (2, 4, 8):
        more = {
            key: count
            for key, (size, steps) in microbatches.items()
            if steps & set(failing) and size % count == 0
        }
        options += [base | more] if more else []
    # Then reduce what a device holds through a round: shard every network, drop the critic's own
    # decoder, drop the optimizer moments of the full policy.
    held: list[JsonObject] = []
    mesh = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 1}
    if any(lookup(config, key) != value for key, value in mesh.items()):
        held.append(mesh)
    if has_critic(config) and config.model.critic == "decoder":
        held.append({"model.critic": "reference"})
    if not config.lora.rank and not config.model.train_embeddings:
        held.append({"lora.rank": 16})
    for more in held:
        options.append((options[-1] if options else {}) | more)
    return [(" ".join(f"--config.{k}={v}" for k, v in each.items()), each) for each in options]


def find_change(config: Config, topology: str, record: JsonObject, dump: Path) -> str:
    """Compile the steps that do not fit under one change after the other until they do.

    Returns one line that says what was found, "" if everything fits already. `record` (of `plan`)
    gets the change as "change" and the figures of all tries as "tried".
    """
    failing = [name for name, figures in record["steps"].items() if not figures["fits"]]
    possible = changes(config, failing) if failing else []
    for flag, fields in possible:
        changed = finalize(change(from_json(to_json(config)), fields))
        tried = plan(changed, topology, dump / "changed", failing, record["chip_hbm_gb"])
        record.setdefault("tried", {})[flag] = tried["steps"]
        if tried["fits"]:
            record["change"] = flag
            return f"does not fit as it is; compiled, and fits, with: {flag}"
    if not failing:
        return ""
    names = "; ".join(flag for flag, _ in possible)
    return f"does not fit, nor with any of: {names}. Take more chips, or shorter texts"
