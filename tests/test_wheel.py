"""The package as `pip install` leaves it: a wheel, another folder, no checkout on the path."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from by_path import ROOT

# Small enough that the start of the programs takes most of the time.
SMALL = (
    "--config.rounds=1", "--config.data.bootstrap_responses=48", "--config.data.pairs=24",
    "--config.data.pairs_heldout=4", "--config.data.prompts=16",
    "--config.discriminator.warmup_epochs=1", "--config.ppo.critic_epochs=1",
    "--config.eval.prompts_per_set=4", "--config.eval.samples_per_prompt=1",
)  # fmt: skip
SOURCES = (
    "gapo_jax",
    "configs",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


def _run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The `bin` folder of an environment that holds the wheel beside the packages of this one."""
    version = importlib.metadata.version("setuptools")
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"building the wheel needs setuptools 77 or newer, found {version}")
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # a copy, because building writes beside the sources
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    _run(*pip, "wheel", *options, folder / "source", cwd=folder)
    (wheel,) = folder.glob("gapo_jax-*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    # Only the path: `.pth` files of that folder are not read, so the checkout's does not count.
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return python.parent


def test_a_wheel_trains_the_tiny_configuration_from_another_folder(installed, tmp_path) -> None:
    where = "import gapo_jax; print(gapo_jax.__file__)"
    found = _run(installed / "python", "-c", where, cwd=tmp_path).stdout
    assert str(installed.parent) in found
    done = _run(installed / "gapo-jax", "train", "--config", "gapo_tiny", *SMALL, cwd=tmp_path)
    summary = json.loads((tmp_path / "runs" / "gapo_tiny" / "summary.json").read_text())
    assert summary["rounds"] == 1 and "held-out constraint accuracy" in done.stdout


def test_a_wheel_has_every_module_file_and_configuration(installed) -> None:
    (site,) = (installed.parent / "lib").glob("python*/site-packages")
    for folder in ("gapo_jax", "configs"):
        target = site / "gapo_jax" if folder == "gapo_jax" else site / "gapo_jax" / "configs"
        sources = [
            path.relative_to(ROOT / folder)
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        missing = [str(path) for path in sources if not (target / path).is_file()]
        assert sources and not missing
