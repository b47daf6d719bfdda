"""The base of all sections of a configuration, whose fields say what they accept.

    class DPOConfig(Section):
        variant: Literal["sigmoid", "ipo"] = "sigmoid"
        beta: Positive = 0.1

A subclass is a dataclass by itself. `check_fields` reads types, choices and ranges off the
annotations; what concerns several fields of one section is its `check`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, dataclass_transform

from gapo_jax.records import JsonObject


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field accepts, both ends included; what is no number is in no range."""

    low: float
    high: float = math.inf


AtLeast0 = Annotated[int, Range(0)]
AtLeast1 = Annotated[int, Range(1)]
AtLeast2 = Annotated[int, Range(2)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(1e-9)]
Share = Annotated[float, Range(0, 1)]


def nearest(name: object, names: Iterable[str]) -> str:
    """Return the end of an error message: the nearest valid name, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {names}"


@dataclass_transform()
@dataclasses.dataclass
class Section:
    """Refuses unknown fields at once, and any change once it is final."""

    _final = False

    def __init_subclass__(cls, options: Mapping[str, type[Section]] | None = None) -> None:
        """Make a dataclass of the subclass, with a field for every section among `options`."""
        for name, section in (options or {}).items():
            cls.__annotations__[name] = section
            setattr(cls, name, dataclasses.field(default_factory=section))
        dataclasses.dataclass(cls)
        for field in dataclasses.fields(cls):
            # The parsers of flags know plain types only, and no postponed annotations.
            field.type = _plain(declarations(cls)[field.name])

    def __setattr__(self, name: str, value: Any) -> None:
        if self._final:
            raise dataclasses.FrozenInstanceError(f"config is final: cannot set {name!r}")
        names = [field.name for field in dataclasses.fields(self)]
        if name not in names:
            raise AttributeError(
                f"{type(self).__name__} has no field {name!r}{nearest(name, names)}"
            )
        super().__setattr__(name, value)

    def check(self) -> None:
        """Raise ValueError where fields of this section contradict each other."""

    def freeze(self) -> None:
        """Refuse every change from now on, in the sections below too."""
        for _, section in sections(self):
            section.__dict__["_final"] = True


@functools.cache
def declarations(cls: type[Section]) -> JsonObject:
    """Return what the fields of a section are declared to accept, by name."""
    return typing.get_type_hints(cls, include_extras=True)


def _plain(declared: Any) -> Any:
    """Return the type of a declared field: without its range, and that of its choices."""
    if typing.get_origin(declared) is Literal:
        return type(typing.get_args(declared)[0])
    return declared.__origin__ if typing.get_origin(declared) is Annotated else declared


def sections(section: Section, path: str = "config") -> Iterator[tuple[str, Section]]:
    """Yield (dotted path, section) of a section and of all below it."""
    yield path, section
    for name, value in vars(section).items():
        if isinstance(value, Section):
            yield from sections(value, f"{path}.{name}")


def check_fields(section: Section, path: str) -> None:
    """Check every field of one section against its declaration.

    Raises:
        ValueError: names the field, what it holds and what would be accepted.
    """
    for field in dataclasses.fields(section):
        declared = declarations(type(section))[field.name]
        value, where = getattr(section, field.name), f"{path}.{field.name}"
        if typing.get_origin(declared) is Literal:
            choices = typing.get_args(declared)
            if value not in choices:
                raise ValueError(f"{where} cannot be {value!r}{nearest(value, choices)}")
            continue
        _check_type(value, field.type, where)
        for rule in getattr(declared, "__metadata__", ()):
            if isinstance(rule, Range) and not rule.low <= value <= rule.high:
                raise ValueError(f"{where} must lie in [{rule.low}, {rule.high}], got {value!r}")


def _check_type(value: Any, wanted: Any, where: str) -> None:
    kind = typing.get_origin(wanted) or wanted
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
        raise ValueError(
            f"{where} must be of type {getattr(wanted, '__name__', wanted)}, got {value!r} "
            f"({type(value).__name__})"
        )
    if kind is tuple:
        for item in value:
            _check_type(item, typing.get_args(wanted)[0], where)
