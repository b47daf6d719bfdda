"""The notebooks run from top to bottom; as they train, only with -m slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from by_path import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    """Return the code cells of a notebook."""
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def program(path: Path) -> str:
    """Return a notebook as one Python program: `%%bash` cells become calls of bash."""
    parts = ["import subprocess"]
    for cell in cells(path):
        if cell.startswith("%%bash\n"):
            command = ["bash", "-euc", cell.removeprefix("%%bash\n")]
            cell = f"subprocess.run({command!r}, check=True)"
        parts.append(cell)
    return "\n".join(parts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_python_or_bash_and_hold_no_output(path) -> None:
    compile(program(path), str(path), "exec")
    notebook = json.loads(path.read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path) -> None:
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    # The command as the package installs it, of this checkout.
    command = tmp_path / "bin" / "gapo-jax"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gapo_jax.cli.main "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["PATH"] = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", program(path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
