"""scripts/plan.py as a user calls it. What a plan holds: tests/multidevice/cases_plan.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from by_path import ROOT

from gapo_jax.plan import cost as hlo_cost


def plan(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/plan.py", "--config", "configs/gapo_tpu.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_an_unknown_topology_is_explained() -> None:
    done = plan("--topology", "h100:8")
    assert done.returncode == 1 and "wanted --topology KIND:SHAPE" in done.stderr


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
