"""Compile the steps of a run for a machine that is not here: do they fit, and what do they cost?

    gapo-jax plan --config FILE.py --topology v5e:8x8 [--json FILE] [--dump DIR] [--steps A,B]

Topologies: `v5e:8x8`, `v5p:2x2x4`, `v6e:4x4`, ... (the TPU compiler of the package libtpu runs on
any Linux machine: `pip install libtpu`), `h100:8`, `h200:1`, `a100:4`, ... (GPUs of one machine;
the compiler of jax-cuda13-plugin needs neither GPU nor driver), and `cpu:8`. Nothing is allocated,
and the networks of `gapo_jax/models/hf/known_shapes.py` need no weights. Where each figure comes
from:

- `hbm_gb`, per device: arguments + results - alias + temporaries, as the compiler assigns them;
  `fits` compares `together_gb` with the memory that the chip leaves to programs, or with --hbm_gb.
  On a TPU these are exact. On a GPU the memory is three quarters of the whole, JAX's pool; each
  step is compiled with Triton's products and with cuBLAS's, of which the larger counts; the
  workspace of cuDNN's attention is added by a formula, and what CUDA and NCCL take is not in it.
- `together_gb`: `hbm_gb` plus whatever else lives on the device during that step of a round.
- `model_tflops`: the multiplications that the result needs, on all devices together; see
  `PlannedStep`.
- `alias_gb`: the state that is updated in place, close to the size of the network that learns.
- `compute_s_estimate`: the compiler's own `estimated_cycles` times the turns of each loop, over the
  clock of the chip (1.5 GHz v5e, 1.75 v5p and v6e: assumed, not published). The compiler estimates
  nothing for attention in a Pallas kernel, which counts at the peak rate. Communication, overlap
  and host time are missing, so this is a lower bound of the time, and `mfu_upper_bound` (against
  the published peak) an upper bound of the MFU.
  On a GPU, whose compiler estimates nothing, it is the executed products (`executed_tflops` of a
  device) at the published peak.
- `roofline_s`: the least seconds for the products at the peak, for the memory (arguments read,
  results written, temporaries both; of decoding what it reads for every token) at its bandwidth,
  and for the wire over all links of a device. The line below a step gives their shares of the sum.
- `wire_gb`: bytes that each device sends, by cause, if every collective is a ring.
- `token_ms_estimate`: the same estimate for one turn of decoding's loop over tokens;
  `token_ms_floor`: the bytes that a device reads in that turn, over the published bandwidth.

The steps: `prefill`, `decode` (with a prefill), `score` (reference, old policy and values),
`disc_score`, `disc_step`, `policy_step`, `critic_step`. None of the figures is a measurement. What
the compiler does not estimate (on `cpu:8`, all times) is null. Where a step does not fit, changes
of the configuration are compiled until one does, which is printed and written as `change`.

The exit status is 0 if everything fits, also with a change, and otherwise 1.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from gapo_jax.cli.experiment import parse_flags
from gapo_jax.config import finalize
from gapo_jax.plan.chips import CHIPS, prepare
from gapo_jax.records import JsonObject


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "topology", None, "KIND:SHAPE, such as v5e:8x8, or cpu:8.", flag_values=values
    )
    flags.DEFINE_string("json", None, "Write the figures to this file.", flag_values=values)
    flags.DEFINE_float(
        "hbm_gb",
        None,
        "Memory of a device in GB (default: the chip's; unlimited on cpu).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dump", None, "Keep the compiled programs (HLO text) in this folder.", flag_values=values
    )
    flags.DEFINE_list("steps", [], "Only these steps (default: all).", flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile the plan, print it and write it; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    values, _ = parse_flags(_define, argv, __doc__, ["topology"])
    try:
        config = finalize(values.config)
        prepare(values.topology)
        # Imported late: JAX reads the environment when it is loaded.
        from gapo_jax.plan.compile import find_change, plan

        with tempfile.TemporaryDirectory() as scratch:
            dump = Path(values.dump or scratch)
            chip = CHIPS.get(values.topology.partition(":")[0])
            capacity = values.hbm_gb or (chip.hbm_gb if chip else None)
            record = plan(config, values.topology, dump, values.steps, capacity)
            show(record)
            if outcome := find_change(config, values.topology, record, dump):
                print(outcome)
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("GAPO_JAX_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    if values.json:
        Path(values.json).write_text(json.dumps(record, indent=2) + "\n")
    return 0 if record["fits"] or "change" in record else 1


def show(record: JsonObject) -> None:
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
    for name, figures in record["steps"].items():
        values = [" " * 18 if figures[key] is None else f"{figures[key]:18.3f}" for key in columns]
        print(f"{name:<12} {'yes ' if figures['fits'] else 'NO  '} " + " ".join(values))
        if "error" in figures:
            print(f"             {figures['error']}")
        if bounds := figures["roofline_s"]:
            print(f"             {shares(bounds)}")
        if "token_ms_floor" in figures:
            token = figures.get("token_ms_estimate")
            estimate = "" if token is None else f"{token:.2f} ms a token; "
            floor = f"to read weights and cache: {figures['token_ms_floor']:.2f} ms a token"
            print(f"             {estimate}{floor}")
    for name, figures in record["steps"].items():
        for cause, size in list((figures["wire_gb"] or {}).items())[:4]:
            print(f"  {name}: {size:8.3f} GB  {cause}")


def shares(bounds: dict[str, float]) -> str:
    """Return in one line what share of a step's least time each bound has, if none overlap."""
    whole = sum(bounds.values()) or 1.0
    parts = ", ".join(f"{name} {100 * each / whole:.0f}%" for name, each in bounds.items())
    most = max(bounds, key=lambda name: bounds[name])
    return f"least time {whole:.3f} s: {parts}; bound by {most} ({bounds[most]:.3f} s)"


if __name__ == "__main__":
    sys.exit(main())
