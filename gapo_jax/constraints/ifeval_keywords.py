"""IFEval types about words and letters: include them, avoid them, use them a number of times."""

from __future__ import annotations

import re
from collections import Counter

from gapo_jax.constraints.base import TrainableType, pick, quoted, shuffled
from gapo_jax.constraints.counting import RelationType, other_relation
from gapo_jax.constraints.fields import RELATIONS
from gapo_jax.constraints.words import COMMON_WORDS, absent_words, content_words


def _draw(rng, candidates, most=2):
    """Return one word, or sometimes two."""
    size = 1 if most < 2 or len(candidates) < 2 or rng.random() < 0.7 else 2
    return shuffled(rng, candidates)[:size]


class Existence(TrainableType):
    """Every keyword occurs (as a substring, ignoring case: the official rule)."""

    id = "keywords:existence"
    # The order of the phrasings is part of the data: `augment` gives both sides of a polarity pair
    # the same style number.
    # Each style is worded like that of ForbiddenWords: the two differ in nothing but the polarity.
    train = (
        "Include {noun} {listed} in your answer.",
        "Make sure to use {noun} {listed}.",
        "Your answer has to mention {listed}.",
        "Please do write {listed} somewhere in the text.",
        "{Noun} {listed} must appear in your reply.",
    )
    heldout = (
        "See to it that {listed} can be found in what you write.",
        "Work {noun} {listed} into your response.",
    )
    probes = (
        (
            {"keywords": ["river"]},
            "The quiet river runs to the sea.",
            "The quiet water runs to the sea.",
        ),
    )
    difference = "one word"

    def fields(self, kwargs):
        return _word_fields(kwargs["keywords"])

    def measure(self, kwargs, response):
        keywords, text = kwargs["keywords"], response.lower()
        return sum(word.lower() in text for word in keywords), "at least", len(keywords)

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"keywords": _draw(rng, list(words) or COMMON_WORDS)}
        # Words of the response hold by themselves; absent ones come from other answers to the task,
        # so that both sides of a pair are on topic.
        if satisfied:
            inside = content_words(response)
            return {"keywords": _draw(rng, inside)} if inside else None
        return {"keywords": _draw(rng, absent_words(response, words))}

    def near_misses(self, rng, kwargs, response, words):
        # One keyword is replaced by an absent word; the others stay.
        keywords = list(kwargs["keywords"])
        for word in shuffled(rng, absent_words(response, words))[:4]:
            place = int(rng.integers(len(keywords)))
            yield {"keywords": keywords[:place] + [word] + keywords[place + 1 :]}


class ForbiddenWords(TrainableType):
    """None of the words occurs as a whole word, ignoring case."""

    id = "keywords:forbidden_words"
    train = (
        "Do not include {noun} {listed} in your answer.",
        "Make sure not to use {noun} {listed}.",
        "Your answer must not mention {listed}.",
        "Please do not write {listed} anywhere in the text.",
        "{Noun} {listed} must not appear in your reply.",
    )
    heldout = (
        "See to it that {listed} cannot be found in what you write.",
        "Keep {noun} {listed} out of your response.",
    )
    probes = (
        (
            {"forbidden_words": ["river"]},
            "The quiet water runs to the sea.",
            "The quiet river runs to the sea.",
        ),
    )
    difference = "one word"

    def fields(self, kwargs):
        return _word_fields(kwargs["forbidden_words"], "or")

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"forbidden_words": _draw(rng, list(words) or COMMON_WORDS)}
        if satisfied:
            return {"forbidden_words": _draw(rng, absent_words(response, words))}
        # Forbidding a word that occurs is the violated side: the mirror image of `Existence`.
        inside = content_words(response)
        return {"forbidden_words": _draw(rng, inside)} if inside else None

    def near_misses(self, rng, kwargs, response, words):
        # One forbidden word is replaced by a word that the response uses.
        forbidden = list(kwargs["forbidden_words"])
        for word in shuffled(rng, content_words(response))[:4]:
            place = int(rng.integers(len(forbidden)))
            yield {"forbidden_words": forbidden[:place] + [word] + forbidden[place + 1 :]}


def _word_fields(words, link="and"):
    noun = "the word" if len(words) == 1 else "the words"
    return {"noun": noun, "Noun": noun.capitalize(), "listed": quoted(words, link)}


def _times(number):
    return "once" if number == 1 else "twice" if number == 2 else f"{number} times"


class Frequency(RelationType):
    """A keyword occurs at least N times, or fewer than N times (substrings count)."""

    id = "keywords:frequency"
    relation = "relation"
    train = (
        {
            "at least": 'Use the word "{keyword}" at least {times}.',
            "less than": 'Use the word "{keyword}" fewer than {frequency} times.',
        },
        {
            "at least": 'The word "{keyword}" should occur {frequency} or more times.',
            "less than": 'The word "{keyword}" should occur less than {frequency} times.',
        },
        {
            "at least": 'Write "{keyword}" no fewer than {times} in your answer.',
            "less than": 'Write "{keyword}" under {frequency} times in your answer.',
        },
    )
    heldout = (
        {
            "at least": 'I want to see "{keyword}" a minimum of {times}.',
            "less than": 'I want to see "{keyword}" not as often as {frequency} times.',
        },
    )
    probes = (
        (
            {"keyword": "river", "frequency": 2, "relation": "at least"},
            "The river meets a river.",
            "The river meets a lake.",
        ),
    )
    difference = "how often one word occurs"
    number, high = "frequency", 8

    def fields(self, kwargs):
        return {**kwargs, "times": _times(kwargs["frequency"])}

    def count(self, kwargs, response):
        return len(re.findall(re.escape(kwargs["keyword"]), response, flags=re.IGNORECASE))

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            keyword = pick(rng, list(words) or COMMON_WORDS)
            relation = pick(rng, RELATIONS[::-1])
            # "Fewer than 1" would forbid the word, which is another type.
            low = 1 if relation == "at least" else 2
            return {
                "keyword": keyword,
                "frequency": int(rng.integers(low, 4)),
                "relation": relation,
            }
        inside = content_words(response)
        keyword = pick(rng, inside) if inside else None
        # An absent word is a fair question too: "at least once" is violated by it.
        if keyword is None or (not satisfied and rng.random() < 0.3):
            keyword = pick(rng, absent_words(response, words))
        arguments = self.near(rng, {"keyword": keyword}, response, satisfied)
        # "Fewer than 1 times" would be forbidden_words under another name.
        if arguments is None or (arguments["relation"], arguments["frequency"]) == ("less than", 1):
            if not inside:
                return None
            return {"keyword": pick(rng, inside), "frequency": 1, "relation": "at least"}
        return arguments


class LetterFrequency(RelationType):
    """A letter occurs at least N times, or fewer than N times, ignoring case."""

    id = "keywords:letter_frequency"
    relation = "let_relation"
    train = (
        {
            "at least": 'The letter "{letter}" should appear at least {times}.',
            "less than": 'The letter "{letter}" should appear fewer than {let_frequency} times.',
        },
        {
            "at least": 'Use the letter "{letter}" {let_frequency} or more times.',
            "less than": 'Use the letter "{letter}" less than {let_frequency} times.',
        },
        {
            "at least": 'Your text must hold the letter "{letter}" no fewer than {times}.',
            "less than": 'Your text must hold the letter "{letter}" under {let_frequency} times.',
        },
    )
    heldout = (
        {
            "at least": 'Counting every "{letter}", there have to be {let_frequency} or above.',
            "less than": 'Counting every "{letter}", there have to be below {let_frequency}.',
        },
    )
    probes = (
        (
            {"letter": "z", "let_frequency": 1, "let_relation": "at least"},
            "A crazy day.",
            "A crary day.",
        ),
    )
    difference = "one letter"
    number = "let_frequency"
    # From frequent to rare; each is drawn alike.
    _LETTERS = "aeiourstlnmdcphgbkvwyjqxz"

    def fields(self, kwargs):
        return {**kwargs, "times": _times(kwargs["let_frequency"])}

    def count(self, kwargs, response):
        return Counter(response.lower())[kwargs["letter"].lower()]

    def spread(self, count):
        # Letters are frequent: for a count of 40, a number within 10 is near.
        return max(2, count // 4)

    def propose(self, rng, response, satisfied, words, task):
        asked = {"letter": pick(rng, self._LETTERS)}
        if response is None:
            relation = pick(rng, RELATIONS[::-1])
            return {**asked, "let_frequency": int(rng.integers(2, 9)), "let_relation": relation}
        arguments = self.near(rng, asked, response, satisfied)
        if arguments is None and not satisfied:
            # A rare letter has no "less than" below its count: ask for more of it instead.
            more = self.count(asked, response) + 1
            return {**asked, "let_frequency": more, "let_relation": "at least"}
        return arguments


def polarity_twin(type_id: str, kwargs: dict) -> tuple[str, dict] | None:
    """Return (id, arguments) of the opposite constraint on the same words, or None.

    Include and avoid are opposites, and so are the two relations of `keywords:frequency`. From such
    a pair a discriminator learns to read the polarity: words and response are the same on both
    sides.
    """
    if type_id == Existence.id:
        return ForbiddenWords.id, {"forbidden_words": list(kwargs["keywords"])}
    if type_id == ForbiddenWords.id:
        return Existence.id, {"keywords": list(kwargs["forbidden_words"])}
    if type_id == Frequency.id:
        return type_id, {**kwargs, "relation": other_relation(kwargs["relation"])}
    return None


TYPES = (Existence(), Frequency(), ForbiddenWords(), LetterFrequency())
