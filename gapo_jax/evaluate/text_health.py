"""Is the text still worth reading? Figures that notice the known ways of gaming a reward.

A policy under a weak reward starts to copy its prompt or to repeat itself, while the
discriminator's score and corpus diversity look fine; these figures are cheap enough for every
round.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
ECHO_RUN = 6  # words in a row taken from the prompt: longer than any topic, shorter than a request
_GRAM = 3
_QUOTED = re.compile(r'"[^"\n]*"')


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def echoes(prompt: str, response: str) -> bool:
    """Return whether the response copies the prompt.

    It does when it contains ECHO_RUN words in a row of the prompt, or when it is shorter than
    that and lies in the prompt as a whole (at least three words). What the prompt puts in double
    quotes does not count: those are words that a response was asked to say.
    """
    words = _words(response)
    size = min(ECHO_RUN, len(words))
    if size < _GRAM:
        return False
    said = set(_grams(words, size))
    return any(said & set(_grams(_words(part), size)) for part in _QUOTED.split(prompt))


def repetition(response: str) -> float:
    """Return the share of a response's word 3-grams that occurred in it before, 0 to 1."""
    grams = _grams(_words(response), _GRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def text_health(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
    """Return health figures of a set of responses.

    Returns:
        "response/echo_rate" (share that copies its prompt), "response/repetition" (mean share of
        repeated 3-grams inside a response), "response/distinct2" (unique share of all word
        2-grams; falls with the number of responses, compare like with like), "response/words"
        (mean length), "response/empty_rate".

    Raises:
        ValueError: when the lengths differ or there are no responses.
    """
    if len(prompts) != len(responses) or not responses:
        raise ValueError(f"got {len(prompts)} prompts and {len(responses)} responses")
    words = [_words(response) for response in responses]
    bigrams = [gram for item in words for gram in _grams(item, 2)]
    pairs = zip(prompts, responses, strict=True)
    return {
        "response/echo_rate": float(np.mean([echoes(p, r) for p, r in pairs])),
        "response/repetition": float(np.mean([repetition(r) for r in responses])),
        "response/distinct2": len(set(bigrams)) / len(bigrams) if bigrams else 0.0,
        "response/words": float(np.mean([len(item) for item in words])),
        "response/empty_rate": float(np.mean([not r.strip() for r in responses])),
    }
