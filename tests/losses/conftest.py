"""Fixtures of the loss tests."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def goldens():
    """goldens.json: numbers of TRL and torch, see make_goldens.py."""
    return json.loads(pathlib.Path(__file__).with_name("goldens.json").read_text())


@pytest.fixture
def rng():
    return np.random.default_rng(20250320)


@pytest.fixture
def batch(rng):
    """[4, 6] arrays as a rollout has them, rows of 6, 2, 4 and 0 real tokens."""
    mask_BR = (np.arange(6) < np.array([[6], [2], [4], [0]])).astype(np.int32)
    names = ("logprobs_BR", "old_BR", "advantages_BR", "values_BR", "returns_BR")
    arrays = {name: jnp.array(rng.normal(size=mask_BR.shape), jnp.float32) for name in names}
    return arrays | {"mask_BR": jnp.array(mask_BR)}
