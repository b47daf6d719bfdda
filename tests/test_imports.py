"""The conventions that a machine can hold: who imports whom, sizes, docstrings, dead interfaces."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import subprocess

import pytest
from by_path import ROOT

PACKAGE = ROOT / "gapo_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py")) + sorted((ROOT / "configs").glob("*.py"))

# Design section 3. A module may import modules of the layers above it, never of its own layer
# (except its own folder) and never of a layer below. The base of the configuration's sections and
# the options of methods stand below the registry, as `config` takes the latter from it.
LAYERS = (
    {"records", "io"},
    {"types", "rng", "hub", "section"},
    {"sharding", "constraints", "options"},
    {"losses", "models", "data", "checkpoint"},
    {"methods"},
    {"config"},
    {"rollout"},
    {"train", "evaluate"},
)
# The loop measures and reports: the one import between siblings, in one direction.
ALLOWED = {("train", "evaluate")}
# What a folder may not import at all: losses see arrays only, data and constraints no device
# arrays, models no mesh.
FORBIDDEN = {
    "losses": {"flax", "gapo_jax.config"},
    "config": {"flax", "gapo_jax.constraints", "gapo_jax.models", "gapo_jax.data"},
    "constraints": {"jax", "flax", "optax"},
    "data": {"jax", "flax", "optax"},
    "records": {"gapo_jax", "jax", "flax", "numpy"},
    "io": {"gapo_jax", "jax", "flax", "numpy"},
}
MAX_LINES, MAX_FUNCTION, MAX_LOOP = 500, 50, 120
LOOPS = {"train/online.py", "train/offline.py"}
DEPRECATED = (
    r"jax\.experimental\.pjit|experimental import pjit|\bpjit\(",
    r"experimental\.shard_map|experimental import shard_map",
    r"jax\.experimental\.maps|\bxmap\(",
    r"^\s*with mesh\b",
    r"jax\.sharding\.use_mesh",
    r"device_put_(replicated|sharded)",
    r"jax\.(tree_map|tree_leaves|tree_flatten|tree_unflatten)\(",
    r"jax\.random\.PRNGKey\(",
    r"flax\.training\.(checkpoints|lr_schedule)",
    r"(save|load)_pytree\(",
    r"jax\.pmap\(",
)
MACHINE_PATHS = r"/(work|tmp|root|home|mnt|opt)/[A-Za-z0-9]"

ids = functools.partial(pytest.mark.parametrize, "path", ids=lambda path: str(path.name))


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def unit(module: str) -> str:
    """Return the part of the layout that a dotted module belongs to: gapo_jax.data.x -> data."""
    return module.split(".")[1] if "." in module else "gapo_jax"


def imports(path: pathlib.Path) -> list[str]:
    """Return the dotted names that a file imports, relative ones resolved, nested ones too."""
    package = ["gapo_jax", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def starts_with(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def layer(name: str) -> int:
    (index,) = (index for index, members in enumerate(LAYERS) if name in members)
    return index


def is_allowed(importer: str, imported: str) -> bool:
    if importer == imported or (importer, imported) in ALLOWED:
        return True
    return layer(imported) < layer(importer)


def test_the_rule_itself() -> None:
    assert is_allowed("train", "rollout") and is_allowed("losses", "types")
    assert not is_allowed("losses", "models") and not is_allowed("models", "rollout")
    assert not is_allowed("evaluate", "train") and not is_allowed("sharding", "constraints")
    assert is_allowed("config", "methods") and not is_allowed("methods", "config")
    assert all(any(unit == name for names in LAYERS for name in names) for unit in FORBIDDEN)


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts - {"__init__"} <= set().union(*LAYERS)


@ids(FILES)
def test_imports_point_one_way(path: pathlib.Path) -> None:
    importer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    wrong = []
    for module in imports(path):
        if starts_with(module, "gapo_jax") and importer != "__init__":
            imported = unit(module)
            if imported != "gapo_jax" and not imported.startswith("__"):
                if not is_allowed(importer, imported):
                    wrong.append(module)
        wrong += [module for name in FORBIDDEN.get(importer, ()) if starts_with(module, name)]
        if starts_with(module, "torch"):
            wrong.append(module)
        if starts_with(module, "orbax") and name_of(path) != "checkpoint.py":
            wrong.append(module)
    assert not wrong, f"{name_of(path)} may not import {wrong}"


@ids(FILES)
def test_files_and_functions_are_short(path: pathlib.Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    limit = MAX_LOOP if name_of(path) in LOOPS else MAX_FUNCTION
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            documented = ast.get_docstring(node, clean=False)
            length -= len(documented.splitlines()) if documented else 0
            assert length <= limit, f"{name_of(path)}: {node.name} has {length} lines"


@functools.cache
def bases_of() -> dict[str, list[str]]:
    """Return the names of the bases of every class of the package."""
    trees = [ast.parse(path.read_text()) for path in FILES]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name: [ast.unparse(b).split(".")[-1] for b in node.bases] for node in classes}


@functools.cache
def documented_methods() -> set[tuple[str, str]]:
    """Return (class, method) of every method of the package that has a docstring."""
    trees = [ast.parse(path.read_text()) for path in FILES]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {
        (owner.name, node.name)
        for owner in classes
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
    }


def inherits_docstring(owner: ast.AST, method: ast.FunctionDef | ast.ClassDef) -> bool:
    """Return whether a method overrides one that is documented in a base class."""
    waiting, seen = (
        [ast.unparse(base).split(".")[-1] for base in getattr(owner, "bases", [])],
        set(),
    )
    while waiting:
        base = waiting.pop()
        if (base, method.name) in documented_methods():
            return True
        if base not in seen:
            seen.add(base)
            waiting += bases_of().get(base, [])
    return False


def public(tree: ast.AST, prefix: str = "") -> list[tuple[str, ast.AST]]:
    """Return the public classes, functions and methods that need a docstring of their own."""
    found = []
    for node in getattr(tree, "body", []):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        overloaded = any("overload" in ast.dump(item) for item in node.decorator_list)
        if not overloaded and not inherits_docstring(tree, node):
            found.append((prefix + node.name, node))
        if isinstance(node, ast.ClassDef):
            found += public(node, f"{prefix}{node.name}.")
    return found


@ids(FILES + SCRIPTS)
def test_everything_public_says_what_it_is(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    bare = [name for name, node in public(tree) if not ast.get_docstring(node)]
    assert not bare, f"no docstring: {bare}"


@ids(FILES + SCRIPTS)
def test_no_dead_interfaces(path: pathlib.Path) -> None:
    for pattern in DEPRECATED:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
        assert found is None, f"{path.name} uses {found and found.group()}"


def test_dead_interfaces_would_be_found() -> None:
    for line in (
        "from jax.experimental import pjit",
        "    with mesh:",
        "k = jax.random.PRNGKey(0)",
    ):
        assert any(re.search(pattern, line, re.MULTILINE) for pattern in DEPRECATED)


def test_no_path_of_one_machine_in_the_tree() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file() or path == pathlib.Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {match.group()}" for match in re.finditer(MACHINE_PATHS, text)]
    assert not found, found
