"""Make examples for the offline methods, as comparisons of prompts or of responses.

The pairs come in cycles (`data/preferential.py`) in which every prompt is accepted as often as it
is rejected. So pairs of one response and two prompts can be regrouped as pairs of one prompt and
two responses, one that it was accepted with and one that it was rejected with. Both readings hold
the same (prompt, response) rows, so a comparison of the two (GAPO, arXiv 2503.20194, table 6)
measures the kind of comparison and nothing else.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gapo_jax import constraints
from gapo_jax.types import Constraint, PreferentialPair, PreferentialResponses

_TAIL = 12  # letters and digits at the end of a text that tell whether it is one that was cut off


@dataclasses.dataclass(frozen=True)
class Side:
    """One response under one prompt; `reward` is the share of its constraints that hold."""

    prompt: str
    response: str
    reward: float


# The sides of an example, the accepted one first.
Example = tuple[Side, ...]


def _side(task: str, prompt: str, chosen: Sequence[Constraint], response: str) -> Side:
    ids, kwargs = [c.id for c in chosen], [dict(c.kwargs) for c in chosen]
    held = constraints.check(response, ids, kwargs, prompt=task)
    return Side(prompt, response, float(np.mean(held)))


def preferential_prompts(
    pairs: Sequence[PreferentialPair], size: int = 2, rng: np.random.Generator | None = None
) -> list[Example]:
    """Return one example per pair: its response under `size` prompts, the accepted one first.

    Prompts beyond the second are drawn with `rng` from the same task; pairs whose task has too few
    are left out.
    """
    pool: dict[str, dict[str, tuple[Constraint, ...]]] = collections.defaultdict(dict)
    for pair in pairs:
        pool[pair.task] |= {
            pair.prompt_accepted: pair.accepted,
            pair.prompt_rejected: pair.rejected,
        }
    examples = []
    for pair in pairs:
        known = pool[pair.task]
        prompts = [pair.prompt_accepted, pair.prompt_rejected]
        prompts += _others(known, prompts, size - 2, rng)
        if len(prompts) == size:
            sides = (_side(pair.task, p, known[p], pair.response) for p in prompts)
            examples.append(tuple(sides))
    return examples


def preferential_responses(
    pairs: Sequence[PreferentialPair], size: int = 2, rng: np.random.Generator | None = None
) -> list[Example]:
    """Return examples of one prompt and `size` responses, of which only the first satisfies it.

    Each side of a pair is used once, in the order of the rejected sides. Responses beyond the
    second are drawn with `rng` from the same task; prompts whose task has too few are left out. A
    prompt that occurs on one side only, as in pairs from other sources, gives none.
    """
    pool: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for pair in pairs:
        pool[pair.task][pair.response] = None
    examples = []
    for pair, good in _answered(pairs):
        responses = [good, pair.response]
        responses += _others(pool[pair.task], responses, size - 2, rng)
        if len(responses) == size:
            sides = (_side(pair.task, pair.prompt_rejected, pair.rejected, r) for r in responses)
            examples.append(tuple(sides))
    return examples


def response_pairs(pairs: Sequence[PreferentialPair]) -> list[PreferentialResponses]:
    """Return the examples of `preferential_responses` as a discriminator reads them."""
    return [
        PreferentialResponses(pair.prompt_rejected, good, pair.response)
        for pair, good in _answered(pairs)
    ]


def _answered(pairs: Sequence[PreferentialPair]) -> Iterator[tuple[PreferentialPair, str]]:
    """Yield each pair with a response that satisfies its rejected prompt, if one is left."""
    accepted: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for pair in reversed(pairs):
        accepted[pair.task, pair.prompt_accepted].append(pair.response)
    for pair in pairs:
        waiting = accepted[pair.task, pair.prompt_rejected]
        if waiting:
            yield pair, waiting.pop()


def _others(
    known: Iterable[str], taken: Sequence[str], count: int, rng: np.random.Generator | None
) -> list[str]:
    if not count:
        return []
    if rng is None:
        raise ValueError("more than 2 sides are drawn at random: pass rng")
    left = [text for text in known if text not in taken]
    return [left[i] for i in rng.permutation(len(left))[:count]]


def accepted_rows(pairs: Sequence[PreferentialPair]) -> list[Example]:
    """Return each accepted (prompt, response) once: the demonstrations of SFT."""
    rows = dict.fromkeys((pair.prompt_accepted, pair.response) for pair in pairs)
    return [(Side(prompt, response, 1.0),) for prompt, response in rows]


def tail(text: str) -> str:
    """Return the last letters and digits of a text, which edits of its form leave unchanged."""
    return re.sub(r"[\W_]", "", text.casefold())[-_TAIL:]


def ends(responses: Sequence[str], cut_off: Iterable[str]) -> list[bool]:
    """Return which responses are whole, that is, do not end like one of the `cut_off` texts.

    A text that sampling cut at its length limit must not teach a model to stop in mid-sentence, and
    neither must an edit of it that left the ending unchanged.
    """
    broken = {tail(text) for text in cut_off}
    return [tail(text) not in broken for text in responses]
