"""IFTrain types about words and marks: which ones occur, and at which place.

`iftrain_checks.py` gives their verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gapo_jax.constraints import iftrain_checks as checks
from gapo_jax.constraints.base import (
    TrainableType,
    pick,
    shuffled,
)
from gapo_jax.constraints.text import word_tokenize
from gapo_jax.constraints.words import COMMON_WORDS, absent_words, content_words


def free_word(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Return one of the candidate words, or a common word where there are none."""
    return pick(rng, list(words) or COMMON_WORDS)


class ExcludeWord(TrainableType):
    """A word does not occur between two blanks, in exactly this spelling."""

    id = "keywords:exclude_word_harder"
    train = (
        'Do without the word "{keyword}" in your response.',
        'The word "{keyword}" should not be in your text.',
        'Answer, but never write "{keyword}".',
    )
    heldout = ('Whatever you say, "{keyword}" has no place in it.',)
    probes = (
        (
            {"keyword": "river"},
            "The quiet water runs to the sea.",
            "The quiet river runs to the sea.",
        ),
    )
    difference = "one word"

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"keyword": free_word(rng, words)}
        if satisfied:
            return {"keyword": pick(rng, absent_words(response, words))}
        inside = [word for word in content_words(response) if f" {word} " in response]
        return {"keyword": pick(rng, inside)} if inside else None

    def near_misses(self, rng, kwargs, response, words):
        changed = self.propose(rng, response, False, words, None)
        if changed is not None:
            yield changed


class _Edge(TrainableType):
    """The first or the last word of the answer, or of each of its sentences, is a given one."""

    field = ""
    each_sentence = False
    difference = "the first or last word"

    def _words(self, response) -> set[str]:
        """Return the words at this edge of the text, or of each sentence."""
        word_of = checks.opening_word if self.field == "first_word" else checks.closing_word
        texts = checks.sentences(response) if self.each_sentence else [response]
        return {word_of(text) for text in texts} - {""}

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {self.field: free_word(rng, words)}
        here = self._words(response)
        if satisfied:
            return {self.field: here.pop()} if len(here) == 1 else None
        # A word of the response that stands elsewhere, or one that it lacks.
        elsewhere = [word for word in content_words(response) if word not in here]
        if not elsewhere or rng.random() < 0.5:
            elsewhere = absent_words(response, words)
        return {self.field: pick(rng, elsewhere)}

    def near_misses(self, rng, kwargs, response, words):
        for _ in range(4):
            yield self.propose(rng, response, False, words, None)


class FirstWordSentence(_Edge):
    """Each sentence starts with a given word, ignoring case."""

    id = "first_word:first_word_sent"
    field, each_sentence = "first_word", True
    train = (
        'Start each sentence with the word "{first_word}".',
        'The first word of every sentence must be "{first_word}".',
        'Let all your sentences open with "{first_word}".',
    )
    heldout = ('No sentence may begin in another way than with "{first_word}".',)
    probes = (
        ({"first_word": "rivers"}, "Rivers run. Rivers are deep.", "Rivers run. Lakes are deep."),
    )
    excludes = ("first_word:first_word_answer", "count:count_unique")


class FirstWordAnswer(_Edge):
    """The response starts with a given word, ignoring case."""

    id = "first_word:first_word_answer"
    field = "first_word"
    train = (
        'Start your answer with the word "{first_word}".',
        'The first word of your response must be "{first_word}".',
        'Begin the whole text with "{first_word}".',
    )
    heldout = ('Nothing may come before the opening word, which is "{first_word}".',)
    probes = (({"first_word": "rivers"}, "Rivers run to the sea.", "Lakes run to the sea."),)
    excludes = ("first_word:first_word_sent", "startend:quotation", "detectable_format:json_format")


class LastWordSentence(_Edge):
    """Each sentence ends with a given word before its mark, ignoring case."""

    id = "last_word:last_word_sent"
    field, each_sentence = "last_word", True
    train = (
        'End each sentence with the word "{last_word}", before the punctuation.',
        'The last word of every sentence must be "{last_word}".',
        'Let all your sentences close with "{last_word}" and then their mark.',
    )
    heldout = ('No sentence may finish on another word than "{last_word}".',)
    probes = (({"last_word": "deep"}, "It is deep. We dive deep!", "It is deep. We dive far!"),)
    excludes = ("last_word:last_word_answer", "count:count_unique", "startend:end_checker")


class LastWordAnswer(_Edge):
    """The response ends with a given word, marks aside, ignoring case."""

    id = "last_word:last_word_answer"
    field = "last_word"
    train = (
        'End your answer with the word "{last_word}".',
        'The last word of your response must be "{last_word}".',
        'Let the whole text finish on "{last_word}".',
    )
    heldout = ('No word may come after the closing one, which is "{last_word}".',)
    probes = (({"last_word": "deep"}, "It runs. It is deep.", "It runs. It is far."),)
    excludes = ("last_word:last_word_sent", "startend:end_checker")


class SpecificPosition(TrainableType):
    """A keyword, in exactly this spelling, is word m of sentence n; marks count as words."""

    id = "keywords:keyword_specific_position"
    train = (
        'Word {m} of sentence {n} has to be "{keyword}".',
        'Put "{keyword}" into sentence number {n}, at word number {m}.',
        'The keyword "{keyword}" belongs in sentence {n}, as its word {m}.',
    )
    heldout = ('Count to sentence {n} and, in it, to word {m}: there I expect "{keyword}".',)
    probes = (
        (
            {"keyword": "deep", "n": 2, "m": 3},
            "The river runs. It is deep.",
            "The river runs. It is cold.",
        ),
    )
    difference = "one word at one place"

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            m = int(rng.integers(1, 6))
            return {"keyword": free_word(rng, words), "n": int(rng.integers(1, 3)), "m": m}
        tokens = [word_tokenize(sentence) for sentence in checks.sentences(response)]
        places = [
            (word, n, m)
            for n, sentence in enumerate(tokens[:8], 1)
            for m, word in enumerate(sentence[:12], 1)
            if word.isalpha()
        ]
        if not places:
            return None
        word, n, m = pick(rng, places)
        if not satisfied:
            # Another word of the text at this place, or the right word one place further.
            others = [other for other, _, _ in places if other != word]
            word, m = (pick(rng, others), m) if others and rng.random() < 0.5 else (word, m + 1)
        return {"keyword": word, "n": n, "m": m}

    def near_misses(self, rng, kwargs, response, words):
        m, n = kwargs["m"], kwargs["n"]
        options = [
            {"m": m + 1},
            {"n": n + 1},
            {"keyword": pick(rng, absent_words(response, words))},
        ]
        options += [{"m": m - 1}] if m > 1 else []
        for change in shuffled(rng, options):
            yield {**kwargs, **change}


class NoAdjacentConsecutive(TrainableType):
    """No word starts with the letter that follows the first letter of the word before."""

    id = "keywords:no_adjacent_consecutive"
    train = (
        "No two neighbouring words may start with consecutive letters of the alphabet.",
        "A word must never begin with the letter that follows the initial of the word before it.",
        "Avoid neighbours such as a word with A and then one with B as first letters.",
    )
    heldout = ("Initials of words side by side are not allowed to run on, as in G and H.",)
    siblings = ("keywords:start_end", "first_word:first_word_answer", "last_word:last_word_answer")
    probes = (({}, "The river meets a lake.", "The river smells a lake."),)
    difference = "the first letter of one word"


class Palindrome(TrainableType):
    """Some word reads the same from both ends; one letter alone counts."""

    id = "keywords:palindrome"
    train = (
        "Include a palindrome in your answer.",
        "Use a word that reads the same backwards.",
        "Your text must have some palindrome, like level or noon, in it.",
    )
    heldout = ("Somewhere there has to be a word that can be read from either end alike.",)
    siblings = ("keywords:word_once", "keywords:existence", "keywords:keyword_specific_position")
    probes = (({}, "Rivers at noon are quiet.", "Rivers at noons are quiet."),)
    difference = "one word"


class StartEnd(TrainableType):
    """The response starts and ends with the same word, without a mark after it."""

    id = "keywords:start_end"
    train = (
        "Start and end your answer with the same word, and put nothing after it, not even a mark.",
        "The first word of your response must be its last word too, without punctuation behind it.",
        "Let the text close on the word that it opened with, with no full stop.",
    )
    heldout = ("What you say first, you also say last: one word at both ends, no mark behind.",)
    siblings = ("first_word:first_word_answer", "last_word:last_word_answer")
    probes = (
        ({}, "Rivers feed lakes and lakes feed rivers", "Rivers feed lakes and meet the sea"),
    )
    difference = "the last word"
    excludes = (
        "keywords:word_once", "count:count_unique", "startend:end_checker", "startend:quotation",
        "detectable_format:json_format",
    )  # fmt: skip


class NoDot(TrainableType):
    """No full stop anywhere."""

    id = "punctuation:punctuation_dot"
    train = (
        "Do not use any full stops.",
        "Write your whole answer without a single dot.",
        "Your response must not contain the character . at all.",
    )
    heldout = ("The dot is off limits, as punctuation and otherwise.",)
    siblings = ("keywords:forbidden_words", "length_constraints:number_words")
    probes = (({}, "Rivers are long!", "Rivers are long."),)
    difference = "full stops"
    excludes = ("detectable_content:postscript", "count:counting_composition")


class NoExclamation(TrainableType):
    """No exclamation mark anywhere."""

    id = "punctuation:punctuation_exclamation"
    train = (
        "Do not use any exclamation marks.",
        "Write your whole answer without a single exclamation mark.",
        "Your response must not contain the character ! at all.",
    )
    heldout = ("Exclamation marks are off limits from start to end.",)
    siblings = ("keywords:forbidden_words", "length_constraints:number_words")
    probes = (({}, "Rivers are long.", "Rivers are long!"),)
    difference = "exclamation marks"


TYPES = (
    ExcludeWord(), SpecificPosition(), NoAdjacentConsecutive(), Palindrome(), StartEnd(),
    FirstWordSentence(), FirstWordAnswer(), LastWordSentence(), LastWordAnswer(), NoDot(),
    NoExclamation(),
)  # fmt: skip
