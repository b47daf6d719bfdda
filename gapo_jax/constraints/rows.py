"""The constraints of a row, in the forms in which public data sets carry them.

| columns | form |
|---|---|
| `constraints` | our own: a list of {"id", "kwargs"} |
| `instruction_id_list`, `kwargs` | IFEval, IFBench; kwargs as dictionaries, texts, or one text |
| `ground_truth` | the RLVR sets of AI2: a text with `instruction_id` and `kwargs` |

A cell that is a text holds JSON or a Python literal. The prompt is a text, or a list of messages
with one user turn, under `prompt` or `messages`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gapo_jax.constraints.fields import FIELDS, clean_kwargs
from gapo_jax.constraints.ifbench_checks import require
from gapo_jax.constraints.registry import get
from gapo_jax.records import Constraint, Json

COLUMNS = ("constraints", "instruction_id_list", "ground_truth")


def _value(cell: object, column: str) -> Any:
    """Return a cell, read as JSON or as a Python literal where it is a text."""
    if not isinstance(cell, str):
        return cell
    # JSON first: `null` and `true` are no Python, and a literal of Python is rarely JSON.
    # `literal_eval` runs no code.
    for read in (json.loads, ast.literal_eval):
        try:
            return read(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(f"{column}: expected JSON or a Python literal in the text, got {cell!r:.80}")


def instance(type_id: object, kwargs: object) -> Constraint:
    """Return a constraint with its full id and valid arguments.

    Raises:
      ValueError: an unknown id, invalid arguments, or missing data that its check needs.
    """
    if not isinstance(type_id, str):
        raise ValueError(f"expected an instruction id, got {type_id!r:.80}")
    kwargs = _value(kwargs, f"kwargs of {type_id}")
    if not isinstance(kwargs, Mapping | None):
        raise ValueError(f"kwargs of {type_id}: expected a dictionary, got {kwargs!r:.80}")
    full = get(type_id).id
    # Now and not at the first verdict: a row that cannot be verified is left out with its reason,
    # instead of ending an evaluation after hours.
    require(full)
    if full in FIELDS:
        return Constraint(full, clean_kwargs(full, kwargs))
    return Constraint(full, {k: v for k, v in (kwargs or {}).items() if v is not None})


def _listed(ids: object, kwargs: object, column: str) -> list[Constraint]:
    ids, kwargs = _value(ids, column), _value(kwargs, "kwargs")
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise ValueError(f"{column}: expected a list of instruction ids, got {ids!r:.80}")
    # A row whose types have no arguments may lack the column.
    if not kwargs:
        kwargs = [None] * len(ids)
    if not isinstance(kwargs, Sequence) or isinstance(kwargs, str) or len(kwargs) != len(ids):
        raise ValueError(
            f"kwargs: expected a list of {len(ids)} dictionaries, one per instruction, got"
            f" {kwargs!r:.80}"
        )
    return [instance(type_id, item) for type_id, item in zip(ids, kwargs, strict=True)]


def _ground_truth(cell: object) -> list[Constraint]:
    entries = _value(cell, "ground_truth")
    constraints: list[Constraint] = []
    for entry in entries if isinstance(entries, list | tuple) else [entries]:
        if not isinstance(entry, Mapping) or "instruction_id" not in entry:
            # The first RLVR set of AI2 names functions, not instruction ids.
            name = entry.get("func_name") if isinstance(entry, Mapping) else None
            what = f"the function name {name!r}" if name else f"{entry!r:.80}"
            raise ValueError(
                f"ground_truth: expected instruction_id and kwargs, got {what}, which no verifier"
                " here belongs to; use a set whose ground_truth holds instruction ids"
            )
        # One id as a text, or several as a list: both occur.
        ids = entry["instruction_id"]
        constraints += _listed(
            [ids] if isinstance(ids, str) else ids, entry.get("kwargs"), "ground_truth"
        )
    return constraints


def constraints_of(record: Json) -> tuple[Constraint, ...]:
    """Return the constraints of a row; their ids are full and their arguments valid.

    Raises:
      ValueError: the row has none of the three forms, an unknown id, or invalid arguments.
    """
    # Tables that join rows of several sets have all columns, with nulls where a row has none.
    column = next((name for name in COLUMNS if record.get(name) is not None), None)
    if column is None:
        raise ValueError(
            f"expected one of the columns {COLUMNS}, which say what to verify, got {sorted(record)}"
        )
    if column == "instruction_id_list":
        return tuple(_listed(record[column], record.get("kwargs"), column))
    if column == "ground_truth":
        return tuple(_ground_truth(record[column]))
    items = _value(record[column], column)
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise ValueError(f"constraints: expected a list, got {items!r:.80}")
    constraints = []
    for item in items:
        if not isinstance(item, Mapping) or "id" not in item:
            raise ValueError(f"constraints: expected objects with id and kwargs, got {item!r:.80}")
        checked = instance(item["id"], item.get("kwargs"))
        # Our own rows are read back as they were written.
        constraints.append(Constraint(checked.id, dict(item.get("kwargs") or {})))
    return tuple(constraints)


def message_text(content: object) -> str:
    """Return the text of a message: its content, or its text parts joined.

    Raises:
      ValueError: there is no text, or a part of another kind; names it.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValueError(f"message: expected a text as content, got {content!r:.80}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"message: expected parts of type 'text', got {kind or part!r:.80}")
        texts.append(part["text"])
    return "".join(texts)


def prompt_text(record: Json) -> str:
    """Return the prompt of a row as one text.

    Raises:
      ValueError: there is none, or the messages are not one user turn.
    """
    value = record.get("prompt")
    if value is None:
        value = record.get("messages")
        value = _value(value, "messages")
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) for turn in value):
        raise ValueError(
            f"expected a text or messages under 'prompt' or 'messages', got {value!r:.80} in a row"
            f" with the columns {sorted(record)}"
        )
    # A dialogue flattened into one text would be another prompt than the one that was asked.
    roles = [turn.get("role") for turn in value]
    if roles != ["user"]:
        raise ValueError(f"messages: expected one user turn, got the roles {roles}")
    return message_text(value[0].get("content"))
