"""Read dialogues in the forms that people write them: messages, ShareGPT, JSON in a string, parts.

What cannot be read as text, a picture or a call of a tool, is an error that names it: left out in
silence, it would make another dialogue of the row.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "developer": "system",
}
# Fields of a message that make it something else than its text.
_CHANGES = (
    "tool_calls", "function_call", "images", "image", "audio", "video", "reasoning",
    "reasoning_content", "thinking", "refusal",
)  # fmt: skip
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant): ?")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of a row: its role, its text, and whether the loss is taken on it."""

    role: str
    text: str
    trained: bool


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


def as_dialogue(value: Any, name: str) -> list[Segment] | None:
    """Return the turns of a value that is a dialogue, None for one that is a plain text.

    Every assistant turn is trained on, unless it is empty or says itself that it is not.

    Args:
      value: a list of messages, the same as a string of JSON, or a transcript whose turns begin
        with "Human:" and "Assistant:" as in the HH data.
      name: of the field, for errors.

    Raises:
      ValueError: a message that cannot be read, by number.
    """
    if isinstance(value, str):
        messages = _messages_in(value)
        return _transcript(value) if messages is None else _turns(messages, name)
    if isinstance(value, list):
        return _turns(value, name)
    return None


def _messages_in(text: str) -> list[Any] | None:
    """Return the messages that a string of JSON spells, None where it is another text."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not value or not all(isinstance(item, dict) for item in value):
        return None
    return value if all({"role", "from"} & item.keys() for item in value) else None


def _transcript(text: str) -> list[Segment] | None:
    """Return the turns of a transcript that ends with an answer, None for another text."""
    parts = _TRANSCRIPT.split("\n\n" + text.lstrip())
    if parts[0] or len(parts) < 5 or parts[1] != "Human" or parts[-2] != "Assistant":
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        _segment(roles[name], said.strip())
        for name, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _segment(role: str, text: str, trained: bool = True) -> Segment:
    return Segment(role, text, trained and role == "assistant" and bool(text.strip()))


def _turns(value: list[Any], name: str) -> list[Segment]:
    if not value:
        raise ValueError(f"wanted a list of messages under {name!r}, got an empty one")
    return [_message(message, f"message {i} of {name!r}") for i, message in enumerate(value)]


def _message(message: Any, place: str) -> Segment:
    if not isinstance(message, Mapping):
        raise ValueError(f"{place}: wanted a role of {ROLES} and a text, got {message}")
    for field in _CHANGES:
        if message.get(field):
            raise ValueError(
                f"{place} has {field!r}, which is not read: leave the row out, or say it in the "
                "content"
            )
    shared = "role" not in message and "from" in message  # ShareGPT
    role, content = (
        message.get(key) for key in (("from", "value") if shared else ("role", "content"))
    )
    role = _OTHER_NAMES.get(str(role).lower(), role)
    text = _joined(content, place) if isinstance(content, list) else content
    if role not in ROLES or not isinstance(text, str):
        raise ValueError(f"{place}: wanted a role of {ROLES} and a text, got {message}")
    trained = message.get("weight") != 0 and message.get("train") is not False
    return _segment(str(role), encodable(text, place), trained)


def _joined(parts: list[Any], place: str) -> str:
    """Return the text of a content in parts."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind != "text" or not isinstance(text, str):
            raise ValueError(
                f"{place} has a part of type {kind!r}, which is not read: leave the row out"
            )
        texts.append(text)
    return "".join(texts)
