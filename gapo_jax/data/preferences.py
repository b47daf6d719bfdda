"""Examples for the offline methods: the same preferential pairs as comparisons of prompts or texts.

The pairs come in cycles (`data/preferential.py`): every prompt occurs as often accepted as
rejected. So what they say about one response and two prompts can be read the other way round
without making anything new: the responses that a prompt occurs accepted with, beside those it
occurs rejected with, are preferential responses. Both readings hold the same (prompt, response)
rows, which makes the paper's comparison of the two (GAPO, arXiv 2503.20194, table 6) one of the
comparison alone.
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
    """Return one example a pair: its response under `size` prompts, the accepted one first.

    Above two, further prompts of the same task are drawn with `rng`; pairs whose task has too few
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
    """Return examples of one prompt with `size` responses: one that satisfies it first, then one
    that violates it; the sides of the pairs, each once, in the order of the rejected ones.

    Above two, further responses to the same task are drawn with `rng`; prompts whose task has too
    few are left out. A prompt that occurs on one side only, as in pairs from elsewhere, gives none.
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
    """Yield each pair, in order, with a response that satisfies its rejected prompt: the next one
    that occurs accepted with it."""
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
    """Return the accepted sides, each (prompt, response) once: what SFT imitates."""
    rows = dict.fromkeys((pair.prompt_accepted, pair.response) for pair in pairs)
    return [(Side(prompt, response, 1.0),) for prompt, response in rows]


def tail(text: str) -> str:
    """Return the last letters and digits of a text, what edits of its form leave alone."""
    return re.sub(r"[\W_]", "", text.casefold())[-_TAIL:]


def ends(responses: Sequence[str], cut_off: Iterable[str]) -> list[bool]:
    """Return which responses are whole: those that do not end as one of the `cut_off` texts does.

    A text that sampling cut at its length limit, and an edit of it that did not mend its ending,
    must not teach a model to stop in the middle of a sentence.
    """
    broken = {tail(text) for text in cut_off}
    return [tail(text) not in broken for text in responses]
