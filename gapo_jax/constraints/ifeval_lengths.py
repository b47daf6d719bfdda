"""IFEval types about length: words, sentences, paragraphs, and the first word of a paragraph."""

from __future__ import annotations

import re

from gapo_jax.constraints.base import TrainableType, counted, pick, shuffled
from gapo_jax.constraints.counting import RelationType
from gapo_jax.constraints.text import split_sentences
from gapo_jax.constraints.words import COMMON_WORDS, absent_words, content_words


def count_words(text: str) -> int:
    """Return the number of words as the official checkers count them."""
    return len(re.findall(r"\w+", text))


def count_sentences(text: str) -> int:
    """Return the number of sentences as the official checkers count them."""
    return len(split_sentences(text))


class NumberWords(RelationType):
    """At least N words, or fewer than N words."""

    id = "length_constraints:number_words"
    relation = "relation"
    train = (
        {
            "at least": "Answer with at least {words}.",
            "less than": "Answer with fewer than {words}.",
        },
        {
            "at least": "Use {num_words} or more words.",
            "less than": "Use less than {words}.",
        },
        {
            "at least": "Your reply should be no shorter than {words}.",
            "less than": "Your reply should stay under {words}.",
        },
        {
            "at least": "Write a minimum of {words}.",
            "less than": "Write below {words} in total.",
        },
    )
    heldout = (
        {
            "at least": "The length must reach {words}.",
            "less than": "The length must not reach {words}.",
        },
        {
            "at least": "I need {words} from you at the very least.",
            "less than": "I need a text of not as many as {words}.",
        },
    )
    probes = (
        (
            {"num_words": 8, "relation": "less than"},
            "The quiet river runs to the sea.",
            "The quiet river runs to the deep blue sea.",
        ),
    )
    difference = "how many words there are"
    # Sizes of a short answer, far apart: a discriminator learns no exact counting.
    # Numbers in steps of five words, as people ask for round ones.
    number, low, high, step = "num_words", 4, 2000, 5
    _SIZES = (10, 12, 15, 20, 25, 30, 35, 40, 50, 60)

    def fields(self, kwargs):
        return {**kwargs, "words": counted(kwargs["num_words"], "word")}

    def count(self, kwargs, response):
        return count_words(response)

    def draw(self, rng, relation, words):
        return {"num_words": pick(rng, self._SIZES)}

    def spread(self, count):
        # A wide window: what a discriminator cannot count it cannot learn, so misses are by a good
        # part of the length.
        return max(5, round(0.6 * count))


class NumberSentences(RelationType):
    """At least N sentences, or fewer than N sentences."""

    id = "length_constraints:number_sentences"
    relation = "relation"
    train = (
        {
            "at least": "Write at least {sentences}.",
            "less than": "Write fewer than {sentences}.",
        },
        {
            "at least": "Your answer should have {num_sentences} or more sentences.",
            "less than": "Your answer should have less than {sentences}.",
        },
        {
            "at least": "Use no fewer than {sentences}.",
            "less than": "Keep it under {sentences}.",
        },
        {
            "at least": "Reply in a minimum of {sentences}.",
            "less than": "Reply in not as many as {sentences}.",
        },
    )
    heldout = (
        {
            "at least": "The number of sentences must reach {num_sentences}.",
            "less than": "The number of sentences must remain below {num_sentences}.",
        },
        {
            "at least": "I expect {sentences} or above from you.",
            "less than": "I expect you to stop before you get to {sentences}.",
        },
    )
    probes = (
        (
            {"num_sentences": 2, "relation": "at least"},
            "The river runs. It meets the sea.",
            "The river runs and it meets the sea.",
        ),
    )
    difference = "how many sentences there are"
    # "At least 1" always holds and "fewer than 1" never does, hence numbers from 2.
    number, low = "num_sentences", 2

    def fields(self, kwargs):
        return {**kwargs, "sentences": counted(kwargs["num_sentences"], "sentence")}

    def count(self, kwargs, response):
        return count_sentences(response)

    def draw(self, rng, relation, words):
        return {"num_sentences": int(rng.integers(2, 5))}

    def spread(self, count):
        # Wider for long texts, where one sentence more or less is hardly seen.
        return 2 + count // 4


class NumberParagraphs(TrainableType):
    """Exactly N paragraphs, divided by `***`."""

    id = "length_constraints:number_paragraphs"
    train = (
        "Write exactly {paragraphs} divided by the marker ***.",
        "Your answer must have {paragraphs}, with *** between them.",
        "Split the text into {paragraphs} and put *** between each two of them.",
    )
    heldout = ("I want {paragraphs}, no more and no less, set apart from each other by ***.",)
    probes = (
        ({"num_paragraphs": 2}, "The river runs.\n***\nIt is deep.", "The river runs. It is deep."),
    )
    difference = "the divider ***"

    def fields(self, kwargs):
        return {**kwargs, "paragraphs": counted(kwargs["num_paragraphs"], "paragraph")}

    def measure(self, kwargs, response):
        return self._count(response), "exactly", kwargs["num_paragraphs"]

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"num_paragraphs": int(rng.integers(2, 4))}
        count = self._count(response)
        if satisfied:  # a text without a divider is one paragraph: nothing to ask for
            return {"num_paragraphs": count} if count >= 2 else None
        # Not from 1: exactly one paragraph is what any text without the divider has.
        numbers = [n for n in range(2, max(5, count + 3)) if n != count]
        near = [n for n in numbers if abs(n - count) <= 2] or numbers
        return {"num_paragraphs": pick(rng, near)}

    def near_misses(self, rng, kwargs, response, words):
        count = self._count(response)
        for number in shuffled(rng, [count - 1, count + 1]):
            if number >= 1:
                yield {"num_paragraphs": number}

    @staticmethod
    def _count(response):
        # The release splits at the same divider and refuses blank pieces inside.
        return sum(bool(part.strip()) for part in response.split("***"))


class NthParagraphFirstWord(TrainableType):
    """N paragraphs divided by blank lines, one of which starts with a given word."""

    id = "length_constraints:nth_paragraph_first_word"
    train = (
        "Write {paragraphs} separated by blank lines, and begin paragraph {nth_paragraph} with the"
        ' word "{first_word}".',
        "There should be {paragraphs} with a blank line between any two; the first word of"
        ' paragraph {nth_paragraph} must be "{first_word}".',
        "Give {paragraphs}, divided by empty lines. Paragraph {nth_paragraph} has to start with"
        ' "{first_word}".',
    )
    heldout = (
        "Lay the answer out as {paragraphs} with empty lines between them, where number"
        ' {nth_paragraph} opens on the word "{first_word}".',
    )
    probes = (
        (
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"},
            "The river runs.\n\nIt is deep.",
            "The river runs. It is deep.",
        ),
        (
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"},
            "The river runs.\n\nIt is deep.",
            "The river runs.\n\nWater is deep.",
        ),
    )
    difference = "a blank line or the first word after it"

    def fields(self, kwargs):
        return {**kwargs, "paragraphs": counted(kwargs["num_paragraphs"], "paragraph")}

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            number = int(rng.integers(2, 4))
            first = pick(rng, list(words) or COMMON_WORDS)
            return self._kwargs(number, int(rng.integers(1, number + 1)), first)
        # Number of paragraphs and first words of the response itself; the checker compares both.
        first_words = self._first_words(response)
        number = len(first_words)
        if satisfied:
            usable = [i for i, word in enumerate(first_words) if word]
            if not usable:
                return None
            nth = pick(rng, usable)
            return self._kwargs(number, nth + 1, first_words[nth])
        # Half violated by the word, half by the number of paragraphs.
        if number and rng.random() < 0.5:
            word = pick(rng, absent_words(response, words))
            return self._kwargs(number, int(rng.integers(1, number + 1)), word)
        number = number + 1 if number < 2 or rng.random() < 0.5 else number - 1
        word = pick(rng, content_words(response) or COMMON_WORDS)
        return self._kwargs(number, int(rng.integers(1, number + 1)), word)

    def near_misses(self, rng, kwargs, response, words):
        number, nth, first = kwargs["num_paragraphs"], kwargs["nth_paragraph"], kwargs["first_word"]
        # One of the three arguments changes, the others stay: the nearest misses there are.
        options = [
            (number, nth, pick(rng, absent_words(response, words))),
            (number + 1, nth, first),
        ]
        if nth < number:
            options.append((number - 1, nth, first))
        options += [(number, other, first) for other in range(1, number + 1) if other != nth]
        for option in shuffled(rng, options):
            yield self._kwargs(*option)

    @staticmethod
    def _first_words(response):
        """Return the first word of each paragraph as the official checker reads it ("" if none)."""
        openings = []
        # Blank lines divide, as in the release; blank pieces between two of them are no paragraphs.
        for paragraph in response.split("\n\n"):
            if paragraph.strip():
                word = paragraph.split()[0].lstrip("'").lstrip('"')
                openings.append(re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower())
        return openings

    @staticmethod
    def _kwargs(number, nth, first):
        return {"num_paragraphs": number, "nth_paragraph": nth, "first_word": first}


TYPES = (NumberSentences(), NumberParagraphs(), NumberWords(), NthParagraphFirstWord())
