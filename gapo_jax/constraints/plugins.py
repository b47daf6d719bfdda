"""Constraint types of one's own: a class with `id`, `describe` and `check`.

    class Polite:
        id = "mine:polite"

        def describe(self, constraint, style=0):
            return "Say please."

        def check(self, constraint, response):  # a third parameter gets the prompt
            return "please" in response.lower()

`constraint.kwargs` holds the arguments of the row, `response` is the answer without its thinking.
The class is made known by `register(Polite)`, by its file (`load_plugin`, which
`config.data.plugins` calls), or by an installed package with an entry point in the group
`gapo_jax.constraints`. From then on rewards, labels, evaluation and report use it like a built-in
type. To make training prompts with it, give it `sample` and `modify` too, or derive it from
`base.TrainableType`, which has both.

A verdict fails closed: a `check` that raises, takes longer than `TIME_LIMIT_S`, or returns anything
but a bool counts as violated, with a warning the first time.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import logging
import pickle
import signal
import sys
import threading
import types
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gapo_jax.constraints.base import ConstraintType, Probe
from gapo_jax.constraints.fields import FIELDS
from gapo_jax.constraints.text import MAX_TEXT, final_answer
from gapo_jax.records import Constraint

ENTRY_POINTS = "gapo_jax.constraints"
TIME_LIMIT_S = 5.0  # of one verdict of a plug-in; the built-in checks are bounded by their text
_NEEDED = ("id", "describe", "check")

log = logging.getLogger("gapo_jax")
T = TypeVar("T")


class TimeUp(BaseException):
    """A verdict took too long. No `Exception`, so that a check cannot swallow it by accident."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` inside the block when the wall-clock time is up.

    By a signal, so it works in the main thread of a process only and does nothing elsewhere. Inside
    another limit (or another user of the alarm signal) that ends earlier, that one applies.
    """
    main = threading.current_thread() is threading.main_thread()
    outer = signal.getitimer(signal.ITIMER_REAL)[0] if main and hasattr(signal, "setitimer") else 0
    if not main or not hasattr(signal, "setitimer") or 0 < outer <= seconds:
        yield
        return

    # Patterns are interrupted too: Python's matcher looks for signals while it matches.
    def end(*_: object) -> None:
        raise TimeUp(f"took longer than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        left = signal.setitimer(signal.ITIMER_REAL, 0)[0]
        signal.signal(signal.SIGALRM, handler)
        if outer:  # what remains of the limit around this one
            signal.setitimer(signal.ITIMER_REAL, outer - (seconds - left))


def _takes(function: Callable[..., object], most: int, least: int, usage: str) -> int:
    """Return how many positional arguments, `most` or fewer, a function can be called with."""
    signature = inspect.signature(function)
    # The longest call first: a check with a default for the prompt shall get the prompt.
    for count in range(most, least - 1, -1):
        with contextlib.suppress(TypeError):
            signature.bind(*[None] * count)
            return count
    raise ValueError(f"expected a function that can be called as {usage}, got {signature}")


class PluginType(ConstraintType):
    """A registered object of one's own, with the defaults of `ConstraintType` and safe verdicts."""

    def __init__(self, own: Any) -> None:
        missing = [name for name in _NEEDED if not hasattr(own, name)]
        if missing:
            raise ValueError(
                f"constraint type {type(own).__name__}: expected a class with {', '.join(_NEEDED)},"
                f" got none of that name: {', '.join(missing)}; see gapo_jax/constraints/plugins.py"
            )
        if not isinstance(own.id, str) or not own.id.strip():
            raise ValueError(
                f"constraint type {type(own).__name__}: expected a text such as 'mine:polite' as"
                f" id, got {own.id!r}"
            )
        self.own, self.id = own, own.id
        try:
            self._checks = _takes(own.check, 3, 2, "check(constraint, response[, prompt])")
            self._describes = _takes(own.describe, 2, 1, "describe(constraint[, style])")
        except ValueError as error:
            raise ValueError(f"constraint type {self.id}: {error}") from None
        self._warned = False

    def __getattr__(self, name: str) -> Any:
        # `sample`, `modify` and whatever else the class has; not before `own` is set.
        if name == "own":
            raise AttributeError(name)
        return getattr(self.own, name)

    @property
    def origin(self) -> tuple[str, str]:
        """Module and name of the class: a class of the same origin replaces the older one."""
        # A worker imports the main script under another name; the class is the same.
        kind = type(self.own)
        return kind.__module__.replace("__mp_main__", "__main__"), kind.__qualname__

    @property
    def probes(self) -> tuple[Probe, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The probes of the class, if any."""
        return getattr(self.own, "probes", ())

    @property
    def difference(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the texts of the probes differ in."""
        return getattr(self.own, "difference", self.id)

    @property
    def siblings(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Related types to take a near miss from."""
        return tuple(getattr(self.own, "siblings", ()))

    @property
    def has_arguments(self) -> bool:
        """Whether instances differ; yes unless the class says otherwise."""
        return bool(getattr(self.own, "has_arguments", True))

    @property
    def train_styles(self) -> tuple[int, ...]:
        """The training styles of the class, else one."""
        return tuple(getattr(self.own, "train_styles", (0,)))

    @property
    def heldout_styles(self) -> tuple[int, ...]:
        """The held-out styles of the class, else the same one."""
        return tuple(getattr(self.own, "heldout_styles", (0,)))

    @property
    def conflicts(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Ids that must not occur in one prompt with this type."""
        return frozenset((self.id, *getattr(self.own, "conflicts", ())))

    def describe(self, constraint: Constraint, style: int = 0) -> str:
        """Return the constraint as a sentence."""
        return str(self.own.describe(*(constraint, style)[: self._describes]))

    def shortfall(self, constraint: Constraint, response: str) -> float:
        """Return the class's own shortfall, else 1."""
        own = getattr(self.own, "shortfall", None)
        return 1.0 if own is None else float(own(constraint, response))

    def check(self, constraint: Constraint, response: str, prompt: str = "") -> bool:
        """Return the class's verdict; violated where there is none, or for an empty response."""
        answer = final_answer(response)
        # The same rules as for built-in types, and classes need not repeat them.
        if not answer.strip() or len(answer) > MAX_TEXT:
            return False
        try:
            with time_limit(TIME_LIMIT_S):
                verdict = self.own.check(*(constraint, answer, prompt)[: self._checks])
            # A text such as "no" is true in Python: taken as it is, it would fail open.
            if not isinstance(verdict, bool | np.bool_):
                raise TypeError(f"expected True or False, got {verdict!r:.200}")
        except (Exception, TimeUp) as error:
            if not self._warned:
                log.warning(
                    "the check of constraint type %s failed (%s: %s); such responses count as"
                    " violating it. Further failures of this type are not reported.",
                    self.id, type(error).__name__, error,
                )  # fmt: skip
            self._warned = True
            return False
        return bool(verdict)


_TYPES: dict[str, PluginType] = {}
_FILES: dict[Path, str] = {}  # files that were loaded, and the names of their modules
_entry_points_loaded = False


def register(kind: T) -> T:
    """Make a constraint type known; returns its argument, so it serves as a decorator too.

    Args:
      kind: a class with `id`, `describe` and `check` that can be made without arguments, or an
        object of such a class.

    Raises:
      ValueError: something is missing, or the id belongs to another type already.
    """
    made = PluginType(kind() if isinstance(kind, type) else kind)
    if made.id in FIELDS:
        raise ValueError(
            f"constraint type {made.id}: this is the id of a built-in type; choose another one,"
            " such as 'mine:NAME'"
        )
    # Two types under one id would make rewards depend on the order of imports.
    known = _TYPES.get(made.id)
    if known is not None and known.origin != made.origin:
        raise ValueError(
            f"constraint type {made.id}: expected an id of its own, got that of"
            f" {'.'.join(known.origin)}; choose another one"
        )
    _TYPES[made.id] = made
    return kind


def _register_all(module: types.ModuleType) -> None:
    """Register the public classes that a module defines and has not registered itself."""
    # A copy: registering may import modules that add names to this one.
    for kind in list(vars(module).values()):
        if (
            isinstance(kind, type)
            and kind.__module__ == module.__name__
            and not kind.__name__.startswith("_")
            and all(hasattr(kind, name) for name in _NEEDED)
            and kind.id not in _TYPES  # pyright: ignore[reportAttributeAccessIssue]
        ):
            register(kind)


def load_plugin(path: str | Path) -> tuple[str, ...]:
    """Load a Python file and register the constraint types that it defines.

    A file is loaded once per process, however often it is asked for.

    Returns:
      The ids of its types.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be run, or defines no constraint type.
    """
    path = Path(path).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise FileNotFoundError(
            f"constraint plug-in: expected a Python file (.py), found none at {path}; correct"
            " config.data.plugins (or --plugin)"
        )
    # By the whole path, so that two files of one name are two modules.
    name = f"gapo_jax_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if path not in _FILES:
        loader = importlib.machinery.SourceFileLoader(name, str(path))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            loader.exec_module(module)
            _register_all(module)
        except Exception as error:
            # A half-run module must not be found by pickle or by a second attempt.
            del sys.modules[name]
            raise ValueError(
                f"constraint plug-in {path}: {type(error).__name__}: {error}; correct the file"
            ) from error
    ids = tuple(type_id for type_id, kind in _TYPES.items() if kind.origin[0] == name)
    if not ids:
        raise ValueError(
            f"constraint plug-in {path}: expected a class with {', '.join(_NEEDED)}, found none;"
            " correct the file"
        )
    _FILES[path] = name
    return ids


def _load_entry_points() -> None:
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True  # before loading: a plug-in may look a type up while it is imported
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            plugin = entry.load()
            if isinstance(plugin, types.ModuleType):
                _register_all(plugin)
            else:
                register(plugin)
        except Exception as error:  # an installed package must not break everything else
            log.warning(
                "entry point %s = %s of group %s is left out: %s: %s",
                entry.name, entry.value, ENTRY_POINTS, type(error).__name__, error,
            )  # fmt: skip


def registered() -> dict[str, PluginType]:
    """Return the plug-in types by id; the entry points are loaded at the first call."""
    _load_entry_points()
    return _TYPES


def for_workers() -> tuple[tuple[Path, ...], bytes]:
    """Return what another process needs to know the same types: arguments of `restore`.

    Raises:
      ValueError: a class cannot be imported by another process.
    """
    # Types of files are made known by their file; a module that was loaded by path cannot be
    # imported by name, so its classes cannot be pickled.
    own = [kind.own for kind in _TYPES.values() if kind.origin[0] not in _FILES.values()]
    for one in own:
        module = sys.modules.get(type(one).__module__)
        notebook = type(one).__module__ == "__main__" and not hasattr(module, "__file__")
        try:
            if notebook:
                raise pickle.PicklingError("it is defined in a notebook or an interactive session")
            pickle.dumps(one)
        except Exception as error:
            raise ValueError(
                f"constraint type {one.id} cannot be sent to the verifier processes ({error});"
                " define it at the top level of a file and name that in config.data.plugins, or"
                " set config.data.verify_workers=0"
            ) from error
    return tuple(_FILES), pickle.dumps(own)


def restore(files: Sequence[Path], own: bytes) -> None:
    """Register the types of another process in this one (`for_workers`)."""
    for path in files:
        load_plugin(path)
    for kind in pickle.loads(own):
        register(kind)
