"""Loads scripts, configurations and the tests' own tables, which belong to no package."""

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


@functools.cache
def load(path: str | Path) -> ModuleType:
    """Return the module at a path below the repository's root; once a process, as scripts define
    command-line flags."""
    path = ROOT / path
    name = f"by_path_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
