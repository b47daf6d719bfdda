"""Recognise seven row schemas and bring them into one form.

| schema | fields |
|---|---|
| preferential | `prompt_accepted`, `prompt_rejected`, `response` |
| chosen_rejected | `chosen`, `rejected` (texts or dialogues), `prompt` or none |
| ifeval | a prompt, and constraints in any form of `constraints/rows.py` |
| messages | `messages` or `conversations`: a dialogue |
| prompt_label | a dialogue, or `prompt` and a response, and `label` (true or false) |
| scored | a prompt, several responses (a list under a name of `SEVERAL`), a score for each |
| prompt_completion | `prompt` (or another name of `PROMPTS`), a response |

A response is in a field of `RESPONSES`, a dialogue in any form that `turns.py` reads. `input` and
`context` are added to the prompt; `system` and `history` come before it. A row becomes segments:
texts, each marked as trained or not. Mining reads `prompt_and_response`.

A field that changes the meaning of a row is never dropped silently: it is used, or the row is
refused with the field's name. `unused` lists the fields whose meaning is not known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from gapo_jax.constraints.rows import constraints_of, prompt_text
from gapo_jax.data.turns import ROLES, as_dialogue, encodable
from gapo_jax.data.turns import Segment as Segment
from gapo_jax.records import Json

SCHEMAS = (
    "preferential",
    "ifeval",
    "messages",
    "chosen_rejected",
    "prompt_label",
    "scored",
    "prompt_completion",
)
PROMPTS = ("prompt", "instruction", "question", "task", "query", "input")
RESPONSES = ("completion", "response", "answer", "output")
SEVERAL = ("responses", "completions", "answers", "outputs")
DIALOGUES = ("messages", "conversations", "conversation")
_SCORES = ("scores", "rewards", "ratings")
# Of a response that is an object: its text, and its score.
_TEXT = ("text", "response", "content", "completion", "answer", "output")
_SCORE = ("score", "reward", "rating", "overall_score")
_SYSTEM = ("system", "system_prompt")
_ASIDES = ("input", "context")  # what a prompt is about
_ASKED = ("instruction", "question", "query")  # a second thing that is asked
_MEDIA = ("image", "images", "video", "videos", "audio", "audios", "pixel_values")
_TOOLS = ("tools", "functions", "tool_calls", "function_call")
_USED = {
    "preferential": {
        "task", "response", "accepted", "rejected", "prompt_accepted", "prompt_rejected", "edit",
        "type",
    },
    "ifeval": {
        "prompt", "task", "instruction_id_list", "kwargs", "constraints", "ground_truth",
        *DIALOGUES,
    },
    "messages": set(),
    "chosen_rejected": {"chosen", "rejected", "task", "constraints", *DIALOGUES},
    "prompt_label": {"label"},
    "scored": {*_SCORES},
    "prompt_completion": set(),
}  # fmt: skip
# They tell where a row comes from or how it was rated, and change nothing of what it says.
_HARMLESS = {
    "id", "ids", "idx", "index", "uuid", "key", "hash", "source", "sources", "dataset", "origin",
    "url", "lang", "language", "category", "categories", "topic", "topics", "subset", "split",
    "model", "models", "generator", "score", "scores", "rating", "ratings", "margin", "quality",
    "tokens", "length", "turns", "timestamp", "date", "license", "tags", "difficulty", "version",
}  # fmt: skip
_HARMLESS_ENDS = ("_id", "_ids", "_score", "_rating", "_source", "_model", "_tokens", "_hash")
_HARMLESS_STARTS = ("score_", "scores_", "rating_", "num_", "id_", "__index_level_")


def _has(record: Json, name: str) -> bool:
    value = record.get(name)
    return value is not None and not (isinstance(value, str | list | dict | tuple) and not value)


def _first(record: Json, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def recognise(record: Json) -> str:
    """Return the schema of a row, the most telling fields first.

    Raises:
      ValueError: none fits; names the fields there are and those wanted.
    """
    has = {name for name, value in record.items() if value is not None}
    if {"prompt_accepted", "prompt_rejected", "response"} <= has:
        return "preferential"
    if {"chosen", "rejected"} <= has:
        return "chosen_rejected"
    if has & {"prompt", *DIALOGUES} and has & {"instruction_id_list", "constraints"}:
        return "ifeval"
    # The RLVR sets of AI2; other sets have an answer there.
    if has & {"prompt", *DIALOGUES} and "instruction_id" in str(record.get("ground_truth")):
        return "ifeval"
    prompt = _first(record, PROMPTS)
    if prompt and _several(record):
        return "scored"
    if has & set(DIALOGUES):
        return "prompt_label" if "label" in has else "messages"
    if prompt and _first(record, RESPONSES):
        return "prompt_label" if "label" in has else "prompt_completion"
    raise ValueError(
        f"no schema fits the fields {sorted(record)}: wanted those of one of {SCHEMAS}, such as "
        "prompt and completion, messages, or chosen and rejected; rename the columns"
    )


def _several(record: Json) -> str | None:
    """Return the field of a row's responses, if they are several with a score for each."""
    for name in SEVERAL:
        items = record.get(name)
        if not isinstance(items, list) or not items:
            continue
        if _first(record, _SCORES) or all(
            isinstance(item, Mapping) and _first(item, _SCORE) for item in items
        ):
            return name
    return None


def scores(record: Json, schema: str) -> list[float] | None:
    """Return the scores of the sequences of `segments`, the first one first; None if a row of this
    schema has none.

    Raises:
      ValueError: they are no finite numbers, or not as many as there are responses.
    """
    if schema == "chosen_rejected":
        names = [f"score_{side}" for side in ("chosen", "rejected")]
        if any(record.get(name) is None for name in names):
            return None
        return [_number(record[name], name) for name in names]
    return sorted(_scored(record)[1], reverse=True) if schema == "scored" else None


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"wanted a finite number under {name!r}, got {value!r}")
    return number


def _scored(record: Json) -> tuple[list[Any], list[float]]:
    """Return the responses of a row and their scores, in its own order."""
    name = _several(record)
    assert name is not None
    items = record[name]
    field = _first(record, _SCORES)
    given = record[field] if field else [item[_first(item, _SCORE)] for item in items]
    if not isinstance(given, list) or len(given) != len(items):
        raise ValueError(f"wanted a list of {len(items)} scores under {field!r}, got {given!r:.80}")
    numbers = [_number(value, field or "score") for value in given]
    responses = [
        item.get(_first(item, _TEXT) or "", item)
        if isinstance(item, Mapping) and "role" not in item
        else item
        for item in items
    ]
    return responses, numbers


def unused(record: Json, schema: str) -> list[str]:
    """Return the fields of a row that are neither used nor known to be harmless."""
    used = _USED[schema] | _HARMLESS | set(_SYSTEM) | {"history"}
    dialogue = _first(record, DIALOGUES) if schema in ("messages", "prompt_label") else None
    if schema != "preferential":
        # A prompt beside a dialogue has been compared with it.
        used |= {"prompt", *_ASIDES, *_ASKED} | {dialogue, _first(record, PROMPTS)}
    if schema == "scored":
        used.add(_several(record))
    elif schema != "chosen_rejected" and (dialogue is None or _asks(record, dialogue)):
        used.add(_first(record, RESPONSES))
    return [
        name
        for name in record
        if _has(record, name)
        and name not in used
        and not name.endswith(_HARMLESS_ENDS)
        and not name.startswith(_HARMLESS_STARTS)
    ]


def unused_text(names: Iterable[str]) -> str:
    """Return a sentence that names fields of `unused`."""
    return f"columns neither used nor known to be harmless: {', '.join(sorted(set(names)))}"


def _refuse_what_is_not_read(record: Json, schema: str) -> None:
    """Raise ValueError if a field makes the row more than its texts."""
    names = (*_MEDIA, *_TOOLS)
    for name in names if schema == "prompt_label" else (*names, "label"):
        if _has(record, name):
            raise ValueError(
                f"the row has {name!r}, which changes what it says and is not read in {schema} "
                "rows: leave the row out, or remove the column where it says nothing"
            )


def _text(record: Json, name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"wanted a text under {name!r}, got {type(value).__name__}")
    return encodable(value, name)


def _as_context(turns: list[Segment]) -> list[Segment]:
    return [dataclasses.replace(turn, trained=False) for turn in turns]


def _side(record: Json, name: str) -> list[Segment]:
    """Read an answer, or a dialogue that ends with one; the turns before it are context."""
    turns = as_dialogue(record[name], name)
    if turns is None:
        text = _text(record, name)
        return [Segment("assistant", text, bool(text.strip()))]
    if turns[-1].role != "assistant":
        raise ValueError(f"{name!r} ends with a turn of the {turns[-1].role}, not with an answer")
    return [*_as_context(turns[:-1]), turns[-1]]


def _prompt(record: Json) -> list[Segment]:
    """Read the prompt from all fields that are part of it; [] if there is none."""
    name = _first(record, PROMPTS)
    if name is None:
        return []
    turns = as_dialogue(record[name], name)
    if turns is not None:
        return _as_context(turns)
    text = _text(record, name)
    for other in _ASKED:
        if other != name and _has(record, other) and str(record[other]) not in text:
            raise ValueError(
                f"both {name!r} and {other!r} ask something: join them, or remove one column"
            )
    for aside in _ASIDES:
        if aside != name and _has(record, aside) and _text(record, aside).strip() not in text:
            text = f"{text}\n\n{_text(record, aside)}"
    return [Segment("user", text, False)]


def _history(record: Json) -> list[Segment]:
    """Read earlier turns from a list of (question, answer)."""
    if not _has(record, "history"):
        return []
    pairs = record["history"]
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise ValueError("wanted a list of [question, answer] under 'history'")
    roles = ("user", "assistant")
    return [Segment(roles[i], pair[i], False) for pair in pairs for i in (0, 1)]


def _framed(record: Json, turns: list[Segment]) -> list[Segment]:
    """Put the system text and the history of the row before its turns."""
    systems = [turn.text for turn in turns if turn.role == "system"]
    head = []
    for name in _SYSTEM:
        if _has(record, name) and _text(record, name) not in systems:
            if systems or head:
                raise ValueError(f"{name!r} is another system text than that of the dialogue")
            head.append(Segment("system", _text(record, name), False))
    return [*head, *_history(record), *turns]


def _joined(prompt: list[Segment], side: list[Segment]) -> list[Segment]:
    """Join a prompt with an answer, or with a whole dialogue, which repeats the prompt."""
    context, answer = side[:-1], side[-1:]
    said, asked = ([(t.role, t.text.strip()) for t in turns] for turns in (context, prompt))
    if said[: len(asked)] == asked or not asked:
        return side
    without_system = [turn for turn in said if turn[0] != "system"]
    if without_system[: len(asked)] == asked or asked[-1] in said:
        return side
    if context:
        raise ValueError("the prompt is not among the turns of the answer's dialogue: remove one")
    return [*prompt, *answer]


def _asks(record: Json, name: str) -> bool:
    """Return whether a dialogue ends with a question, so that its answer is in another field."""
    return (as_dialogue(record[name], name) or [Segment("", "", False)])[-1].role == "user"


def _from_dialogue(record: Json, name: str) -> list[Segment]:
    turns = as_dialogue(record[name], name)
    if turns is None:
        raise ValueError(
            f"wanted a list of messages under {name!r}, got {type(record[name]).__name__}"
        )
    prompt = record.get("prompt")
    if isinstance(prompt, str) and prompt.strip() not in (turn.text.strip() for turn in turns):
        raise ValueError(f"'prompt' is none of the turns of {name!r}: remove one of the columns")
    field = _first(record, RESPONSES)
    if field and _asks(record, name):
        return [*_as_context(turns), *_side(record, field)]
    return turns


def segments(record: Json, schema: str) -> list[list[Segment]]:
    """Return the sequences of a row: one, or two for chosen_rejected and preferential rows, or one
    for each response of a scored row.

    Preferential rows have the accepted prompt first, scored rows the highest score. IFEval rows
    without a response have nothing to train on: they are prompts to answer. An empty answer is
    never trained on.

    Raises:
      ValueError: a field has the wrong content, or changes the row in a way that is not supported.
    """
    _refuse_what_is_not_read(record, schema)
    if schema == "preferential":
        reply = Segment("assistant", _text(record, "response"), True)
        names = ("prompt_accepted", "prompt_rejected")
        return [[Segment("user", _text(record, name), False), reply] for name in names]
    if schema == "chosen_rejected":
        prompt = _prompt(record)
        sides = [_joined(prompt, _side(record, name)) for name in ("chosen", "rejected")]
        return [_framed(record, side) for side in sides]
    if schema == "scored":
        responses, numbers = _scored(record)
        order = sorted(range(len(numbers)), key=lambda i: -numbers[i])
        prompt = _prompt(record)
        sides = [_joined(prompt, _side({"response": responses[i]}, "response")) for i in order]
        return [_framed(record, side) for side in sides]
    if schema == "prompt_label" and record["label"] not in (True, False):
        raise ValueError(f"wanted true or false under 'label', got {record['label']!r}")
    dialogue, field = _first(record, DIALOGUES), _first(record, RESPONSES)
    if schema == "messages" or (schema == "prompt_label" and dialogue):
        turns = _from_dialogue(record, dialogue or "messages")
        if schema == "prompt_label":  # the label is about the last answer
            turns = [*_as_context(turns[:-1]), turns[-1]]
        return [_framed(record, turns)]
    if schema == "ifeval":
        prompt = [Segment("user", encodable(prompt_text(record), "prompt"), False)]
        return [_framed(record, prompt + (_side(record, field) if field else []))]
    prompt = _prompt(record)
    if not prompt or field is None:
        raise ValueError(f"wanted one of {PROMPTS} and one of {RESPONSES}, got {sorted(record)}")
    return [_framed(record, _joined(prompt, _side(record, field)))]


def separate_task(record: Json) -> str:
    """Return the task of an IFEval row without its constraints.

    Our own rows carry the task. In the released form it is the prompt up to the last n paragraphs,
    n the number of instructions, where there are more than n paragraphs.

    Raises:
      ValueError: the constraints cannot be told from the task; a task that is no valid text.
    """
    if record.get("task") is not None:
        return _text(record, "task")
    size = len(constraints_of(record))
    parts = [part for part in prompt_text(record).split("\n\n") if part.strip()]
    if size and len(parts) > size:
        return "\n\n".join(parts[:-size])
    raise ValueError(
        f"the task cannot be told from its {size} constraints: wanted them as the last {size} "
        f"paragraphs of more, got {len(parts)} paragraphs"
    )


def prompt_and_response(record: Json, schema: str) -> tuple[str, str]:
    """Return (task, response) for mining; of two sequences the first one.

    A system text is part of the task. White space around the task is dropped, so that it does not
    make another task. In a dialogue the last assistant turn answers the user turn before it; a
    dialogue with several user turns is refused, because a later one cannot be understood alone.

    Raises:
      ValueError: the row has no single task and response, or has a field that is not supported.
    """
    if schema == "ifeval":
        _refuse_what_is_not_read(record, schema)
        field = _first(record, RESPONSES)
        if field is None:
            raise ValueError(f"an IFEval row without a response: give it one of {RESPONSES}")
        return separate_task(record).strip(), _text(record, field)
    if schema == "preferential":
        return _text(record, "task").strip(), _text(record, "response")
    turns = segments(record, schema)[0]
    if schema == "prompt_label" and not record["label"]:
        raise ValueError("its label is false: a pair needs a response that is good otherwise")
    said = {role: [turn.text for turn in turns if turn.role == role] for role in ROLES}
    answers = [turn.text for turn in turns if turn.trained]
    if said["tool"]:
        raise ValueError("the answer rests on what a tool said, which no prompt can ask for")
    if len(said["user"]) != 1 or not answers:
        raise ValueError(
            f"wanted one user turn and an answer, got {len(said['user'])} and {len(answers)}"
        )
    task = [text.strip() for text in (*said["system"], *said["user"]) if text.strip()]
    return "\n\n".join(task), answers[-1]


def prompt_segments(record: Json) -> list[Segment]:
    """Return the turns that a row asks to answer, the last one of the user or of a tool.

    `prompt`, a text or a dialogue, or else a dialogue under another name, or the fields that other
    rows ask in. Beside a `prompt` all other columns but `system`, `history`, `input` and `context`
    are for whoever rewards the answer.

    Raises:
      ValueError: there is none, it ends with an answer, or it is more than text.
    """
    _refuse_what_is_not_read(record, "prompt_label")
    name = _first(record, DIALOGUES)
    if record.get("prompt") is not None:
        asked = {key: value for key, value in record.items() if key not in _ASKED}
        turns = _framed(asked, _prompt(asked))
    elif name:
        turns = as_dialogue(record[name], name)
        if turns is None:
            raise ValueError(f"wanted a list of messages under {name!r}, got {record[name]!r:.80}")
        turns = _framed(record, _as_context(turns))
    else:
        turns = _framed(record, _prompt(record))
    if not turns:
        raise ValueError(f"wanted a prompt under one of {PROMPTS} or {DIALOGUES}")
    if turns[-1].role not in ("user", "tool"):
        raise ValueError(
            f"the prompt ends with a turn of the {turns[-1].role}, so there is nothing to answer: "
            "give the turns before it"
        )
    return turns
