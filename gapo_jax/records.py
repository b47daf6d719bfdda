"""Define the host-side records that cross modules: constraints, prompts, pairs of texts.

Plain Python, so that a process that only verifies text starts without JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

# A JSON object as it is read, and one that is made or changed.
Json: TypeAlias = Mapping[str, Any]
JsonObject: TypeAlias = dict[str, Any]

# Class ids of the texts that a discriminator sees.
REJECTED, ACCEPTED, GENERATED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Constraint:
    """One verifiable constraint: an IFEval instruction id and its keyword arguments."""

    id: str
    kwargs: Json = dataclasses.field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Return the constraint as a JSON-ready dictionary."""
        return {"id": self.id, "kwargs": dict(self.kwargs)}

    @classmethod
    def from_json(cls, record: Json) -> Constraint:
        """Rebuild a constraint from `to_json`."""
        return cls(id=record["id"], kwargs=dict(record["kwargs"]))


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """A prompt to answer: the task T, the constraints C and the text that states both.

    Attributes:
        key: tells rows apart in files.
        prompt: the text that is asked; of a dialogue all its turns as one text.
        task: what is asked without the constraints.
        constraints: what a response is verified against.
        turns: "role" and "content" of each turn, where a dialogue is asked; () for one user turn.
        columns: the further columns of a user's row, for reward functions.
    """

    key: str
    prompt: str
    task: str
    constraints: tuple[Constraint, ...]
    turns: tuple[Mapping[str, str], ...] = ()
    columns: Json = dataclasses.field(default_factory=dict)

    @property
    def asked(self) -> str | tuple[Mapping[str, str], ...]:
        """What the chat template renders: the turns of a dialogue, else the prompt."""
        return self.turns or self.prompt

    def to_json(self) -> JsonObject:
        """Return the row as a JSON-ready dictionary."""
        own = {"turns": [dict(turn) for turn in self.turns], "columns": dict(self.columns)}
        return {
            "key": self.key,
            "prompt": self.prompt,
            "task": self.task,
            "constraints": [constraint.to_json() for constraint in self.constraints],
            **{name: value for name, value in own.items() if value},
        }

    @classmethod
    def from_json(cls, record: Json) -> PromptRow:
        """Rebuild a row from `to_json`."""
        constraints = tuple(Constraint.from_json(item) for item in record["constraints"])
        own = tuple(record.get("turns", ())), record.get("columns", {})
        return cls(record["key"], record["prompt"], record["task"], constraints, *own)


@dataclasses.dataclass(frozen=True)
class PreferentialPair:
    """One response and two prompts: it satisfies the first and violates the second.

    GAPO (arXiv 2503.20194) section 3.2, Eq. 3 and 4. `edit` says how the rejected prompt came
    about (`modify`, `polarity`, `insert` or `replace`), `type` is the id of the edited constraint.
    """

    task: str
    response: str
    accepted: tuple[Constraint, ...]
    rejected: tuple[Constraint, ...]
    prompt_accepted: str
    prompt_rejected: str
    edit: str
    type: str

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The accepted and the rejected text, each as (prompt, response)."""
        return (self.prompt_accepted, self.response), (self.prompt_rejected, self.response)

    def to_json(self) -> JsonObject:
        """Return the pair as a JSON-ready dictionary."""
        record = dataclasses.asdict(self)
        for side in ("accepted", "rejected"):
            record[side] = [constraint.to_json() for constraint in getattr(self, side)]
        return record

    @classmethod
    def from_json(cls, record: Json) -> PreferentialPair:
        """Rebuild a pair from `to_json`."""
        fields = dict(record)
        for side in ("accepted", "rejected"):
            fields[side] = tuple(Constraint.from_json(item) for item in record[side])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class PreferentialResponses:
    """One prompt and two responses: the first satisfies it, the second does not."""

    prompt: str
    accepted: str
    rejected: str

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The accepted and the rejected text, each as (prompt, response)."""
        return (self.prompt, self.accepted), (self.prompt, self.rejected)


# What a discriminator learns from: anything with an accepted and a rejected side.
Preference = PreferentialPair | PreferentialResponses
