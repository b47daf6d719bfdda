"""The way of a reader from the command to the policy's gradient: short, and one way only."""

from __future__ import annotations

import ast
import functools
import pathlib

import pytest
from by_path import ROOT

# Each step: the file, the function or method in it that is read, and the name in its body that
# leads on. The next file is where that name is defined.
PATH = (
    ("scripts/train.py", None, "main"),
    ("gapo_jax/cli/train.py", "main", "train"),
    ("gapo_jax/cli/train.py", "train", "execute"),
    ("gapo_jax/train/main.py", "execute", "learn_in_rounds"),
    ("gapo_jax/train/main.py", "learn_in_rounds", "train"),
    ("gapo_jax/train/online/loop.py", "train", "run_rounds"),
    ("gapo_jax/train/rounds.py", "run_rounds", "run_round"),
    ("gapo_jax/train/online/loop.py", "gapo_round", "update_policy"),
    ("gapo_jax/train/online/update.py", "update_policy", "policy"),
    ("gapo_jax/train/build.py", "make_steps", "policy_step"),
    ("gapo_jax/train/online/steps.py", "policy_step", "grad"),
)
MOST_FILES = 12
# The phases of a round, in the order of the paper (design section 3).
PHASES = (
    "sample_rollout", "update_discriminator", "compute_rewards", "build_experience",
    "update_policy",
)  # fmt: skip
LOOPS = ("gapo_jax.train.online.loop", "gapo_jax.train.offline.loop")


@functools.cache
def tree_of(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def function(path: str, name: str) -> ast.FunctionDef:
    found = [
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert found, f"{path} has no function {name}"
    return found[0]


def names_in(node: ast.AST) -> set[str]:
    """Return the names and attributes that a piece of code mentions."""
    nodes = list(ast.walk(node))
    names = {item.id for item in nodes if isinstance(item, ast.Name)}
    return names | {item.attr for item in nodes if isinstance(item, ast.Attribute)}


@pytest.mark.parametrize("step", PATH, ids=lambda step: f"{step[0]}:{step[2]}")
def test_every_step_of_the_way_leads_to_the_next(step) -> None:
    path, name, leads_to = step
    node = tree_of(path) if name is None else function(path, name)
    assert leads_to in names_in(node)


def test_a_reader_passes_few_files_to_the_policys_gradient() -> None:
    assert len({path for path, _, _ in PATH}) <= MOST_FILES


def test_the_round_reads_like_the_paper() -> None:
    round_ = function("gapo_jax/train/online/loop.py", "gapo_round")
    calls = [
        node.func.id
        for statement in round_.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert [name for name in calls if name in PHASES] == list(PHASES)
    assert len(ast.unparse(round_).splitlines()) <= 40


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Return the modules of gapo_jax that a module imports, inside functions too."""
    base = ROOT / module.replace(".", "/")
    path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name"
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
            imported.add(str(node.module))
    return frozenset(name for name in imported if is_module(name) and name != module)


def is_module(name: str) -> bool:
    base = ROOT / name.replace(".", "/")
    return name.startswith("gapo_jax.") and base.with_suffix(".py").is_file()


def reached_from(module: str) -> set[str]:
    """Return every module that importing a module brings along."""
    reached: set[str] = set()
    waiting = list(imports_of(module))
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += imports_of(name)
    return reached


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_that_a_loop_calls_imports_a_loop(loop: str) -> None:
    assert len(reached_from(loop)) > 20
    assert not reached_from(loop) & set(LOOPS)


def test_no_module_of_train_is_in_a_circle_of_imports() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(pathlib.Path(ROOT / "gapo_jax/train").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    assert not [module for module in modules if module in reached_from(module)]
