"""Constraints read back out of a prompt, by the phrasings of the constraint types.

What is recognised is exact: a sentence counts when the type that it was matched with, given the
arguments that were read out of it, describes itself in the same words. A request in other words is
not seen.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterator
from typing import Any

from gapo_jax.constraints import TrainableType, get, types
from gapo_jax.constraints.fields import FIELDS, LANGUAGE_CODES
from gapo_jax.constraints.rows import instance
from gapo_jax.records import Constraint, Json, JsonObject

_TIMES = {"once": "1", "twice": "2"}  # how counts are also written
_QUOTED = re.compile(r'"([^"\n]*)"')
_LANGUAGES = {name.lower(): code for code, name in LANGUAGE_CODES.items()}


def recognise(prompt: str) -> tuple[Constraint, ...]:
    """Return the constraints that a prompt states in one of our phrasings, in its order.

    Where two overlap, as "include" lies in "do not include", the longer one counts.
    """
    matches = []
    for pattern, kind, style, relation in _patterns():
        match = pattern.search(prompt)
        while match is not None:
            kwargs = _arguments(kind, relation, match)
            if kwargs is not None and _says(kind, kwargs, style, match[0]):
                matches.append((match.start(), match.end(), instance(kind.id, kwargs)))
            # From the next letter on: the first words of a phrasing may stand before it, too.
            match = pattern.search(prompt, match.start() + 1)
    matches.sort(key=lambda span: (span[0] - span[1], span[0]))
    kept: list[tuple[int, int, Constraint]] = []
    for start, end, constraint in matches:
        if all(end <= other[0] or start >= other[1] for other in kept):
            kept.append((start, end, constraint))
    return tuple(constraint for _, _, constraint in sorted(kept, key=lambda span: span[0]))


def _plain(text: str) -> str:
    """Return a sentence without what may differ: case, spacing, the full stop."""
    return " ".join(text.lower().split()).rstrip(".")


def _says(kind: TrainableType, kwargs: Json, style: int, text: str) -> bool:
    try:
        described = kind.describe(Constraint(kind.id, kwargs), style)
    except (KeyError, ValueError):  # arguments that the type does not have
        return False
    return _plain(described) == _plain(text)


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], TrainableType, int, str | None], ...]:
    """Return (pattern, type, style, relation) of every phrasing, of plug-ins too."""
    return tuple(
        (_pattern(kind, phrasing), kind, style, relation)
        for type_id in (*types("ifeval"), *types("plugins"))
        if isinstance(kind := get(type_id), TrainableType)
        for style, phrasings in enumerate(kind.train + kind.heldout)
        for relation, phrasing in (
            [(None, phrasings)] if isinstance(phrasings, str) else phrasings.items()
        )
    )


def _pattern(kind: TrainableType, phrasing: str) -> re.Pattern[str]:
    """Return the expression that matches a phrasing, with a group for each of its fields."""
    parts, seen = [], set()
    for literal, field, _, _ in string.Formatter().parse(phrasing.rstrip(".")):
        parts.append(r"\s+".join(map(re.escape, re.split(r"\s+", literal))))
        if field is None:
            continue
        if field in seen:
            parts.append(f"(?P={field})")
            continue
        seen.add(field)
        own = FIELDS.get(kind.id, {}).get(field)
        form = r"\d+" if own == "count" else r"[^\n]+?"
        parts.append(f"(?P<{field}>{form})")
    end = ""
    if phrasing.endswith("}."):  # the field reaches to the end of the sentence
        end = r"(?=[.!?](?:\s|$)|\n|$)"
    elif phrasing.endswith("}"):  # or has a full stop of its own, as "P.S."
        end = r"(?=\s|$)"
    return re.compile(r"(?<!\w)" + "".join(parts) + end, re.IGNORECASE)


def _arguments(
    kind: TrainableType, relation: str | None, match: re.Match[str]
) -> JsonObject | None:
    """Return the arguments that the fields of a match stand for, or None where one is missing."""
    fields = match.groupdict()
    derived = " ".join(text for name, text in fields.items() if name not in FIELDS[kind.id])
    numbers: Iterator[str] = iter(
        re.findall(r"\d+", re.sub(r"\b(once|twice)\b", lambda m: _TIMES[m[0].lower()], derived))
    )
    kwargs: dict[str, Any] = {}
    for name, what in FIELDS[kind.id].items():
        if what == "relation":
            value: Any = relation
        elif what == "count":
            text = fields.get(name) or next(numbers, None)
            value = int(text) if text else None
        elif what == "words":
            value = _QUOTED.findall(derived) or None
        elif what == "language":
            value = _LANGUAGES.get(derived.strip().lower())
        else:
            value = fields.get(name)
        if value is None:
            return None
        kwargs[name] = value
    return kwargs
