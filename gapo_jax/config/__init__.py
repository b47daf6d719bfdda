"""The configuration of a run: one mutable section a concern, checked and frozen by `finalize`.

`configs/*.py` return a `Config` from `get_config(preset)`; flags override single fields
(`--config.ppo.clip_low=0.1`); `finalize` checks the whole before anything slow starts. What a field
accepts is written beside it (`schema.py`, `online.py`, `gapo_jax/options.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from gapo_jax.config.checks import check
from gapo_jax.config.online import DiscriminatorConfig, PPOConfig, RewardConfig
from gapo_jax.config.optim import OptimConfig
from gapo_jax.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OfflineConfig,
    SamplingConfig,
)
from gapo_jax.methods import method_of, unused_options
from gapo_jax.records import Json, JsonObject
from gapo_jax.section import Section, nearest

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DiscriminatorConfig",
    "EvalConfig",
    "LogConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OfflineConfig",
    "OptimConfig",
    "PPOConfig",
    "RewardConfig",
    "SamplingConfig",
    "Section",
    "change",
    "check_path",
    "differences",
    "finalize",
    "fingerprint",
    "from_json",
    "identity",
    "lookup",
    "system_text",
    "to_json",
    "updates_per_round",
]


def lookup(config: Any, path: str) -> Any:
    """Return the field at a dotted path, such as `ppo.clip_low`."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def check_path(path: str) -> None:
    """Raise ValueError when no field lies at a dotted path; names the nearest one."""
    section: Any = Config()
    parts = path.split(".")
    for depth, part in enumerate(parts):
        names = list(vars(section)) if isinstance(section, Section) else []
        if part not in names:
            where = ".".join(["config", *parts[:depth]])
            raise ValueError(
                f"there is no config.{path}: {where} has no {part!r}{nearest(part, names)}"
            )
        section = getattr(section, part)


def change(config: Config, changes: Json) -> Config:
    """Set the fields at dotted paths; return the configuration.

    Raises:
        ValueError: no field lies there.
    """
    for path, value in changes.items():
        check_path(path)
        *above, name = path.split(".")
        setattr(lookup(config, ".".join(above)) if above else config, name, value)
    return config


def system_text(config: Config) -> str | None:
    """Return the system turn that replaces the chat template's own, or None to keep that."""
    return None if config.data.system_prompt == "template" else config.data.system_prompt


def updates_per_round(config: Config) -> int:
    """Return the updates of one round; the `step` of a metrics line counts them."""
    if method_of(config).loop == "offline":
        return config.offline.steps_per_round
    return config.ppo.epochs * (config.ppo.trained_rows // config.ppo.minibatch_size)


def finalize(config: Config) -> Config:
    """Return a checked copy that can no longer be changed.

    Raises:
        ValueError: a field is out of range, or two fields contradict each other; the message
            names the field, what it holds and what would be accepted.
    """
    config = from_json(to_json(config))
    check(config)
    config.freeze()
    return config


def to_json(config: Config) -> JsonObject:
    """Return the configuration as nested JSON-ready dictionaries."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]


def from_json(record: Json) -> Config:
    """Rebuild a configuration from `to_json`; unknown keys raise with the nearest valid key."""
    return _fill(Config(), record, "config")


def _fill(section: Any, record: Json, path: str) -> Any:
    names = [field.name for field in dataclasses.fields(section)]
    for key, value in record.items():
        if key not in names:
            raise ValueError(f"unknown key {path}.{key}{nearest(key, names)}")
        current = getattr(section, key)
        if isinstance(current, Section):
            _fill(current, value, f"{path}.{key}")
        else:
            setattr(section, key, tuple(value) if isinstance(current, tuple) else value)
    return section


def differences(old: Json, new: Json, path: str = "") -> list[str]:
    """List the leaves in which two `to_json` records differ, as `key: old -> new`."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        name = f"{path}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines


# A longer run, a later export, another mesh or another sink is still the same run.
_NOT_IDENTITY = ("name", "export", "rounds", "checkpoint", "mesh", "log")


def identity(config: Config) -> JsonObject:
    """Return the part of a configuration that a continued run must share with its beginning."""
    record = to_json(config)
    for name in ("verify_workers", "cache"):  # what the machine has use for
        del record["data"][name]
    del record["reward"]["timeout_s"]  # as long as the machine takes
    # With a measure of one's choice, other rows are left for development.
    record["best"] = config.checkpoint.best
    left_out = {*_NOT_IDENTITY, *unused_options(config)}
    return {key: value for key, value in record.items() if key not in left_out}


def fingerprint(config: Config) -> str:
    """Return a short hash of `identity(config)`."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
