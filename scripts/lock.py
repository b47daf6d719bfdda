"""Print what an environment has of everything that the tests need: `NAME==VERSION`, sorted.

    .venv-test/bin/python scripts/lock.py > requirements.lock

`pip install -c requirements.lock gapo-jax` then gives the versions that CI ran; jax and flax move
together, so a newer one of either alone may not work.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HEAD = "# Written by scripts/lock.py: the versions that CI ran, by Python {}.{} on Linux."


def required(name: str, extras: set[str]) -> list[Requirement]:
    """Return what an installed package, or this one, asks for with these extras."""
    if name == "gapo-jax":  # from the file: what is installed may be older
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        lines = list(project["dependencies"])
        for extra in extras:
            lines += project["optional-dependencies"][extra]
    else:
        lines = importlib.metadata.requires(name) or []
    requirements = [Requirement(line) for line in lines]
    return [
        item
        for item in requirements
        if not item.marker or any(item.marker.evaluate({"extra": e}) for e in (extras or {""}))
    ]


def locked() -> dict[str, str]:
    """Return name -> version of gapo-jax[test] and all below it.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement("gapo-jax[test]")]
    while waiting:
        item = waiting.pop()
        name = re.sub(r"[-_.]+", "-", item.name).lower()
        key = name, frozenset(item.extras)
        if key in seen:
            continue
        seen.add(key)
        if name != "gapo-jax":
            # "+cpu" and the like name a build, which an index of other builds does not have.
            versions[name] = importlib.metadata.version(name).split("+")[0]
        waiting += required(name, set(item.extras))
    return versions


if __name__ == "__main__":
    print(HEAD.format(*sys.version_info))
    for name, version in sorted(locked().items()):
        print(f"{name}=={version}")
