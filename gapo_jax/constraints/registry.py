"""The registry of constraint types and the verdicts on a response."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gapo_jax.constraints import (
    cases,
    edges,
    formats,
    ifbench_counts,
    ifbench_formats,
    ifbench_tasks,
    ifbench_words,
    keywords,
    lengths,
    official,
    product,
    wholes,
)
from gapo_jax.constraints.base import ConstraintType
from gapo_jax.constraints.ifbench_official import missing_data

_FAMILIES = {
    "ifeval": (keywords, lengths, formats, edges, cases, wholes),
    "ifbench": (ifbench_counts, ifbench_words, ifbench_formats, ifbench_tasks),
    "product": (product,),
}
FAMILIES = tuple(_FAMILIES)
_TYPES: dict[str, ConstraintType] = {
    kind.id: kind for modules in _FAMILIES.values() for module in modules for kind in module.TYPES
}
_SHORT = {kind.name: type_id for type_id, kind in _TYPES.items()}


def types(family: str = "ifeval") -> tuple[str, ...]:
    """Return the ids of a family of constraint types.

    Args:
      family: "ifeval" (the 25 types of the release), "ifbench" (58), "product" (2) or "all".

    Raises:
      ValueError: another family.
    """
    if family not in (*FAMILIES, "all"):
        raise ValueError(f"family of types: wanted one of {(*FAMILIES, 'all')}, got {family!r}")
    chosen = FAMILIES if family == "all" else (family,)
    return tuple(kind.id for name in chosen for module in _FAMILIES[name] for kind in module.TYPES)


def _unknown(name: str, known: Iterable[str]) -> ValueError:
    near = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else "constraints.types() lists the ids"
    return ValueError(
        f"constraint type: wanted one of {len(_TYPES)} known types, got {name!r}; {hint}"
    )


def get(type_id: str) -> ConstraintType:
    """Return the type of an instruction id such as "punctuation:no_comma", or "no_comma" for short.

    Raises:
      ValueError: no such id; names the nearest ones.
    """
    found = _TYPES.get(_SHORT.get(type_id, type_id))
    if found is None:
        raise _unknown(type_id, [*_TYPES, *_SHORT])
    return found


def resolve(names: Sequence[str]) -> tuple[str, ...]:
    """Return full ids for short names ("no_comma"), full ids or families, in order, each once.

    A family (as in `types`) stands for those of its types whose word lists are at hand.

    Raises:
      ValueError: a name that is none of these; names the nearest ones.
    """
    found = []
    for name in names:
        if name in (*FAMILIES, "all"):
            found += [type_id for type_id in types(name) if missing_data(type_id) is None]
            continue
        if name not in _TYPES and name not in _SHORT:
            raise _unknown(name, [*_SHORT, *_TYPES])
        found.append(_SHORT.get(name, name))
    return tuple(dict.fromkeys(found))


def conflict(one: str, other: str) -> bool:
    """Return whether two types, given by their full ids, must not stand in one prompt.

    Either may know of the other: the release's table does not name the types of IFBench.
    """
    return other in get(one).conflicts or one in get(other).conflicts


def _verdicts(follows, response, instruction_id_list, kwargs_list) -> list[bool]:
    if not isinstance(response, str):
        raise ValueError(f"response: wanted a str, got {type(response).__name__}")
    if len(instruction_id_list) != len(kwargs_list):
        raise ValueError(
            f"wanted one kwargs entry per instruction, got {len(instruction_id_list)} ids"
            f" and {len(kwargs_list)} kwargs; correct this row"
        )
    return [
        follows(get(type_id).id, kwargs, response)
        for type_id, kwargs in zip(instruction_id_list, kwargs_list, strict=True)
    ]


def check(
    response: str,
    instruction_id_list: Sequence[str],
    kwargs_list: Sequence[Mapping[str, Any] | None],
    prompt: str | None = None,
) -> list[bool]:
    """Return the strict verdict for each instruction, official for IFEval and IFBench.

    Args:
      response: the text to judge; any string, an empty one follows nothing.
      instruction_id_list, kwargs_list: as in an IFEval row, short names too; kwargs that are null
        are dropped.
      prompt: accepted for other benchmarks' sake; no type here reads it.

    Returns:
      One bool per instruction.

    Raises:
      ValueError: unknown id, kwargs that do not fit, or lists of unequal length.
    """
    return _verdicts(official.follows, response, instruction_id_list, kwargs_list)


def check_loose(
    response: str,
    instruction_id_list: Sequence[str],
    kwargs_list: Sequence[Mapping[str, Any] | None],
    prompt: str | None = None,
) -> list[bool]:
    """Return the loose verdict for each instruction, official for IFEval and IFBench.

    True where some of the release's eight variants of the response (first line, last line or both
    dropped; asterisks dropped) follows strictly. Arguments and errors as in `check`.
    """
    return _verdicts(official.follows_loose, response, instruction_id_list, kwargs_list)
