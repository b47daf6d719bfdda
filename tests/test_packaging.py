"""What ships beside the code: versions that agree, the lock file, the workflow, the templates."""

from __future__ import annotations

import re
import tomllib

import yaml
from by_path import ROOT
from packaging.requirements import Requirement

import gapo_jax

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lock_file_has_a_version_within_the_bounds_of_every_dependency() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    wanted += PROJECT["optional-dependencies"]["docs"]
    requirements = [Requirement(line) for line in wanted if not line.startswith("gapo-jax")]
    outside = [
        str(item)
        for item in requirements
        if not item.specifier.contains(locked.get(re.sub("[-_.]+", "-", item.name).lower(), "0"))
    ]
    assert not outside, "run scripts/lock.py"


def test_extras_are_those_that_the_pages_name() -> None:
    assert set(PROJECT["optional-dependencies"]) == {
        "beam", "cuda", "docs", "mlflow", "plan", "test", "tpu", "trackio", "wandb",
    }  # fmt: skip


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == gapo_jax.__version__
    assert citation["license"] == PROJECT["license"]
    assert f"## [{gapo_jax.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_people_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(path.read_text()), path
