"""The documentation says what is so: links, names, commands, metrics, messages; examples run.

A block that is to be run stands behind the line `<!-- runnable -->`. All such blocks of a page run
in order in one folder that the pages share, since later ones use what earlier ones made.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import by_path
import pytest

from gapo_jax.config import check_path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
RUNNABLE = "<!-- runnable -->"
# Pages with runnable blocks, in the order in which they use what the ones before have made.
ORDER = ("start", "rewards", "data", "evaluation", "models")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_METRIC = re.compile(
    r"^(advantage|compile|constraint|device|dev|disc|eval|invq|kl|logps|policy|pref|response|reward|rewards"
    r"|rollout|sft|sgpo|throughput|time|tis|value)/[\w/…]+$"
)
# Names that are checked but never written.
_INTERNAL = {"disc/weight_norm"}
# Placeholders of docs/metrics.md, and a value of each.
_PLACES = {
    "CLASS": ("accepted", "rejected", "generated"),
    "ID": ("punctuation:no_comma",),
    "PHASE": "warmup rollout score experience discriminator policy eval save".split(),
    "REASON": ("copy", "too_close", "too_far", "not_nearer", "same", "length"),
    "SOURCE": ("verifier", "discriminator"),
    "SET": ("heldout_topics", "heldout_phrasings", "heldout_tasks", "development", "trip_wires"),
}


def by_name(page: Path) -> str:
    """Return a page's path as the name of its test."""
    return page.relative_to(ROOT).as_posix()


@functools.cache
def text_of(page: Path) -> str:
    """Return the text of a page."""
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", text_of(page))


def code(page: Path) -> str:
    """Return all that is set as code: blocks, and spans in backticks."""
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    return "\n".join([block for _, block in _FENCE.findall(text_of(page))] + spans)


def slug(heading: str) -> str:
    """Return the anchor that code hosts and mkdocs make of a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain.strip().lower()))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page."""
    return {slug(found) for found in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)}


def sources() -> Iterator[Path]:
    """Yield the Python files of the package and its scripts."""
    yield from sorted((ROOT / "gapo_jax").rglob("*.py"))
    yield from sorted((ROOT / "scripts").rglob("*.py"))


def written(node: ast.AST) -> str:
    """Return the text of a string in the source, `…` for what is put into it when it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left) + written(node.right)
    return "…"


@functools.cache
def strings() -> tuple[str, ...]:
    """Return every string of the source."""
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sources())
    found = (written(node) for tree in trees for node in ast.walk(tree) if isinstance(node, kinds))
    return tuple(dict.fromkeys(re.sub(r"\s+", " ", text) for text in found))


@functools.cache
def defined(path: Path) -> frozenset[str]:
    """Return the names that a module defines at its top, and `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            names |= {f"{node.name}.{part.name}" for part in inner}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_and_anchors_resolve(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            broken.append(target)
        elif anchor and anchor not in anchors(place):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_functions_and_modules_that_are_named_exist(page):
    text, missing = code(page), []
    folders = "gapo_jax|scripts|configs|tests|docs"
    for path, name in re.findall(rf"((?:{folders})/[\w./-]*\w\.\w+)(?::(\w[\w.]*))?", text):
        file = ROOT / path
        if "NAME" in path or "METHOD" in path or "X.py" in path:
            continue
        if not file.exists():
            missing.append(path)
        elif name and path.startswith("gapo_jax/") and name not in defined(file):
            missing.append(f"{path}:{name}")
    for name, path in re.findall(r"\[`(\w[\w.]*)`\]\(\.\./(gapo_jax/[\w/]+\.py)\)", prose(page)):
        if (ROOT / path).exists() and not name.endswith(".py") and name not in defined(ROOT / path):
            missing.append(f"{path}:{name}")
    for dotted in re.findall(r"\bgapo_jax(?:\.\w+)+", text):
        if not importable(dotted):
            missing.append(dotted)
    assert not missing


def importable(dotted: str) -> bool:
    """Return whether a dotted name is a module, or something in one."""
    try:
        importlib.import_module(dotted)
        return True
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return bool(module) and importable(module) and hasattr(sys.modules[module], name)


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_configuration_keys_and_presets_that_are_named_exist(page):
    text, wrong = code(page), []
    for key in sorted(set(re.findall(r"(?<![/\w])config\.((?:\w+\.)*\w+)", text))):
        if key in ("json", "py", "a.b"):
            continue
        try:
            check_path(key)
        except ValueError as error:
            wrong.append(str(error))
    for name, preset in sorted(set(re.findall(r"configs/(\w+)\.py(?::(\w+))?", text))):
        if name in ("NAME", "METHOD", "X") or preset in ("PRESET", "METHOD"):
            continue
        try:
            by_path.load(ROOT / "configs" / f"{name}.py").get_config(preset)
        except (ValueError, FileNotFoundError) as error:
            wrong.append(f"{name}:{preset}: {error}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_flags_of_commands_exist(page):
    known = {text for text in strings() if re.fullmatch(r"(--)?[\w-]+", text)}
    unknown = []
    blocks = "\n".join(block for kind, block in _FENCE.findall(text_of(page)) if kind == "bash")
    for line in blocks.replace("\\\n", " ").splitlines():
        command = line.split(" #")[0]
        if not re.search(r"(python|gapo-jax) ?(scripts/)?\w+", command) or "launch" in command:
            continue
        for flag in re.findall(r"(?<=\s)--([\w-]+)", command):
            if f"--{flag}" not in known and flag not in known:
                unknown.append(f"--{flag}: {line.strip()}")
    assert not unknown


def test_readme_is_short_and_comes_to_the_point():
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) <= 150
    assert len(text_of(ROOT / "README.md").split()) <= 1200
    assert any("quickstart.sh" in line for line in lines[:25])


def test_every_page_is_in_the_site():
    site = text_of(ROOT / "mkdocs.yml")
    assert not [page.name for page in DOCS.glob("*.md") if f": {page.name}\n" not in site]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]' builds the site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "contributing/index.html", "source/gapo_jax/types.py/index.html"):
        assert (tmp_path / page).is_file(), page


def documented_metrics() -> list[str]:
    """Return the names in the first columns of the tables of docs/metrics.md."""
    rows = re.findall(r"^\| (`.+?`) \|", text_of(DOCS / "metrics.md"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return [name for name in names if "/" in name]


def expanded(name: str) -> set[str]:
    """Return a documented name with its placeholder filled in, every way."""
    for place, values in _PLACES.items():
        if re.search(rf"(?<![A-Z]){place}(?![A-Z])", name):
            return {name.replace(place, value) for value in values}
    return {name}


def test_metrics_are_those_of_the_code():
    names = set().union(*map(expanded, documented_metrics()))
    names |= {f"{name}{end}" for name in names if "eval/" in name for end in ("_low", "_high")}
    code_names = {text for text in strings() if _METRIC.match(text) and text[-1] not in "_/"}
    code_names -= _INTERNAL
    patterns = [
        re.sub("…$", r"[\\w:/]*", re.escape(name)).replace("…", r"[\w:]*") for name in code_names
    ]
    unknown = {n for n in names if not any(re.fullmatch(pattern, n) for pattern in patterns)}
    silent = {c for c in code_names if "…" not in c and c not in names}
    assert (unknown, silent) == (set(), set())


def test_messages_in_troubleshooting_are_those_of_the_code():
    source, inside, gone = "\n".join(strings()), False, []
    for line in text_of(DOCS / "troubleshooting.md").splitlines():
        inside = line.startswith("| message |") or (inside and line.startswith("|"))
        if inside:
            pieces = re.findall(r"`([^`]+)`", line.split("|")[1])
            gone += [piece for piece in pieces if piece not in source]
    assert not gone


def runnable(page: Path) -> list[tuple[str, str]]:
    """Return the (language, code) of the blocks that are to be run."""
    found = re.findall(rf"^{RUNNABLE}\n```(\w+)\n(.*?)^```$", text_of(page), re.M | re.S)
    assert len(found) == text_of(page).splitlines().count(RUNNABLE), page
    return found


def test_every_page_with_runnable_blocks_is_run():
    assert {page.stem for page in PAGES if runnable(page)} <= set(ORDER)


def test_runnable_blocks_run(tmp_path):
    """A tiny run of one round takes most of the time."""
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for stem in ORDER:
        for language, block in runnable(DOCS / f"{stem}.md"):
            command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
            done = subprocess.run(
                [*command[language], block],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
            )
            assert done.returncode == 0, f"{stem}.md:\n{block}\n{done.stdout}\n{done.stderr}"
    names = set().union(*map(expanded, documented_metrics()))
    lines = (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
    written_names = {re.sub("_(low|high)$", "", key) for line in lines for key in json.loads(line)}
    types = {name for name in written_names if name.startswith("constraint/type/")}
    heads = {"step", "round", "phase", "time_s"}
    assert not written_names - names - heads - types
