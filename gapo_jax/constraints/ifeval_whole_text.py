"""IFEval types about the whole text: capitals, language, two answers, a repeated request.

A discriminator with an uncased tokenizer cannot see the types about capital letters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gapo_jax.constraints.base import TrainableType, counted, pick, shuffled
from gapo_jax.constraints.counting import RelationType
from gapo_jax.constraints.fields import LANGUAGE_CODES
from gapo_jax.constraints.text import split_sentences, word_tokenize

# Requests to repeat where there is no task, written for this project.
REQUESTS: tuple[str, ...] = (
    "Write a short answer to this.",
    "Tell me something about it.",
    "Explain it in your own words.",
    "Answer the question below.",
)
# Long enough for langdetect, which mistakes shorter texts in capitals for other languages.
_SENTENCE = (
    "The river is quiet and it runs slowly through the town before it reaches the wide open sea."
)


def swapped_words(rng: np.random.Generator, request: str) -> Iterator[str]:
    """Yield a request with two neighbouring words exchanged, a few times, then another request."""
    parts = request.split()
    for _ in range(4):
        if len(parts) > 2:
            place = int(rng.integers(len(parts) - 1))
            changed = list(parts)
            changed[place], changed[place + 1] = changed[place + 1], changed[place]
            yield " ".join(changed)
    # For requests too short to exchange words in.
    yield pick(rng, REQUESTS)


class EnglishCapital(TrainableType):
    """English, all in capital letters."""

    id = "change_case:english_capital"
    train = (
        "Write the whole answer in English and in capital letters only.",
        "Your entire reply must be in English, in all capitals.",
        "Use only capital letters, and write in English.",
    )
    heldout = ("Every letter of your English text has to be upper case.",)
    # Misses about capitals, so that a pair turns on the case of the letters and nothing else.
    siblings = ("change_case:english_lowercase", "change_case:capital_word_frequency")
    probes = (
        (
            {},
            _SENTENCE.upper(),
            _SENTENCE,
        ),
    )
    difference = "capital letters"


class EnglishLowercase(TrainableType):
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


class CapitalWordFrequency(RelationType):
    """At least N words all in capitals, or fewer than N."""

    id = "change_case:capital_word_frequency"
    number, relation = "capital_frequency", "capital_relation"
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

    def count(self, kwargs, response):
        # By the tokens of the release, to which "U.S." is one word and "A" one more.
        return sum(word.isupper() for word in word_tokenize(response))

    def draw(self, rng, relation, words):
        low = 1 if relation == "at least" else 2
        return {"capital_frequency": int(rng.integers(low, 5))}


class ResponseLanguage(TrainableType):
    """The whole response is in one language, as langdetect decides with a fixed seed."""

    id = "language:response_language"
    train = (
        "Write the entire answer in {name}.",
        "Your whole reply must be in {name}, with no other language in it.",
        "Answer only in {name}.",
    )
    heldout = ("No language but {name} may occur in your text.",)
    probes = (
        (
            {"language": "es"},
            "El río tranquilo corre despacio por el pueblo hasta llegar al mar.",
            "The quiet river runs slowly through the town until it meets the sea.",
        ),
    )
    difference = "the language"
    _COMMON = ("en", "es", "fr", "de", "it", "pt")

    def fields(self, kwargs):
        return {"name": LANGUAGE_CODES[kwargs["language"]]}

    def propose(self, rng, response, satisfied, words, task):
        if response is not None and satisfied:
            # Asked of the checker: langdetect knows more languages than the release names.
            codes = [code for code in LANGUAGE_CODES if self.follows({"language": code}, response)]
            return {"language": pick(rng, codes)} if codes else None
        return {"language": pick(rng, self._COMMON)}

    def near_misses(self, rng, kwargs, response, words):
        for code in shuffled(rng, self._COMMON):
            yield {"language": code}


class TwoResponses(TrainableType):
    """Two different responses divided by six asterisks."""

    id = "combination:two_responses"
    train = (
        "Give two different answers divided by six asterisks: ******",
        "Write two distinct replies and put ****** between them.",
        "I need two separate versions, with the line ****** in the middle.",
    )
    heldout = ("Offer a pair of unlike responses; ****** is what parts them.",)
    siblings = (
        "length_constraints:number_paragraphs",
        "detectable_format:number_bullet_lists",
        "detectable_format:title",
    )
    probes = (
        (
            {},
            "Rivers run to the sea.\n******\nWater finds its way.",
            "Rivers run to the sea.\n***\nWater finds its way.",
        ),
    )
    difference = "six asterisks"


class RepeatPrompt(TrainableType):
    """The response first repeats a request word for word."""

    id = "combination:repeat_prompt"
    train = (
        'Before you answer, repeat this request word for word: "{prompt_to_repeat}"',
        'First copy the following without any change, then answer: "{prompt_to_repeat}"',
        'Begin your reply with an exact copy of "{prompt_to_repeat}" and then respond.',
    )
    heldout = (
        'The opening of your reply has to be "{prompt_to_repeat}" exactly as it stands; the answer'
        " comes after that.",
    )
    probes = (
        (
            {"prompt_to_repeat": "Write about a river."},
            "Write about a river. It runs to the sea.",
            "It runs to the sea.",
        ),
    )
    difference = "the first words"

    def propose(self, rng, response, satisfied, words, task):
        if response is not None and satisfied:
            # The task itself if the response repeats it; else the first sentence, which is repeated
            # by definition.
            if task and self.follows({"prompt_to_repeat": task}, response):
                return {"prompt_to_repeat": task}
            sentences = split_sentences(response)
            return {"prompt_to_repeat": sentences[0]} if sentences else None
        return {"prompt_to_repeat": task if task else pick(rng, REQUESTS)}

    def near_misses(self, rng, kwargs, response, words):
        for text in swapped_words(rng, kwargs["prompt_to_repeat"]):
            yield {"prompt_to_repeat": text}


TYPES = (
    EnglishCapital(),
    EnglishLowercase(),
    CapitalWordFrequency(),
    ResponseLanguage(),
    TwoResponses(),
    RepeatPrompt(),
)
