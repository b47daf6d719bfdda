"""Fixtures that the tests of data share: hand-written rows, pairs made of them, the script."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from gapo_jax.data.preferential import build_pairs

_HERE = Path(__file__).parent


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def written():
    """The hand-written responses of `rows.py`."""
    return _load(_HERE / "rows.py")


@pytest.fixture(scope="session")
def build_data():
    return _load(_HERE.parents[1] / "scripts" / "build_data.py")


@pytest.fixture(scope="module")
def pairs(written):
    rng = np.random.default_rng(0)
    return build_pairs(written.rows(), type_ids=written.TYPES, num_pairs=60, rng=rng)
