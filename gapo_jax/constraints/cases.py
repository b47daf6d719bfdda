"""Types about capital letters. A discriminator with an uncased tokenizer cannot see them."""

from __future__ import annotations

from gapo_jax.constraints import official
from gapo_jax.constraints.base import (
    ConstraintType,
    counted,
    pick,
    relation_near_misses,
    threshold,
)

# Long enough for langdetect, which takes shorter texts in capitals for other languages.
_SENTENCE = (
    "The river is quiet and it runs slowly through the town before it reaches the wide open sea."
)


class EnglishCapital(ConstraintType):
    """English, all in capital letters."""

    id = "change_case:english_capital"
    train = (
        "Write the whole answer in English and in capital letters only.",
        "Your entire reply must be in English, in all capitals.",
        "Use only capital letters, and write in English.",
    )
    heldout = ("Every letter of your English text has to be upper case.",)
    siblings = ("change_case:english_lowercase", "change_case:capital_word_frequency")
    probes = (
        (
            {},
            _SENTENCE.upper(),
            _SENTENCE,
        ),
    )
    difference = "capital letters"


class EnglishLowercase(ConstraintType):
    """English, without a capital letter."""

    id = "change_case:english_lowercase"
    train = (
        "Write the whole answer in English and in lowercase letters only.",
        "Your entire reply must be in English, without any capital letters.",
        "Use only small letters, and write in English.",
    )
    heldout = ("Every letter of your English text has to be lower case.",)
    siblings = ("change_case:english_capital", "change_case:capital_word_frequency")
    probes = (
        (
            {},
            _SENTENCE.lower(),
            _SENTENCE,
        ),
    )
    difference = "capital letters"


class CapitalWordFrequency(ConstraintType):
    """At least, or fewer than, so many words all in capitals."""

    id = "change_case:capital_word_frequency"
    relation = "capital_relation"
    train = (
        {
            "at least": "Write at least {words} in all capital letters.",
            "less than": "Write fewer than {words} in all capital letters.",
        },
        {
            "at least": "Fully capitalised words, such as THIS, should appear {times} or more.",
            "less than": "Fully capitalised words, such as THIS, should appear less than {times}.",
        },
        {
            "at least": "Put no fewer than {words} completely in capitals.",
            "less than": "Put under {words} completely in capitals.",
        },
    )
    heldout = (
        {
            "at least": "The number of upper-case words has to reach {capital_frequency}.",
            "less than": "The number of upper-case words has to stay below {capital_frequency}.",
        },
    )
    probes = (
        (
            {"capital_frequency": 1, "capital_relation": "at least"},
            "The QUIET river runs.",
            "The quiet river runs.",
        ),
    )
    difference = "capital letters"

    def fields(self, kwargs):
        number = kwargs["capital_frequency"]
        return {**kwargs, "words": counted(number, "word"), "times": counted(number, "time")}

    def measure(self, kwargs, response):
        return self._count(response), kwargs["capital_relation"], kwargs["capital_frequency"]

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            relation = pick(rng, official.RELATIONS)
            low = 1 if relation == "at least" else 2
            return self._kwargs(relation, int(rng.integers(low, 5)))
        found = threshold(rng, self._count(response), satisfied, low=1, high=200)
        return None if found is None else self._kwargs(*found)

    def near_misses(self, rng, kwargs, response, words):
        relation, number = kwargs["capital_relation"], kwargs["capital_frequency"]
        for option in relation_near_misses(
            rng, relation, number, self._count(response), low=1, spread=2
        ):
            yield self._kwargs(*option)

    @staticmethod
    def _count(response):
        return sum(word.isupper() for word in official.word_tokenize(response))

    @staticmethod
    def _kwargs(relation, number):
        return {"capital_frequency": number, "capital_relation": relation}


TYPES = (EnglishCapital(), EnglishLowercase(), CapitalWordFrequency())
