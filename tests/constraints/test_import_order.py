"""Imports inside constraints/ point one way, in the order that its docstring gives; no JAX."""

import ast
import re
import subprocess
import sys

import pytest
from by_path import ROOT

from gapo_jax import constraints

FOLDER = ROOT / "gapo_jax" / "constraints"
ORDER = re.findall(r"`(\w+)`", (constraints.__doc__ or "").split("Order of the modules")[1])
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def imported(name: str) -> set[str]:
    """Return the modules of the folder that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "gapo_jax.constraints":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= set(re.findall(r"^gapo_jax\.constraints\.(\w+)", node.module))
        elif isinstance(node, ast.Import):
            names = ",".join(alias.name for alias in node.names)
            found |= set(re.findall(r"gapo_jax\.constraints\.(\w+)", names))
    return found


def test_the_order_names_every_module_once():
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_earlier_ones(name):
    later = imported(name) - set(ORDER[: ORDER.index(name)])
    assert not later, f"{name} imports {later}"


@pytest.mark.parametrize("name", MODULES)
def test_no_import_of_the_package_is_inside_a_function(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("gapo_jax"), function.name


WITHOUT_JAX = """
import sys
from gapo_jax import constraints
assert constraints.check("a b", ["no_comma", "emoji"], [{}, {}]) == [True, False]
rows = {"instruction_id_list": [["no_comma"]], "kwargs": [[{}]]}
assert constraints.reward(["p"], ["a, b"], **rows) == [0.0]
assert not {"jax", "jaxlib", "flax", "torch"} & set(sys.modules), "a device library is loaded"
"""


def test_it_works_without_jax():
    subprocess.run([sys.executable, "-c", WITHOUT_JAX], cwd=ROOT, check=True, timeout=120)
