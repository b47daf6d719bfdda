"""Streams of different seeds, names and counters never coincide, and none depends on another."""

from __future__ import annotations

import ast
import functools
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from by_path import ROOT

from gapo_jax import rng
from gapo_jax.config import Config, finalize
from gapo_jax.rng import Stream

ORDERS = (Stream.POLICY_ORDER, Stream.CRITIC_ORDER, Stream.PROMPT_ORDER, Stream.REPLAY)


def _paths():
    """1e5 paths: seeds that differ by one, four names, up to two counters, zeros among them."""
    counters = [(), *((a,) for a in range(50)), *itertools.product(range(50), range(49))]
    return [(s, n, *c) for s in range(11) for n in ORDERS for c in counters][:100_000]


def test_numpy_streams_never_coincide() -> None:
    paths = _paths()
    assert len(set(paths)) == 100_000
    firsts = {rng.stream(*path).bit_generator.random_raw() for path in paths}
    assert len(firsts) == len(paths)


def test_jax_streams_never_coincide() -> None:
    """No key is another one or an ancestor of it, as keys along a path would be without its length:
    all keys that `fold_in` makes of one with a small number are looked for too."""
    seeds, counts = np.arange(5, dtype=np.uint32), np.arange(60, dtype=np.uint32)

    @functools.partial(jax.jit, static_argnums=1)
    def keys(root, name):
        one = jax.vmap(lambda a: jax.random.key_data(rng.key(root, name, a)))(counts)
        two = jax.vmap(lambda a: jax.vmap(lambda b: rng.key(root, name, a, b))(counts))(counts)
        none = rng.key(root, name)
        below = jax.vmap(lambda a: jax.random.fold_in(none, a))(counts)
        return one, *(jax.random.key_data(k).reshape(-1, 2) for k in (two, none, below))

    parts = []
    for seed, name in itertools.product(seeds, ORDERS):
        parts += [np.asarray(part) for part in keys(jax.random.key(int(seed)), name)]
    every = np.concatenate(parts)
    assert len(every) > 70_000
    assert len(np.unique(every, axis=0)) == len(every)


def test_names_have_stems_of_their_own() -> None:
    words = {int(rng._word(f"{name} {depth}")) for name in Stream for depth in range(6)}
    assert len(words) == 6 * len(Stream)


def test_a_path_is_reproducible_and_its_length_counts() -> None:
    """`default_rng([0, 1])` and `default_rng([0, 1, 0])` are one generator."""
    assert np.random.default_rng([0, 1]).random() == np.random.default_rng([0, 1, 0]).random()
    a, b, c = (rng.stream(0, Stream.REPLAY, *path).random() for path in ((1,), (1, 0), (1,)))
    assert a == c != b
    assert rng.stream(0, Stream.MINING, "task").random() == (
        rng.stream(0, Stream.MINING, "task").random()
    )
    assert rng.stream(np.int64(3), Stream.MINING, np.int32(1)).random() == (
        rng.stream(3, Stream.MINING, 1).random()
    )


def test_row_keys_are_the_keys_of_the_rows() -> None:
    keys_B = rng.row_keys(7, Stream.EVALUATION, "heldout_topics", count=3)
    for row in range(3):
        alone = rng.key(jax.random.key(7), Stream.EVALUATION, "heldout_topics", row)
        assert (jax.random.key_data(keys_B[row]) == jax.random.key_data(alone)).all()


def test_another_round_compiles_nothing() -> None:
    from gapo_jax.compilation import CompileCounter

    rng.row_keys(7, Stream.ROLLOUT, 0, 0, count=5)
    with CompileCounter() as counter:
        rng.row_keys(7, Stream.ROLLOUT, 1, 0, count=5)
    assert counter.count + counter.loaded == 0


def test_a_counter_may_be_traced() -> None:
    root = jax.random.key(1)
    traced = jax.jit(lambda step: rng.key(root, Stream.DROPOUT, step))(np.int32(4))
    assert (jax.random.key_data(traced) == jax.random.key_data(rng.key(1, Stream.DROPOUT, 4))).all()


def test_seeds_that_jax_cannot_tell_apart_are_refused() -> None:
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match="wanted a seed of 0 to 4294967295, got "):
            rng.key(seed, Stream.ROLLOUT)
        with pytest.raises(ValueError, match=r"config.seed must lie in \[0, 4294967295\], got "):
            finalize(Config(seed=seed))
    assert finalize(Config(seed=2**32 - 1)).seed == 2**32 - 1


def test_numpy_streams_load_no_jax() -> None:
    program = (
        "import sys, gapo_jax.rng as r; r.stream(0, r.Stream.CARD); print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# Of `jax.random` and `numpy.random`: what makes a generator or a key, also from another one.
MAKERS = {
    "Generator", "Philox", "PCG64", "PRNGKey", "Random", "RandomState", "SeedSequence",
    "SystemRandom", "clone", "default_rng", "fold_in", "key", "seed", "split", "spawn",
}  # fmt: skip
PACKAGE = ROOT / "gapo_jax"
OTHERS = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "rng.py"]


def _dotted(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def _makers(tree: ast.AST) -> list[str]:
    """Return the calls of a module that make a generator or a key, and its imports of makers."""
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            *owner, last = _dotted(node.func).split(".")
            of_random = owner and owner[-1] in ("random", "jrandom", "jr")
            if (of_random and last in MAKERS) or last in ("default_rng", "fold_in", "spawn"):
                calls.append(f"{node.lineno}: {ast.unparse(node.func)}")
        names = [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
        module = getattr(node, "module", None)
        if module in ("random", "jax.random", "numpy.random") or (
            isinstance(node, ast.Import) and "random" in names
        ):
            calls.append(f"{getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
    return calls


def test_no_other_module_makes_a_generator_or_a_key() -> None:
    makers = {str(path): _makers(ast.parse(path.read_text())) for path in OTHERS}
    assert {path: calls for path, calls in makers.items() if calls} == {}
    assert len(makers) > 150


@pytest.mark.parametrize(
    "source",
    ["np.random.default_rng([seed, 1])", "jax.random.key(seed + 2)", "jax.random.fold_in(key, 3)",
     "random.Random(0)", "import random", "from jax.random import PRNGKey",
     "numpy.random.SeedSequence(1)", "jax.random.split(key, 2)", "draw.spawn(2)"],
)  # fmt: skip
def test_the_check_above_sees_a_generator(source) -> None:
    assert _makers(ast.parse(source))


def test_every_stream_is_drawn_from_by_the_package() -> None:
    used = {
        node.attr
        for path in OTHERS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and _dotted(node.value) == "Stream"
    }
    assert used == {name.name for name in Stream}
