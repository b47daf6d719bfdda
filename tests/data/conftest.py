"""Fixtures that the tests of data share: hand-written rows, pairs made of them, the script."""

import numpy as np
import pytest
from by_path import load

from gapo_jax.data.preferential import build_pairs


@pytest.fixture(scope="session")
def written():
    """The hand-written responses of `rows.py`."""
    return load("tests/data/rows.py")


@pytest.fixture(scope="session")
def build_data():
    from gapo_jax.cli import build_data

    return build_data


@pytest.fixture(scope="module")
def pairs(written):
    rng = np.random.default_rng(0)
    return build_pairs(written.rows(), type_ids=written.TYPES, num_pairs=60, rng=rng)
