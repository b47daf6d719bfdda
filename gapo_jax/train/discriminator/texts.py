"""The texts that a discriminator reads, and the replay buffer of those that the policy wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gapo_jax.records import Json, JsonObject
from gapo_jax.rng import Stream, stream


class Text(Protocol):
    """Anything with a prompt and a response."""

    @property
    def prompt(self) -> str:
        """What was asked."""
        ...

    @property
    def response(self) -> str:
        """What was answered."""
        ...


class LabelledText(NamedTuple):
    """One text to learn from: prompt, response, class id and target in [0, 1]."""

    prompt: str
    response: str
    kind: int
    target: float


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """A sampled response, the round that it is from, and whether it counts as a good answer
    (`batches.is_accepted`)."""

    prompt: str
    response: str
    verified: bool
    round: int


ReplayBuffer = tuple[GeneratedText, ...]


def update_replay(
    replay: Sequence[GeneratedText],
    fresh: Sequence[GeneratedText],
    capacity: int,
    *,
    seed: int,
    round_index: int,
) -> ReplayBuffer:
    """Add a round's texts to the replay buffer: no duplicates, random eviction when it is full."""
    seen = {(text.prompt, text.response) for text in replay}
    merged = list(replay)
    for text in fresh:
        if (text.prompt, text.response) not in seen:
            seen.add((text.prompt, text.response))
            merged.append(text)
    if len(merged) <= capacity:
        return tuple(merged)
    rng = stream(seed, Stream.REPLAY, round_index)
    keep = np.sort(rng.permutation(len(merged))[:capacity])
    return tuple(merged[i] for i in keep)


def replay_to_json(replay: Sequence[GeneratedText]) -> list[JsonObject]:
    """Return the replay buffer as JSON-ready records."""
    return [dataclasses.asdict(text) for text in replay]


def replay_from_json(records: Sequence[Json]) -> ReplayBuffer:
    """Rebuild the replay buffer from `replay_to_json`."""
    return tuple(GeneratedText(**record) for record in records)
