"""All constraint types by id, and the verdicts on a response."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from gapo_jax.constraints import (
    ifbench,
    ifeval_edges,
    ifeval_formats,
    ifeval_keywords,
    ifeval_lengths,
    ifeval_whole_text,
    iftrain_counts,
    iftrain_layout,
    iftrain_words,
    plugins,
    product,
)
from gapo_jax.constraints.base import ConstraintType, TrainableType, shuffled
from gapo_jax.constraints.fields import Kwargs
from gapo_jax.constraints.text import final_answer
from gapo_jax.constraints.verdicts import loose_variants
from gapo_jax.records import Constraint

_IFEVAL = (ifeval_keywords, ifeval_lengths, ifeval_formats, ifeval_edges, ifeval_whole_text)
_IFTRAIN = (iftrain_words, iftrain_counts, iftrain_layout)
_BUILT_IN: dict[str, dict[str, ConstraintType]] = {
    "ifeval": {kind.id: kind for module in _IFEVAL for kind in module.TYPES},
    "iftrain": {kind.id: kind for module in _IFTRAIN for kind in module.TYPES},
    "ifbench": {kind.id: kind for kind in ifbench.TYPES},
    "product": {kind.id: kind for kind in product.TYPES},
}
_TYPES = {type_id: kind for family in _BUILT_IN.values() for type_id, kind in family.items()}
_SHORT = {
    kind.name: [other.id for other in _TYPES.values() if other.name == kind.name]
    for kind in _TYPES.values()
}
FAMILIES = (*_BUILT_IN, "plugins")
# Families that stay out of training, so that a score on them measures generalisation.
_HELD_OUT = ("ifbench",)


def types(family: str = "ifeval") -> tuple[str, ...]:
    """Return the ids of a family of constraint types.

    Args:
      family: "ifeval" (the 25 types of the release), "iftrain" (the 29 training types of IF-RLVR),
        "ifbench" (58), "product" (2), "plugins" (all that are registered) or "all".

    Raises:
      ValueError: another family.
    """
    if family not in (*FAMILIES, "all"):
        raise ValueError(f"family of types: expected one of {(*FAMILIES, 'all')}, got {family!r}")
    chosen = FAMILIES if family == "all" else (family,)
    ids: list[str] = []
    for name in chosen:
        ids += plugins.registered() if name == "plugins" else _BUILT_IN[name]
    return tuple(ids)


def get(type_id: str) -> ConstraintType:
    """Return the type of an instruction id such as "punctuation:no_comma", or "no_comma" for short.

    Raises:
      ValueError: no such id; names the nearest ones.
    """
    # Without looking for plug-ins: built-in ids are most, and entry points take time to find.
    if type_id in _TYPES:
        return _TYPES[type_id]
    more = plugins.registered()
    # Built-in types come before plug-ins of the same short name.
    short = {kind.name: [name] for name, kind in more.items()} | _SHORT
    fitting = [type_id] if type_id in more else short.get(type_id, [type_id])
    # Either of two types would be right for half of the users, who would not learn of it.
    if len(fitting) > 1:
        raise ValueError(
            f"constraint type: expected one type, got {type_id!r}, which is short for"
            f" {' and '.join(fitting)}; write the full id"
        )
    full = fitting[0]
    kind = more.get(full) or _TYPES.get(full)
    if kind is not None:
        return kind
    names = {name: [name] for name in (*_TYPES, *more)} | short
    near = difflib.get_close_matches(str(type_id), list(names), n=3, cutoff=0.4)
    ids = ", ".join(dict.fromkeys(full for name in near for full in names[name]))
    hint = f"nearest: {ids}" if near else "constraints.types('all') lists the ids"
    raise ValueError(
        f"constraint type: expected one of {len(_TYPES) + len(more)} known types, got"
        f" {type_id!r}; {hint}"
    )


def resolve(names: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of types to train on, in order, each once.

    Args:
      names: short names ("no_comma"), full ids, or families (as in `types`; "all" stands for every
        family that may be trained on).

    Raises:
      ValueError: an unknown name, with the nearest ones; or types of IFBench, which measures
        constraints that training has not seen.
    """
    ids: list[str] = []
    for name in names:
        if name == "all":
            ids += [i for family in FAMILIES if family not in _HELD_OUT for i in types(family)]
        else:
            ids += types(name) if name in FAMILIES else [get(name).id]
    # All of them at once: who named a family by mistake learns it from one message.
    held_out = sorted({i for family in _HELD_OUT for i in types(family)} & set(ids))
    if held_out:
        more = f" and {len(held_out) - 5} more" if len(held_out) > 5 else ""
        raise ValueError(
            f"constraint types to train on: got {', '.join(held_out[:5])}{more} of IFBench, a test"
            " of constraints that training has not seen (arXiv 2507.02833). Take them out of"
            " config.data.types (or --types), and measure them after training:"
            " `python scripts/evaluate.py --prompts IFBENCH_ROWS --model DIR --out DIR`"
        )
    return tuple(dict.fromkeys(ids))


def trainable(type_id: str) -> TrainableType:
    """Return a type that training prompts can be made with: it has `sample` and `modify`.

    Raises:
      ValueError: no such id, or a type that can only be verified.
    """
    kind = get(type_id)
    if not kind.can_sample:
        raise ValueError(
            f"constraint type {kind.id} has no `sample` and `modify`, so no prompt can be made with"
            " it: take it out of config.data.types (or --types); for a plug-in, add both (see"
            " gapo_jax/constraints/plugins.py) or name rows that ask for it in config.data.source"
        )
    return cast(TrainableType, kind)


def conflict(one: str, other: str) -> bool:
    """Return whether two types, given by their full ids, must not occur in one prompt.

    One of them may know of the other alone: the release's table names no plug-in.
    """
    return other in get(one).conflicts or one in get(other).conflicts


def modify(
    constraint: Constraint,
    response: str,
    rng: np.random.Generator,
    words: Sequence[str] = (),
    *,
    task: str | None = None,
    types: Sequence[str] | None = None,
) -> Constraint | None:
    """Change a constraint into one that the response violates: f_modify of GAPO, section 3.2.

    A type with arguments gives a near miss of its own; a type without arguments gives way to an
    instance of a related type (`siblings`, limited to `types` where given).

    Returns:
      A violated constraint that differs from the given one, or None.
    """
    kind = trainable(constraint.id)
    other = kind.modify(constraint, response, rng, words, task=task)
    if other is not None or kind.has_arguments:
        return other
    # Random order: the first sibling would be the rejected side of nearly each pair.
    for sibling in shuffled(rng, kind.siblings):
        if types is None or sibling in types:
            other = trainable(sibling).sample(
                rng, response=response, satisfied=False, words=words, task=task
            )
            if other is not None:
                return other
    return None


def _instances(
    response: object, ids: Sequence[str], kwargs_list: Sequence[Kwargs | None]
) -> list[tuple[ConstraintType, Constraint]]:
    if not isinstance(response, str):
        raise ValueError(f"response: expected a str, got {type(response).__name__}")
    if len(ids) != len(kwargs_list):
        raise ValueError(
            f"expected one kwargs entry per instruction, got {len(ids)} ids and"
            f" {len(kwargs_list)} kwargs; correct this row"
        )
    pairs = []
    for type_id, kwargs in zip(ids, kwargs_list, strict=True):
        # A text here is a row that was not parsed; its error would come from deep inside a checker.
        if not isinstance(kwargs, Mapping | None):
            raise ValueError(
                f"kwargs of {type_id}: expected a dictionary or None, got {kwargs!r:.200}; correct"
                " this row"
            )
        kind = get(type_id)
        pairs.append((kind, Constraint(kind.id, kwargs or {})))
    return pairs


def check(
    response: str,
    instruction_id_list: Sequence[str],
    kwargs_list: Sequence[Kwargs | None],
    prompt: str | None = None,
) -> list[bool]:
    """Return the strict verdict for each instruction, official for IFEval and IFBench.

    Args:
      response: any string. Its thinking is left out (`text.final_answer`); an empty answer follows
        no instruction.
      instruction_id_list, kwargs_list: as in an IFEval row; short names too, and nulls in kwargs
        are dropped.
      prompt: passed on to plug-in types; no built-in type reads it.

    Returns:
      One bool per instruction.

    Raises:
      ValueError: unknown id, invalid arguments, or lists of unequal length.
    """
    instances = _instances(response, instruction_id_list, kwargs_list)
    # Once for all instructions, which may be many and the thinking long.
    answer = final_answer(response)
    return [kind.check(constraint, answer, prompt or "") for kind, constraint in instances]


def check_loose(
    response: str,
    instruction_id_list: Sequence[str],
    kwargs_list: Sequence[Kwargs | None],
    prompt: str | None = None,
) -> list[bool]:
    """Return the loose verdict for each instruction, official for IFEval and IFBench.

    True where one of the release's eight variants of the answer (first line, last line or both
    dropped; asterisks dropped) follows strictly. Arguments and errors as in `check`.
    """
    instances = _instances(response, instruction_id_list, kwargs_list)
    variants = dict.fromkeys(loose_variants(final_answer(response)))  # each text once
    return [
        any(kind.check(constraint, variant, prompt or "") for variant in variants)
        for kind, constraint in instances
    ]
