"""Fixtures that several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from gapo_jax.data.weights import locate


def _cached(name: str) -> Path:
    try:
        return locate(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The cached SmolLM2-135M-Instruct .gguf file; skips with the reason if it is not there."""
    return _cached("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The cached all-MiniLM-L6-v2 folder; skips with the reason if it is not there."""
    return _cached("all-minilm-l6-v2")
