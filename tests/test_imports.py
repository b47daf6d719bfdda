"""The conventions that a machine can hold: who imports whom, sizes, words, docstrings, comments."""

from __future__ import annotations

import ast
import functools
import io
import pathlib
import re
import subprocess
import tokenize

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
    {"types", "rng", "hub", "section", "checksums"},
    {"sharding", "constraints", "options"},
    {"losses", "models", "data", "checkpoint", "compilation"},
    {"methods"},
    {"config"},
    {"rewards", "rollout"},
    {"evaluate"},
    {"train"},
    {"plan"},
    {"cli"},
)
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
# Third-party packages that functions import: optional ones, and those that take seconds to load
# and are needed by few calls.
LATE = {
    "apache_beam", "array_record", "datasets", "huggingface_hub", "if_verifiable", "jax",
    "langdetect", "mlflow", "nltk", "punkt", "pyarrow", "tensorboardX", "tensorflow_datasets",
    "torch", "trackio", "transformers", "wandb", "zstandard",
}  # fmt: skip
# Who may import torch (in functions): what compares with it. The package trains without.
TORCH = {"cli/benchmarks/peers.py", "cli/convert.py"}
MAX_LINES, MAX_FUNCTION, MAX_LOOP = 500, 50, 100
LOOPS = {"train/online/loop.py", "train/offline/loop.py"}
MAX_FLOORS = 14  # of imports in train/; the aim is 7
MIN_COMMENTS = 0.013  # of the lines of the package; the aim is 0.04
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
# Design section 2: words that went, because each meant several things or none that others know.
WORDS = r"\b(players?|lessons?|teachers?|grounding|judg(e|es|ed|ing)|adversar(y|ies))\b"
# What earlier versions wrote is still read under its old name; a topic of writing is no term.
OLD_NAMES = {
    "gapo_jax/evaluate/console.py", "gapo_jax/train/state.py", "gapo_jax/data/tasks.py",
}  # fmt: skip
MACHINE_PATHS = r"/(work|tmp|root|home|mnt|opt)/[A-Za-z0-9]"

ids = functools.partial(pytest.mark.parametrize, "path", ids=lambda path: str(path.name))


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def module_of(path: pathlib.Path) -> str:
    """Return the dotted name of a file of the package."""
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: pathlib.Path, part: ast.AST | None = None) -> list[str]:
    """Return the dotted names that a file (or a part of it) imports, in functions too."""
    package = ["gapo_jax", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(part or tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def imported_modules(path: pathlib.Path) -> set[str]:
    """Return the modules of the package that a file imports, in functions too."""
    found = set()
    for name in imports(path):
        while name and name not in MODULES:  # a name of a module, or of the package itself
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", "gapo_jax", module_of(path)}


def starts_with(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def layer(name: str) -> int:
    (index,) = (index for index, members in enumerate(LAYERS) if name in members)
    return index


def is_allowed(importer: str, imported: str) -> bool:
    return importer == imported or layer(imported) < layer(importer)


def test_the_rule_itself() -> None:
    assert is_allowed("train", "rollout") and is_allowed("losses", "types")
    assert is_allowed("train", "evaluate") and is_allowed("cli", "plan")
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
        wrong += [module for name in FORBIDDEN.get(importer, ()) if starts_with(module, name)]
        if starts_with(module, "torch") and name_of(path) not in TORCH:
            wrong.append(module)
        if starts_with(module, "orbax") and name_of(path) != "checkpoint.py":
            wrong.append(module)
    if importer != "__init__":
        units = {module: module.split(".")[1] for module in imported_modules(path)}
        wrong += [module for module, unit in units.items() if not is_allowed(importer, unit)]
    assert not wrong, f"{name_of(path)} may not import {wrong}"


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return one circle of a graph as a list of names, or []."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := search(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := search(name, []))), [])


def test_no_circle_inside_a_folder_or_between_folders() -> None:
    """Imports in functions count: none of them hides a circle."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not circles({module: imported_modules(path) for module, path in MODULES.items()})


def late_imports(path: pathlib.Path) -> set[str]:
    """Return the dotted names that functions of a file import."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(tree_of(path)) if isinstance(node, kinds)]
    return {name for node in nodes for name in imports(path, node)}


@ids([path for path in FILES if name_of(path).partition("/")[0] != "cli"])
def test_functions_import_only_what_is_optional_or_slow(path: pathlib.Path) -> None:
    """`cli` is free: there a wrong flag is reported before JAX is loaded."""
    standard = {"copy", "csv"}
    found = {name for name in late_imports(path) if name.split(".")[0] not in LATE | standard}
    # A module of the same folder that takes seconds, as it loads a tokenizer or a catalogue.
    folder = module_of(path).rpartition(".")[0]
    found = {name for name in found if not (folder.count(".") and starts_with(name, folder))}
    assert not found, f"{name_of(path)} imports {sorted(found)} in a function"


def test_train_has_few_floors() -> None:
    """The longest chain of imports inside `train/`."""
    graph = {
        module: {name for name in imported_modules(path) if starts_with(name, "gapo_jax.train")}
        for module, path in MODULES.items()
        if starts_with(module, "gapo_jax.train")
    }

    @functools.cache
    def chain(module: str) -> tuple[str, ...]:
        below = [chain(name) for name in graph[module]]
        return (module.removeprefix("gapo_jax.train."), *max(below, key=len, default=()))

    longest = max((chain(module) for module in graph), key=len)
    assert len(longest) <= MAX_FLOORS, " <- ".join(longest)


@ids(FILES)
def test_files_and_functions_are_short(path: pathlib.Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
    limit = MAX_LOOP if name_of(path) in LOOPS else MAX_FUNCTION
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            documented = ast.get_docstring(node, clean=False)
            length -= len(documented.splitlines()) if documented else 0
            assert length <= limit, f"{name_of(path)}: {node.name} has {length} lines"


def test_comments_say_why_often_enough() -> None:
    """A share of the lines of the package, without docstrings and directives to tools."""
    comments = lines = 0
    for path in FILES:
        text = path.read_text()
        lines += len(text.splitlines())
        rows = {
            token.start[0]
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type == tokenize.COMMENT and not re.match(r"# (fmt|type|noqa)", token.string)
        }
        comments += len(rows)
    assert comments / lines >= MIN_COMMENTS, f"{comments} of {lines} lines have a comment"


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


@ids(FILES + SCRIPTS + sorted((ROOT / "scripts").glob("*.*h")))
def test_words_that_went_stay_away(path: pathlib.Path) -> None:
    if path.relative_to(ROOT).as_posix() in OLD_NAMES:
        return
    found = [
        f"line {number}: {match.group()}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for match in re.finditer(WORDS, line, re.IGNORECASE)
    ]
    assert not found, f"{path.name}: {found}"


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
