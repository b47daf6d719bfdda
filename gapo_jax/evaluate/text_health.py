"""Figures that show the known ways of gaming a reward: copying the prompt, repeating text.

Under a weak reward a policy starts to do both, while the discriminator's score and the diversity of
the texts look fine. The figures are cheap enough for every round. The thinking of a response does
not count: it may well repeat the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gapo_jax.constraints.text import final_answer

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
ECHO_RUN = 6  # consecutive words of the prompt: longer than any topic, shorter than a request
_GRAM = 3
_QUOTED = re.compile(r'"[^"\n]*"')


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without numbers' signs and punctuation."""
    return _WORD.findall(text.lower())


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def echoes(prompt: str, response: str) -> bool:
    """Return whether the response copies the prompt.

    It does if it contains ECHO_RUN consecutive words of the prompt, or if it is shorter than that
    and part of the prompt as a whole (at least three words). Words that the prompt puts in double
    quotes do not count: they are what the response is asked to say.
    """
    words = words_of(response)
    size = min(ECHO_RUN, len(words))
    # One or two words lie in any prompt by chance.
    if size < _GRAM:
        return False
    said = set(_grams(words, size))
    return any(said & set(_grams(words_of(part), size)) for part in _QUOTED.split(prompt))


def repetition(response: str) -> float:
    """Return the share of a response's word 3-grams that occurred in it before, 0 to 1."""
    grams = _grams(words_of(response), _GRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def text_health(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
    """Return health figures of a set of responses.

    Returns:
        "response/echo_rate" (share that copies its prompt), "response/repetition" (mean share of
        repeated 3-grams inside a response), "response/distinct2" (unique share of all word
        2-grams; it falls with the number of responses, so compare equal numbers),
        "response/words" (mean length), "response/empty_rate".

    Raises:
        ValueError: the lengths differ, or there are no responses.
    """
    if len(prompts) != len(responses) or not responses:
        raise ValueError(
            f"expected one response per prompt and one at least, got {len(prompts)} prompts and"
            f" {len(responses)} responses"
        )
    responses = [final_answer(response) for response in responses]
    words = [words_of(response) for response in responses]
    bigrams = [gram for item in words for gram in _grams(item, 2)]
    pairs = zip(prompts, responses, strict=True)
    return {
        "response/echo_rate": float(np.mean([echoes(p, r) for p, r in pairs])),
        "response/repetition": float(np.mean([repetition(r) for r in responses])),
        "response/distinct2": len(set(bigrams)) / len(bigrams) if bigrams else 0.0,
        "response/words": float(np.mean([len(item) for item in words])),
        "response/empty_rate": float(np.mean([not r.strip() for r in responses])),
    }
