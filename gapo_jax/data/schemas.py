"""Six row schemas, recognised by their fields and brought into one form.

| schema | fields |
|---|---|
| preferential | `prompt_accepted`, `prompt_rejected`, `response` |
| ifeval | `prompt`, `instruction_id_list` (and `kwargs`), or `prompt`, `constraints` |
| messages | `messages`: list of `role`, `content` |
| chosen_rejected | `chosen`, `rejected` (texts or messages), `prompt` or none |
| prompt_label | `prompt`, a response, `label` (true or false) |
| prompt_completion | `prompt` (or `instruction`, `question`, `task`), a response |

A response stands under `completion`, `response`, `answer` or `output`. A row becomes segments,
texts with a mark whether they are trained on; `prompt_and_response` is what mining reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

SCHEMAS = (
    "preferential",
    "ifeval",
    "messages",
    "chosen_rejected",
    "prompt_label",
    "prompt_completion",
)
PROMPTS = ("prompt", "instruction", "question", "task")
RESPONSES = ("completion", "response", "answer", "output")
_ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of a row: its role, its text, and whether the loss is taken on it."""

    role: str
    text: str
    trained: bool


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def recognise(record: Mapping[str, Any]) -> str:
    """Return the schema of a row, the most telling fields first.

    Raises:
      ValueError: none fits; names the fields there are and those wanted.
    """
    has = {name for name, value in record.items() if value is not None}
    if {"prompt_accepted", "prompt_rejected", "response"} <= has:
        return "preferential"
    if "prompt" in has and has & {"instruction_id_list", "constraints"}:
        return "ifeval"
    if "messages" in has:
        return "messages"
    if {"chosen", "rejected"} <= has:
        return "chosen_rejected"
    if _first(record, PROMPTS) and _first(record, RESPONSES):
        return "prompt_label" if "label" in has else "prompt_completion"
    raise ValueError(
        f"no schema fits the fields {sorted(record)}: wanted those of one of {SCHEMAS}, such as "
        "prompt and completion, messages, or chosen and rejected; rename the columns"
    )


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"wanted a text under {name!r}, got {type(value).__name__}")
    return encodable(value, name)


def encodable(text: str, name: str) -> str:
    """Return the text.

    Raises:
      ValueError: it is not valid Unicode; names the field.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair: no table can store it
        raise ValueError(f"{name!r} is not valid Unicode: {error.reason}") from error
    return text


def _turns(value: Any, name: str) -> list[Segment]:
    """Read a list of messages; assistant turns are trained on."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"wanted a list of messages under {name!r}, got {type(value).__name__}")
    segments = []
    for index, message in enumerate(value):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if role not in _ROLES or not isinstance(content, str):
            raise ValueError(
                f"message {index} of {name!r}: wanted a role of {_ROLES} and a text, got {message}"
            )
        text = encodable(content, name)
        segments.append(Segment(role, text, role == "assistant"))
    return segments


def _side(record: Mapping[str, Any], name: str) -> list[Segment]:
    value = record[name]
    if isinstance(value, list):
        turns = _turns(value, name)
        last = max((i for i, turn in enumerate(turns) if turn.trained), default=None)
        # Preference losses compare the last answer; what stands before is context.
        return [dataclasses.replace(t, trained=i == last) for i, t in enumerate(turns)]
    return [Segment("assistant", _text(record, name), True)]


def segments(record: Mapping[str, Any], schema: str) -> list[list[Segment]]:
    """Return the sequences of a row: one, or two for chosen_rejected and preferential rows.

    Preferential rows have the accepted prompt first. IFEval rows without a response have nothing
    to train on: they are prompts to answer.

    Raises:
      ValueError: a field that does not hold what the schema says.
    """
    if schema == "messages":
        return [_turns(record["messages"], "messages")]
    if schema == "preferential":
        reply = Segment("assistant", _text(record, "response"), True)
        names = ("prompt_accepted", "prompt_rejected")
        return [[Segment("user", _text(record, name), False), reply] for name in names]
    name = _first(record, PROMPTS)
    value = record[name] if name else None
    if isinstance(value, list):
        turns = [dataclasses.replace(t, trained=False) for t in _turns(value, str(name))]
    else:
        turns = [Segment("user", _text(record, name), False)] if name else []
    if schema == "chosen_rejected":
        return [turns + _side(record, "chosen"), turns + _side(record, "rejected")]
    field = _first(record, RESPONSES)
    if schema == "ifeval":
        return [turns + (_side(record, field) if field else [])]
    if not turns or field is None:
        raise ValueError(f"wanted one of {PROMPTS} and one of {RESPONSES}, got {sorted(record)}")
    if schema == "prompt_label" and record["label"] not in (True, False):
        raise ValueError(f"wanted true or false under 'label', got {record['label']!r}")
    return [turns + _side(record, field)]


def separate_task(record: Mapping[str, Any]) -> str:
    """Return the task of an IFEval row without its constraints.

    Our own rows carry the task. In the released form it is the prompt up to the last n paragraphs,
    n the number of instructions, where there are more than n paragraphs.

    Raises:
      ValueError: the constraints cannot be told from the task; a task that is no valid text.
    """
    if record.get("task") is not None:
        return _text(record, "task")
    size = len(record.get("instruction_id_list") or record.get("constraints") or ())
    parts = [part for part in _text(record, "prompt").split("\n\n") if part.strip()]
    if size and len(parts) > size:
        return "\n\n".join(parts[:-size])
    raise ValueError(
        f"the task cannot be told from its {size} constraints: wanted them as the last {size} "
        f"paragraphs of more, got {len(parts)} paragraphs"
    )


def prompt_and_response(record: Mapping[str, Any], schema: str) -> tuple[str, str]:
    """Return (task, response) for mining; of two sequences the first one. Blanks around the task
    are dropped: with and without them it is one task.

    Of messages, the last assistant turn answers the user turn before it, provided that there is
    only one user turn: a later one does not stand for itself.

    Raises:
      ValueError: the row has no single task and response.
    """
    if schema == "ifeval":
        field = _first(record, RESPONSES)
        if field is None:
            raise ValueError(f"an IFEval row without a response: give it one of {RESPONSES}")
        return separate_task(record).strip(), _text(record, field)
    if schema == "preferential":
        return _text(record, "task").strip(), _text(record, "response")
    turns = segments(record, schema)[0]
    users = [turn.text for turn in turns if turn.role == "user"]
    answers = [turn.text for turn in turns if turn.trained]
    if len(users) != 1 or not answers:
        raise ValueError(f"wanted one user turn and an answer, got {len(users)} and {len(answers)}")
    return users[0].strip(), answers[-1]
