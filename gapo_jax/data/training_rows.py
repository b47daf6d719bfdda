"""Turn rows of any schema into what a method learns from.

A method wants one kind of example (`Want`); a row gives a kind of its own (`kind_of`):

| wanted | taken from | an example is |
|---|---|---|
| demonstrations | demonstrations, the chosen side of pairs, rows whose label is true | one answer |
| pairs | pairs | two answers, the chosen one first |
| labelled | labelled rows, pairs as both labels | one answer, its label as reward |
| scored | scored rows; pairs with rewards 1 and 0, or their own scores | K answers with rewards |
| comparisons | pairs; labelled rows; scored rows, best against worst | as `pairs`, `labelled` |

Preferential prompts give what pairs give: one response under two prompts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from gapo_jax.data.schemas import Segment, scores, segments
from gapo_jax.records import Json

Want = Literal["demonstrations", "pairs", "labelled", "scored", "comparisons"]
Kind = Literal["demonstrations", "pairs", "labelled", "scored", "prompts", "preferential prompts"]
TrainOn = Literal["last", "all"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A dialogue that ends with an answer to learn from; `reward` is its score, or 1 for a good and
    0 for a bad one."""

    turns: tuple[Segment, ...]
    reward: float


Example = tuple[Answer, ...]
_TWO_SIDED: tuple[Kind, ...] = ("pairs", "preferential prompts")
# Kinds of rows that give what is wanted; every kind gives demonstrations.
_GIVES: dict[Want, tuple[Kind, ...]] = {
    "pairs": _TWO_SIDED,
    "labelled": ("labelled", *_TWO_SIDED),
    "scored": ("scored", *_TWO_SIDED),
    "comparisons": ("labelled", "scored", *_TWO_SIDED),
}


def kind_of(record: Json, schema: str) -> Kind:
    """Return what a row of a schema gives to learn from."""
    if schema == "ifeval":
        fields = ("completion", "response", "answer", "output")
        answered = any(record.get(name) is not None for name in fields)
        return "demonstrations" if answered else "prompts"
    kinds: dict[str, Kind] = {
        "preferential": "preferential prompts",
        "chosen_rejected": "pairs",
        "prompt_label": "labelled",
        "scored": "scored",
    }
    return kinds.get(schema, "demonstrations")


def examples_of(
    record: Json, schema: str, want: Want, *, train_on: TrainOn, sides: int = 2
) -> list[Example]:
    """Return the examples of a row: one, or two where a pair gives both of its labels.

    Args:
        record: the row.
        schema: its schema, as `schemas.recognise` gives it.
        want: what the method learns from.
        train_on: which answers of a demonstration are trained on; of other rows it is the last.
        sides: K of the examples of `scored`; further responses are left out, the best and the worst
            are not.

    Raises:
        ValueError: the row cannot be used so; has the reason.
    """
    kind, sequences = kind_of(record, schema), segments(record, schema)
    if want in _GIVES and kind not in _GIVES[want]:
        raise ValueError(f"it gives {kind}, and the method learns from {' or '.join(_GIVES[want])}")
    rewards = scores(record, schema)
    if want == "demonstrations":
        return [(_demonstration(record, kind, sequences, train_on),)]
    answers = [
        _answer(turns, reward)
        for turns, reward in zip(sequences, rewards or _default_rewards(record, kind), strict=True)
    ]
    if kind == "labelled":
        return [tuple(answers)]
    if kind == "scored":
        return _of_scored(answers, want, sides)
    if _same(answers[0], answers[1]):
        raise ValueError("both sides are the same: there is nothing to prefer")
    if want == "scored":
        if sides > 2:
            raise ValueError(f"wanted {sides} scored responses (config.rpo.responses), got 2")
        return [tuple(answers)]
    chosen, rejected = (dataclasses.replace(answers[k], reward=1.0 - k) for k in (0, 1))
    return [(chosen,), (rejected,)] if want == "labelled" else [(chosen, rejected)]


def _default_rewards(record: Json, kind: Kind) -> list[float]:
    return [float(record["label"])] if kind == "labelled" else [1.0, 0.0]


def _demonstration(
    record: Json, kind: Kind, sequences: list[list[Segment]], train_on: TrainOn
) -> Answer:
    if kind == "labelled" and not record["label"]:
        raise ValueError("its label is false: it shows what not to say")
    turns = sequences[0]
    if kind != "demonstrations" or train_on == "last":
        return _answer(turns, 1.0)
    _require_answer(turns)
    return Answer(tuple(turns), 1.0)


def _require_answer(turns: Sequence[Segment]) -> None:
    """Raise ValueError where a dialogue does not end with an answer that can be learned from."""
    last = turns[-1]
    if last.role != "assistant":
        raise ValueError(f"it ends with a turn of the {last.role}: its last answer is missing")
    if not last.text.strip():
        raise ValueError("its last answer is empty")
    if len(turns) == 1:
        raise ValueError("it has an answer and no prompt")
    if not last.trained:
        raise ValueError("its last answer is marked as not trained on (weight 0)")


def _answer(turns: Sequence[Segment], reward: float) -> Answer:
    """Return a dialogue of which the last answer alone is trained on."""
    _require_answer(turns)
    context = (dataclasses.replace(turn, trained=False) for turn in turns[:-1])
    return Answer((*context, turns[-1]), reward)


def _same(first: Answer, second: Answer) -> bool:
    return [(t.role, t.text) for t in first.turns] == [(t.role, t.text) for t in second.turns]


def _of_scored(answers: list[Answer], want: Want, sides: int) -> list[Example]:
    """Return the examples of responses that come in the order of their scores, best first."""
    if want == "scored":
        if len(answers) < sides:
            raise ValueError(
                f"wanted {sides} scored responses (config.rpo.responses), got {len(answers)}"
            )
        spread = [round(k * (len(answers) - 1) / (sides - 1)) for k in range(sides)]
        # A loss that compares two sides takes the first two.
        return [tuple(answers[i] for i in (spread[0], spread[-1], *spread[1:-1]))]
    pairs: list[Example] = []
    for k in range(len(answers) // 2):
        good, bad = answers[k], answers[-1 - k]
        if good.reward > bad.reward:
            pairs.append(
                (dataclasses.replace(good, reward=1.0), dataclasses.replace(bad, reward=0.0))
            )
    if not pairs:
        raise ValueError("all of its scores are equal: there is nothing to prefer")
    return pairs


def prompt_hash(record: Json, example: Example) -> int:
    """Return 63 bits that stand for what an example asks: rows of one prompt share them, and so do
    preferential prompts of one task."""
    asked: Any = [(turn.role, turn.text.strip()) for turn in example[0].turns[:-1]]
    if "prompt_accepted" in record and record.get("task") is not None:
        asked = record["task"]
    digest = hashlib.blake2b(repr(asked).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def texts_of(answer: Answer) -> tuple[str, str]:
    """Return prompt and response as a discriminator reads them.

    A system text and one user turn are joined by an empty line, as mining does; longer dialogues
    keep the names of who speaks.
    """
    *asked, last = answer.turns
    dialogue = sum(turn.role != "system" for turn in asked) > 1
    texts = [
        f"{turn.role}: {turn.text}" if dialogue and turn.role != "system" else turn.text
        for turn in asked
    ]
    return "\n\n".join(texts), last.text
