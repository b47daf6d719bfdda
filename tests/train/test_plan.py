"""scripts/plan.py as a user calls it. What a plan holds: tests/multidevice/cases_plan.py."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from by_path import ROOT

from gapo_jax.cli.plan import shares
from gapo_jax.plan import cost as hlo_cost
from gapo_jax.plan.chips import CHIPS, GPUS


def plan(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/plan.py", "--config", "configs/gapo_tpu.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_an_unknown_topology_is_explained() -> None:
    done = plan("--topology", "b300:8")
    assert done.returncode == 1 and "wanted --topology KIND:SHAPE" in done.stderr


GPU_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is not None


@pytest.mark.skipif(GPU_COMPILER, reason="the GPU compiler is installed")
def test_a_gpu_without_its_compiler_says_what_to_install() -> None:
    done = plan("--topology", "h100:8")
    assert done.returncode == 1 and "pip install jax-cuda13-plugin==" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(
    not GPU_COMPILER, reason="needs the GPU compiler: pip install jax-cuda13-plugin"
)
@pytest.mark.parametrize(
    ("topology", "capacity"), [("h100:8", 63.7), ("h200:1", 113.5), ("a100:2", 63.8)]
)
def test_a_step_for_gpus(topology: str, capacity: float, tmp_path) -> None:
    """Compiled with both ways to multiply; the larger memory counts."""
    out = tmp_path / "plan.json"
    flags = ["--topology", topology, "--steps", "disc_score", "--dump", str(tmp_path)]
    done = plan("--config", "configs/gapo_tpu.py:rehearse", *flags, "--json", str(out))
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["chip_hbm_gb"] == pytest.approx(capacity, abs=0.1)
    step = record["steps"]["disc_score"]
    folders = {path.parent.name for path in (tmp_path / "disc_score").glob("*/*.txt")}
    assert folders == {"triton", "cublas"}
    count = int(topology.partition(":")[2])
    assert step["executed_tflops"] * count >= 0.8 * step["model_tflops"] > 0
    assert set(step["roofline_s"]) == {"compute", "memory", "wire"}
    assert "bound by" in done.stdout


def test_the_shares_of_a_step() -> None:
    said = shares({"compute": 3.0, "memory": 1.0, "wire": 0.0})
    assert said == (
        "least time 4.000 s: compute 75%, memory 25%, wire 0%; bound by compute (3.000 s)"
    )


def test_the_description_of_a_gpu_is_whole() -> None:
    """A field that is missing ends XLA by a division by zero, not by an exception."""
    for name in GPUS:
        target = CHIPS[name].target
        assert len(re.findall(r"\w+: [^ \n]", target)) == (23 if name == "a100" else 24)
        memory = re.search(r"device_memory_size: (\d+)", target)
        assert memory and CHIPS[name].hbm_gb == 0.75 * int(memory[1]) / 1e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "least_mfu"), [("v5e:8x8", 0.5), ("v5p:2x2x4", 0.5), ("v6e:8x8", 0.4)]
)
def test_the_policy_step_of_seven_billion(topology: str, least_mfu: float, tmp_path) -> None:
    """As recorded in configs/gapo_tpu.py; 1 to 3 minutes of a core each (2026-11-22)."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install libtpu")
    flags = ["--topology", topology, "--steps", "policy_step", "--dump", str(tmp_path)]
    done = plan(*flags, "--json", str(tmp_path / "plan.json"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "plan.json").read_text())
    step = record["steps"]["policy_step"]
    assert step["fits"] and step["together_gb"] < record["chip_hbm_gb"]
    assert step["mfu_upper_bound"] >= least_mfu
    assert step["alias_gb"] == pytest.approx(record["resident_gb"]["policy"], rel=0.01)
    (text,) = (tmp_path / "policy_step").glob("*after_codegen.txt")
    program = hlo_cost.read_program(text.read_text())
    gathers = [
        (item.shape, times)
        for opcode, item, times in hlo_cost.collectives(program)
        if opcode == "all-gather"
    ]
    assert gathers and not [shape for shape, _ in gathers if "f32[" in shape]
    assert [times for shape, times in gathers if "152064" in shape] == [1]
