"""What a whole run draws at random, written down: who draws from which stream."""

from __future__ import annotations

import collections
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gapo_jax import rng
from gapo_jax.cli import train  # noqa: F401 - loads all modules that draw
from gapo_jax.rng import Stream

# The words of the built-in tokenizer, which is the same for all seeds.
SEEDLESS = {Stream.TOKENIZER_WORDS}
SEED = 3
# A whole run; tests/train/test_streams.py has the orders of a round without one.
pytestmark = pytest.mark.slow


def _bits(keys) -> list[bytes]:
    data = np.asarray(jax.random.key_data(keys))
    return [key.tobytes() for key in data.reshape(-1, data.shape[-1])]


def _noting(real: Any, calls: list[Any]) -> Any:
    def call(root: Any, name: Stream, *counters: Any, **count: int) -> Any:
        frame = sys._getframe(1)
        while Path(frame.f_code.co_filename).name in ("rng.py", "batching.py"):
            frame = frame.f_back
            assert frame is not None
        site = f"{frame.f_code.co_filename}: {frame.f_code.co_qualname}"
        if isinstance(root, jax.Array) and not isinstance(root, jax.core.Tracer):
            calls.append((real, _bits(root)[0], name, counters, count, site))
        else:
            calls.append((real, root, name, counters, count, site))
        return real(root, name, *counters, **count)

    return call


@pytest.fixture(scope="module")
def calls(runs, tmp_path_factory):
    """All calls of `stream`, `key` and `row_keys` in two rounds: (function, root, name, counters,
    {"count": rows} of keys for rows, call site)."""
    notes: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for real in (rng.stream, rng.key, rng.row_keys):
            noting = _noting(real, notes)
            for module in [m for k, m in sys.modules.items() if k.startswith("gapo_jax")]:
                for alias, value in list(vars(module).items()):
                    if value is real:
                        patch.setattr(module, alias, noting)
        workdir = tmp_path_factory.mktemp("streams")
        status, _, words = runs.run_here(workdir, rounds=2, seed=SEED, export=False)
    assert status == 0, words
    return notes


def test_all_that_a_run_draws_comes_from_its_seed(calls) -> None:
    root = _bits(rng.root_key(SEED))[0]
    roots = {name: root for _, root, name, *_ in calls if not isinstance(root, jax.core.Tracer)}
    others = {name for name, own in roots.items() if own not in (SEED, root)}
    assert others <= SEEDLESS
    assert len(roots) > 15


def test_a_name_has_one_use(calls) -> None:
    sites = collections.defaultdict(set)
    for _, _, name, _, _, site in calls:
        sites[name].add(site)
    assert {name: used for name, used in sites.items() if len(used) > 1} == {}


def test_no_two_streams_of_four_seeds_are_equal(calls) -> None:
    paths = {
        (real, name, counters, count.get("count"))
        for real, root, name, counters, count, _ in calls
        if not isinstance(root, jax.core.Tracer) and name not in SEEDLESS
    }
    assert len(paths) > 30
    numbers: list[bytes] = []
    for seed in range(4):
        for real, name, counters, count in paths:
            if real is rng.stream:
                raw = real(seed, name, *counters).bit_generator.random_raw(2)
                numbers.append(raw.tobytes())
            else:
                numbers += _bits(real(seed, name, *counters, **({"count": count} if count else {})))
    assert len(set(numbers)) == len(numbers)
