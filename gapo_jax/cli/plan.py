"""Compile the steps of a run for a machine that is not here, and say what they cost and whether
they fit: `python scripts/plan.py --config configs/X.py --topology v5e:8x8 [--json F] [--dump DIR]`.

Topologies: `v5e:8x8`, `v5p:2x2x4`, `v6e:4x4`, ... (the TPU compiler of the package libtpu runs on
any Linux machine: `pip install libtpu`), and `cpu:8`. Nothing is allocated, no weights are needed
for the networks of `gapo_jax/models/hf/known_shapes.py`. Where each figure comes from:

- `hbm_gb`, per device: arguments + results - alias + temporaries, as the compiler assigns them;
  `fits` compares `together_gb` with what the chip leaves to programs, or with `--hbm_gb`. All are
  exact.
- `together_gb`: `hbm_gb` plus what else lives on the device during that step of a round.
- `model_tflops`: the multiplications that the result needs, on all devices; see `plan.PlannedStep`.
- `alias_gb` is the state that is updated in place: close to the state of the network that learns.
- `compute_s_estimate`: the compiler's own `estimated_cycles` times the turns of each loop, over the
  clock of the chip (1.5 GHz v5e, 1.75 v5p and v6e: assumed, not published); attention in a Pallas
  kernel, of which it estimates nothing, at the peak rate. No communication, no overlap, no host: a
  lower bound of the time, so `mfu_upper_bound` (against the published peak) is one of the MFU.
- `wire_gb`: bytes that each device sends, by cause, if every collective is a ring.
- `token_ms_estimate`: of decoding, the same estimate for one turn of the loop over tokens;
  `token_ms_floor`: what a device reads in that turn, over the published bandwidth.

The steps: `prefill`, `decode` (with a prefill), `score` (reference, old policy and values),
`disc_score`, `disc_step`, `policy_step`, `critic_step`. None of the figures is a measurement. What
the compiler does not estimate (on `cpu:8` all times) is null. Where a step does not fit, changes of
the configuration are compiled until one does, and that one is printed and written as `change`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, configs/NAME.py.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "KIND:SHAPE, such as v5e:8x8, or cpu:8.")
_JSON = flags.DEFINE_string("json", None, "Write the figures there.")
_HBM = flags.DEFINE_float(
    "hbm_gb", None, "Memory of a device in GB (default: the chip's; without limit on cpu)."
)
_DUMP = flags.DEFINE_string("dump", None, "Keep the compiled programs (HLO text) there.")
_STEPS = flags.DEFINE_list("steps", [], "Only these steps (default: all).")

# HBM per chip in GB (10^9 bytes: 2^30 times the published GiB, less what the compiler keeps), peak
# bf16 TFLOP/s and GB/s as published by the maker, clock in GHz (assumed).
CHIPS = {
    "v5e": {"hbm_gb": 15.75 * 1.0737, "tflops": 197.0, "gb_s": 819.0, "ghz": 1.5},
    "v5p": {"hbm_gb": 95.0 * 1.0737, "tflops": 459.0, "gb_s": 2765.0, "ghz": 1.75},
    "v6e": {"hbm_gb": 31.25 * 1.0737, "tflops": 918.0, "gb_s": 1640.0, "ghz": 1.75},
}
# Of every step, in this order; null where the compiler does not say.
_FIGURES = (
    "hbm_gb", "together_gb", "argument_gb", "output_gb", "temp_gb", "alias_gb", "fits",
    "model_tflops", "compute_s_estimate", "mfu_upper_bound", "wire_total_gb", "wire_gb",
    "lower_s", "compile_s",
)  # fmt: skip
_GB = 1e9


def prepare(topology: str) -> None:
    """Set what must be set before jax is imported. Raises ValueError on an unknown topology."""
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
        # The TPU compiler ends the process at a flag that only the CPU's knows.
        given = os.environ.get("XLA_FLAGS", "").split()
        kept = [flag for flag in given if not flag.startswith("--xla_cpu_")]
        os.environ["XLA_FLAGS"] = " ".join(kept)
    else:
        raise ValueError(
            f"wanted --topology KIND:SHAPE with a kind of {sorted(CHIPS)} (v5e:8x8, v5p:2x2x4) or "
            f"cpu:COUNT, got {topology!r}; programs for GPUs compile only where the GPU is"
        )


def devices_of(topology: str) -> Any:
    """Return the devices of a topology, here or described."""
    import jax

    kind = topology.partition(":")[0]
    if kind == "cpu":
        return jax.devices()
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    except Exception as error:  # what libtpu raises has no common type
        raise ValueError(
            f"the TPU compiler does not describe {topology!r}: {str(error).splitlines()[0]}. "
            "Install it with `pip install libtpu`; a shape is written as v5e:8x8 or v5p:2x2x4"
        ) from error


def compile_step(step: Any, topology: str, folder: Path) -> dict[str, Any]:
    """Return the figures of one step; the texts of its program go to `folder`."""
    kind = topology.partition(":")[0]
    folder.mkdir(parents=True, exist_ok=True)
    # The text of a large program is only to be had as a file; of a CPU's there would be thousands.
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": "True"} if kind in CHIPS else {}
    start = time.perf_counter()
    lowered = step.lower()
    record: dict[str, Any] = dict.fromkeys(_FIGURES)
    record |= {"model_tflops": step.flops / 1e12, "lower_s": round(time.perf_counter() - start, 1)}
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return record | {"fits": False, "error": _used(str(error))}
    record["compile_s"] = round(time.perf_counter() - start, 1)
    if kind not in CHIPS:
        (folder / f"{step.name}.after_optimizations.txt").write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    record |= {
        "argument_gb": memory.argument_size_in_bytes / _GB,
        "output_gb": memory.output_size_in_bytes / _GB,
        "alias_gb": memory.alias_size_in_bytes / _GB,
        "temp_gb": memory.temp_size_in_bytes / _GB,
    }
    record["hbm_gb"] = (
        record["argument_gb"] + record["output_gb"] - record["alias_gb"] + record["temp_gb"]
    )
    return record | {"fits": True} | costs(step, kind, folder)


def _used(message: str) -> str:
    """Return the line of the compiler's message that says how much was wanted."""
    lines = [line for line in message.splitlines() if "xceeded" in line or "Used" in line]
    return (lines or message.splitlines())[0].strip()[:300]


def costs(step: Any, kind: str, folder: Path) -> dict[str, Any]:
    """Return what the text of a compiled program says about time and communication."""
    from gapo_jax.plan import cost as hlo_cost

    files = sorted(folder.glob("*after_codegen.txt")) or sorted(
        folder.glob("*after_optimizations.txt")
    )
    if not files:
        return {}
    text = max(files, key=lambda path: path.stat().st_size).read_text()
    program = hlo_cost.read_program(text)
    wire = hlo_cost.wire_bytes(program)
    record: dict[str, Any] = {
        "wire_total_gb": sum(wire.values()) / _GB,
        "wire_gb": {cause: size / _GB for cause, size in list(wire.items())[:12]},
    }
    if kind not in CHIPS:
        return record
    chip = CHIPS[kind]
    seconds = hlo_cost.cycles(program) / (chip["ghz"] * 1e9)
    count = int(text.partition("num_partitions=")[2].split(",")[0] or 1)
    if "tpu_custom_call" in text:
        seconds += step.attention_flops / count / (chip["tflops"] * 1e12)
    record["compute_s_estimate"] = seconds
    record["mfu_upper_bound"] = step.flops / count / (chip["tflops"] * 1e12) / max(seconds, 1e-12)
    if step.loop:
        turn = hlo_cost.loop_cycles(program, step.loop) / (chip["ghz"] * 1e9)
        record["token_ms_estimate"] = 1e3 * turn
        record["token_ms_floor"] = 1e3 * step.loop_bytes / (chip["gb_s"] * 1e9)
    return record


def plan(
    config: Any, topology: str, dump: Path, wanted: list[str], capacity: float | None
) -> dict[str, Any]:
    """Compile the steps of a configuration for a topology; return what --json writes. `capacity` is
    the memory of a device in GB, None where there is no limit.

    Raises:
        ValueError, FileNotFoundError: the mesh does not fit the topology, a network is unknown.
    """
    from gapo_jax.plan import compile as planning
    from gapo_jax.sharding import Placement, make_mesh

    mesh = config.mesh
    devices = devices_of(topology)
    place = Placement(make_mesh(mesh.data, mesh.fsdp, mesh.tensor, devices), described=True)
    models = planning.abstract_models(config, place)
    steps, parts = planning.planned_steps(config, models)
    held = {name: planning.bytes_per_device(part) / _GB for name, part in parts.items()}
    record: dict[str, Any] = {
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
        found = compile_step(step, topology, dump / step.name)
        if found["hbm_gb"] is not None:
            others = sum(size for name, size in held.items() if name not in step.holds)
            found["together_gb"] = found["hbm_gb"] + others
            found["fits"] = capacity is None or found["together_gb"] <= capacity
        record["steps"][step.name] = found
    record["fits"] = all(found["fits"] for found in record["steps"].values())
    return record


def show(record: dict[str, Any]) -> None:
    """Print a plan as a table."""
    capacity = record["chip_hbm_gb"]
    print(f"{record['config']} on {record['topology']}, mesh {record['mesh']}", end="")
    print(f", sampling on {record['sampling_mesh']}")
    held = ", ".join(f"{name} {size:.2f}" for name, size in record["resident_gb"].items())
    print(f"through a round, GB per device: {held}")
    if capacity:
        print(f"memory of a chip for programs: {capacity:.1f} GB")
    columns = (
        "hbm_gb", "together_gb", "temp_gb", "alias_gb", "model_tflops", "compute_s_estimate",
        "mfu_upper_bound", "wire_total_gb", "compile_s",
    )  # fmt: skip
    print(f"{'step':<12} fits " + " ".join(f"{name:>18}" for name in columns))
    for name, found in record["steps"].items():
        values = [" " * 18 if found[key] is None else f"{found[key]:18.3f}" for key in columns]
        print(f"{name:<12} {'yes ' if found['fits'] else 'NO  '} " + " ".join(values))
        if "error" in found:
            print(f"             {found['error']}")
        if "token_ms_estimate" in found:
            token, floor = found["token_ms_estimate"], found["token_ms_floor"]
            print(f"             {token:.2f} ms a token; to read weights and cache: {floor:.2f} ms")
    for name, found in record["steps"].items():
        for cause, size in list((found["wire_gb"] or {}).items())[:4]:
            print(f"  {name}: {size:8.3f} GB  {cause}")


def changes(config: Any, failing: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return what could make the failing steps fit, the cheapest first, each on top of the one
    before it but for the number of parts: (flags, fields to set)."""
    from gapo_jax.config import lookup
    from gapo_jax.config.online import has_critic

    base: dict[str, Any] = {}
    if set(failing) & {"prefill", "decode"}:
        base["sampling.batch_size"] = max(1, config.sampling.batch_size // 4)
    if config.model.remat != "full" and set(failing) - {"prefill", "decode"}:
        base["model.remat"] = "full"
    found = [base] if base else []
    parts = {
        "ppo.accumulate": (config.ppo.minibatch_size, {"policy_step", "critic_step"}),
        "discriminator.accumulate": (config.discriminator.batch_size, {"disc_step"}),
    }
    for count in (2, 4, 8):
        more = {
            key: count
            for key, (size, steps) in parts.items()
            if steps & set(failing) and size % count == 0
        }
        found += [base | more] if more else []
    # What a device holds through a round: no network whole, no second decoder, no moments.
    held: list[dict[str, Any]] = []
    mesh = {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": 1}
    if any(lookup(config, key) != value for key, value in mesh.items()):
        held.append(mesh)
    if has_critic(config) and config.model.critic == "decoder":
        held.append({"model.critic": "reference"})
    if not config.lora.rank and not config.model.train_embeddings:
        held.append({"lora.rank": 16})
    for more in held:
        found.append((found[-1] if found else {}) | more)
    return [(" ".join(f"--config.{k}={v}" for k, v in each.items()), each) for each in found]


def mend(config: Any, topology: str, record: dict[str, Any], dump: Path) -> None:
    """Where a step does not fit, compile it under one change after the other until it does."""
    from gapo_jax.config import change, finalize, from_json, to_json

    failing = [name for name, found in record["steps"].items() if not found["fits"]]
    possible = changes(config, failing) if failing else []
    for flag, fields in possible:
        changed = finalize(change(from_json(to_json(config)), fields))
        tried = plan(changed, topology, dump / "changed", failing, record["chip_hbm_gb"])
        record.setdefault("tried", {})[flag] = tried["steps"]
        if tried["fits"]:
            record["change"] = flag
            print(f"does not fit as it is; compiled, and fits, with: {flag}")
            return
    if failing:
        tried = "; ".join(flag for flag, _ in possible)
        print(f"does not fit, nor with any of: {tried}. Take more chips, or shorter texts")


def main(argv: list[str]) -> None:
    """Plan, print, write."""
    if len(argv) > 1:
        raise app.UsageError(f"arguments that are not flags: {argv[1:]}")
    from gapo_jax.config import finalize

    try:
        config = finalize(_CONFIG.value)
        prepare(_TOPOLOGY.value)
        with tempfile.TemporaryDirectory() as scratch:
            dump = Path(_DUMP.value or scratch)
            chip = CHIPS.get(_TOPOLOGY.value.partition(":")[0], {"hbm_gb": None})
            capacity = _HBM.value or chip["hbm_gb"]
            record = plan(config, _TOPOLOGY.value, dump, _STEPS.value, capacity)
            show(record)
            mend(config, _TOPOLOGY.value, record, dump)
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("GAPO_JAX_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(0 if record["fits"] or "change" in record else 1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main)
