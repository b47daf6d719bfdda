"""The strict and the loose verdict on a response, for every built-in family of constraint types.

Strict looks at the response as it is, loose at eight variants of it (first line, last line or both
dropped, asterisks dropped), as the IFEval release defines them (arXiv 2311.07911, section 3). An
empty response follows no constraint.
"""

from __future__ import annotations

from collections.abc import Callable

from gapo_jax.constraints import ifbench_checks, ifeval_checks, iftrain_checks, product_checks
from gapo_jax.constraints.fields import FAMILY_FIELDS, Items, Kwargs, clean_kwargs
from gapo_jax.constraints.text import MAX_TEXT

Check = Callable[[str, Items, str], bool]
_CHECKS: dict[str, Check] = {
    "ifeval": ifeval_checks.follows,
    "iftrain": iftrain_checks.follows,
    "ifbench": ifbench_checks.follows,
    "product": product_checks.follows,
}
_CHECK_OF = {type_id: _CHECKS[name] for name, types in FAMILY_FIELDS.items() for type_id in types}


def as_items(kwargs: Kwargs | None) -> Items:
    """Return arguments as sorted pairs that can be hashed; lists become sorted tuples."""
    items = []
    for field, value in sorted((kwargs or {}).items()):
        # Sorted, so that rows that differ only in the order of their keywords share a checker.
        if isinstance(value, list | set | frozenset):
            value = tuple(sorted(value, key=str))
        items.append((field, value))
    return tuple(items)


def follows(type_id: str, kwargs: Kwargs | None, answer: str) -> bool:
    """Return the strict verdict on one answer for one instruction of a built-in type.

    Official for IFEval, IFTrain and IFBench types, this project's for product facts. Every string
    has a verdict; one of more than `MAX_TEXT` characters follows no constraint, which bounds the
    time of a check.

    Raises:
      ValueError: invalid arguments (`clean_kwargs`).
      KeyError: an unknown id (`registry.get` raises the error for users).
    """
    # Invalid arguments are an error for a text of any length.
    if len(answer) > MAX_TEXT:
        clean_kwargs(type_id, kwargs)
        return False
    try:
        return _CHECK_OF[type_id](type_id, as_items(kwargs), answer)
    except TypeError:  # a value that cannot be hashed is valid in no field: name the field
        clean_kwargs(type_id, kwargs)
        raise


def loose_variants(answer: str) -> list[str]:
    """Return the release's eight variants of an answer, the answer itself first."""
    from if_verifiable.common import get_loose_transformations

    return get_loose_transformations(answer)
