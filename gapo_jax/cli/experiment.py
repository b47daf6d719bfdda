"""Find the file that `--config` names, and parse flags beside it.

`train` and `plan` share this. Flags are kept in an `absl` object of the call instead of the global
one, so that two commands can be used in one process.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

import gapo_jax
from gapo_jax.config import Config, check_path
from gapo_jax.config.presets import moved_config


def shipped_configs() -> Path:
    """Return the folder of the configurations that come with the package."""
    package = Path(gapo_jax.__file__).parent
    # A wheel has them inside the package, a checkout beside it.
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(name: str) -> str:
    """Return the FILE.py[:PRESET] that `name` means.

    A file that exists is taken as it is. Otherwise the name is looked up among the shipped
    configurations: `gapo_tiny`, or `configs/gapo_tiny.py` typed outside a checkout. A name that
    has become a preset (`configs/dpo_tiny.py`) is read as that preset, which is said on stderr.

    Raises:
        FileNotFoundError: there is none; names the nearest.
    """
    given, _, preset = name.partition(":")
    path = Path(given)
    if not path.is_file():
        if moved := moved_config(name):
            print(f"{name} is now {moved}", file=sys.stderr)
            return find_config(moved)
        shipped = shipped_configs() / f"{path.stem}.py"
        if path.parent.as_posix() not in (".", "configs") or not shipped.is_file():
            raise FileNotFoundError(_missing(given))
        path = shipped
    return f"{path}:{preset}" if preset else str(path)


def _missing(given: str) -> str:
    names = sorted(path.stem for path in shipped_configs().glob("*.py"))
    near = difflib.get_close_matches(Path(given).stem, names, n=1)
    hint = f"; did you mean configs/{near[0]}.py?" if near else ""
    return f"there is no configuration {given}{hint} Shipped: {', '.join(names)}"


def load_config(name: str) -> Config:
    """Return `get_config(PRESET)` of the file that `name` means (see `find_config`)."""
    path, _, preset = find_config(name).partition(":")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset) if preset else module.get_config()


def split_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return (what --config was given, all other arguments), wherever the flag stands.

    Raises:
        ValueError: --config is missing, or a flag names a key that configurations do not have,
            in which case the message has the nearest.
    """
    name, rest = "", []
    waiting = iter(argv)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            name = value if equals else next(waiting, "")
            continue
        if flag.startswith("--config."):
            check_path(flag.removeprefix("--config."))
        rest.append(argument)
    if not name:
        raise ValueError(
            "--config is missing: FILE.py, FILE.py:PRESET or the name of a shipped configuration"
        )
    return name, rest


def parse_flags(
    define: Callable[[flags.FlagValues], None],
    argv: Sequence[str],
    description: str | None,
    required: Sequence[str] = (),
) -> tuple[flags.FlagValues, Path]:
    """Parse --config, the flags that change it and those that `define(values)` adds.

    A mistake ends the program with one line on standard error and status 1.

    Returns:
        The flags, with the configuration as `values.config`, and the file that it came from.
    """
    values = flags.FlagValues()
    define(values)
    if {"-h", "--help", "-help", "--helpfull"} & set(argv):
        print(f"{description}\n{values.module_help(define.__module__)}")
        print("  --config: the experiment: FILE.py, FILE.py:PRESET or the name of a shipped one")
        print("  --config.KEY=VALUE: changes a key of it, such as --config.rounds=3")
        sys.exit(0)
    try:
        name, rest = split_config(argv)
        # The file is loaded here instead of by ml_collections, which has to see --config first
        # and loads it by an interface that Python has deprecated.
        config_flags.DEFINE_config_dataclass(
            "config", load_config(name), flag_values=values, sys_argv=rest
        )
        flags.mark_flags_as_required(list(required), flag_values=values)
        unread = values([sys.argv[0], *rest])[1:]
    except (flags.Error, ValueError, FileNotFoundError) as error:
        if os.environ.get("GAPO_JAX_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    if unread:
        sys.exit(f"error: arguments that are not flags: {' '.join(unread)}")
    return values, Path(find_config(name).split(":")[0])
