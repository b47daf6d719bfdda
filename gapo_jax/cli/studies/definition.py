"""What a study is: arms, seeds and what all of them share, as data in a file.

`configs/studies/NAME.py` has `get_study()`, which returns a `Study`. An arm is a configuration of
`train` with a few keys changed, so each run of a study is a command that can be given by hand.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gapo_jax.cli.experiment import find_config, load_config, shipped_configs
from gapo_jax.config import Config, change, finalize, to_json
from gapo_jax.methods import needs_pairs
from gapo_jax.records import Json, JsonObject

_NAME = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the tables.

    Attributes:
        name: of its folders and lines: letters, digits and `_ . + -`.
        config: the experiment, FILE.py or FILE.py:PRESET, as `train --config` takes it.
        set: the keys that are changed, such as `{"ppo.kl_coef": 0.1}`.
        label: what tables call it; its name if empty.
        group: arms of one group stand together and have one colour.
        seeds: of the arm; without any, the study's.
    """

    name: str
    config: str
    set: Json = dataclasses.field(default_factory=dict)
    label: str = ""
    group: str = ""
    seeds: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs.

    Attributes:
        arms: in the order of the tables.
        seeds: of every arm that has none of its own.
        set: keys that are changed in every run, before the changes of its arm.
        reference: the arm that the others are compared with, pair by pair; "" for none.
        visible: a reward function, FILE.py:NAME as `reward.sources` takes it, that every arm's
            samples are scored with after the run, whatever it was rewarded with; "" for the arm's
            own discriminator, or the rule reward.
        about: what it asks, for the head of its page; Markdown.
        name: of its files; `load_study` takes that of the file.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    set: Json = dataclasses.field(default_factory=dict)
    reference: str = ""
    visible: str = ""
    about: str = ""
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    study: str
    arm: Arm
    seed: int
    changes: Json
    visible: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """What identifies it among the lines of its study."""
        return self.arm.name, self.seed

    @property
    def folder(self) -> str:
        """Where it works, below the folder of the study's runs."""
        return f"{self.arm.name}/seed{self.seed}"

    def config(self) -> Config:
        """Return its checked configuration.

        Raises:
            ValueError, FileNotFoundError: as `train` would; the message names the arm.
        """
        try:
            return finalize(change(load_config(self.arm.config), self.changes))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"arm {self.arm.name}: {error}") from error

    def flags(self) -> list[str]:
        """Return the arguments of `train` for it, apart from the workdir."""
        changed = [f"--config.{key}={_flag(value)}" for key, value in self.changes.items()]
        return ["--config", find_config(self.arm.config), *changed]

    def recorded(self) -> JsonObject:
        """Return what a line says about how it was made, as JSON gives it back."""
        record = {"config": self.arm.config, "set": dict(self.changes)}
        return json.loads(json.dumps(record))


def _flag(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, tuple | list) else str(value)


def load_study(name: str) -> Study:
    """Return the study of a file, or of a shipped one (`table_a`, `configs/studies/table_a.py`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the study contradicts itself; names the arm.
    """
    path = Path(name)
    if not path.is_file():
        path = shipped_configs() / "studies" / f"{Path(name).stem}.py"
    if not path.is_file():
        shipped = sorted(item.stem for item in path.parent.glob("*.py"))
        raise FileNotFoundError(f"there is no study {name}. Shipped: {', '.join(shipped)}")
    study = dataclasses.replace(_module(path).get_study(), name=path.stem)
    _check(study)
    return study


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_function(text: str) -> Callable[..., Any]:
    """Return the function that FILE.py:NAME names.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no such function in it.
    """
    name, _, function = text.rpartition(":")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"visible={text!r}: there is no file {name} here; start the study where it lies"
        )
    scorer = getattr(_module(path), function, None)
    if not callable(scorer):
        raise ValueError(f"visible={text!r}: {name} has no function {function}")
    return scorer


def _check(study: Study) -> None:
    names = [arm.name for arm in study.arms]
    for name in names:
        if names.count(name) > 1 or not _NAME.fullmatch(name):
            raise ValueError(
                f"study {study.name}: arm {name!r} must have a name of its own, of letters, digits "
                "and _ . + -"
            )
    if study.reference and study.reference not in names:
        raise ValueError(
            f"study {study.name}: reference={study.reference!r} is none of its arms "
            f"({', '.join(names)})"
        )
    if study.visible:
        load_function(study.visible)


def runs_of(study: Study, only: Sequence[str] = ()) -> list[Run]:
    """Return the runs seed by seed, so that a study that is cut short has whole seeds.

    Args:
        study: the study.
        only: patterns as of file names, of ARM or ARM/SEED; all runs without any.

    Raises:
        ValueError: no run fits.
    """
    seeds = sorted({seed for arm in study.arms for seed in arm.seeds or study.seeds})
    runs = [
        _run(study, arm, seed)
        for seed in seeds
        for arm in study.arms
        if seed in (arm.seeds or study.seeds)
    ]
    chosen = [
        run
        for run in runs
        if not only
        or any(fnmatch.fnmatch(text, p) for p in only for text in (run.arm.name, _path(run)))
    ]
    if not chosen:
        raise ValueError(
            f"--only {' '.join(only)} fits none of the {len(runs)} runs; wanted a pattern such as "
            f"{runs[0].arm.name} or '{runs[0].arm.name}/{runs[0].seed}'"
        )
    return chosen


def _path(run: Run) -> str:
    return f"{run.arm.name}/{run.seed}"


def _run(study: Study, arm: Arm, seed: int) -> Run:
    # A grid would fill a disk with models; an arm that needs its model says so.
    changes = {"export": False, "checkpoint.keep": 1, **study.set, **arm.set, "seed": seed}
    changes["name"] = f"{study.name}_{arm.name}"
    return Run(study.name, arm, seed, changes, study.visible)


# What the files that runs of one seed hand over depend on: bootstrap, pairs, first evaluation.
_ALSO_SHARED = ("generator", "discriminator", "dtype", "attention", "pooling")
_NOT_SHARED = ("preference", "curriculum", "curriculum_start", "verify_workers")


def sharing_key(config: Config) -> str:
    """Return a hash of all that the files of `runs.SHARED` depend on: runs of one key make the same
    ones."""
    record = to_json(config)
    data = {key: value for key, value in record["data"].items() if key not in _NOT_SHARED}
    parts = {
        "seed": config.seed,
        "model": {key: record["model"][key] for key in _ALSO_SHARED},
        "visible": config.discriminator.max_tokens,
        "data": data,
        "sampling": record["sampling"],
        "eval": record["eval"],
        "pairs": needs_pairs(config),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
