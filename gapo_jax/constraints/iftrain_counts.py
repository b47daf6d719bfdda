"""IFTrain types that count: how often a word or a letter occurs, how many words there are.

`iftrain_checks.py` gives their verdicts. Phrasings say what the verdict measures, which is not
always what the rows of AI2 say: their word count, for one, is worded as an exact number.
"""

from __future__ import annotations

from gapo_jax.constraints import iftrain_checks as checks
from gapo_jax.constraints.base import TrainableType, counted, pick, shuffled
from gapo_jax.constraints.counting import RelationType
from gapo_jax.constraints.ifeval_keywords import Frequency, LetterFrequency
from gapo_jax.constraints.iftrain_words import free_word
from gapo_jax.constraints.words import COMMON_WORDS, absent_words, content_words


def _by_count(response, number) -> list[str]:
    """Return the content words that occur so often in a text, as the verdicts count."""
    return [w for w in content_words(response) if checks.occurrences(response, w) == number]


class WordOnce(TrainableType):
    """A keyword occurs exactly once (inside other words too), ignoring case."""

    id = "keywords:word_once"
    train = (
        'Use the word "{keyword}" exactly once.',
        'Your answer should mention "{keyword}" one time and no more.',
        'Write "{keyword}" a single time in the text.',
    )
    heldout = ('"{keyword}" must turn up once, neither more nor less often.',)
    probes = (
        (
            {"keyword": "river"},
            "The quiet river runs to the sea.",
            "The quiet river runs to a wide river.",
        ),
    )
    difference = "how often one word occurs"
    excludes = ("keywords:start_end",)

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"keyword": free_word(rng, words)}
        fitting = _by_count(response, 1)
        if satisfied:
            return {"keyword": pick(rng, fitting)} if fitting else None
        often = [word for word in content_words(response) if word not in fitting]
        # Half of the misses have the word too often, where there is such a word.
        if often and rng.random() < 0.5:
            return {"keyword": pick(rng, often)}
        return {"keyword": pick(rng, absent_words(response, words))}

    def near_misses(self, rng, kwargs, response, words):
        for _ in range(4):
            yield self.propose(rng, response, False, words, None)


class WordCount(Frequency):
    """A keyword occurs at least N times, or fewer than N times: the verdict of IFEval's type."""

    id = "keywords:word_count_different_numbers"
    train = (
        {
            "at least": 'In your response, let "{keyword}" appear {times} or more.',
            "less than": 'In your response, let "{keyword}" appear below {frequency} times.',
        },
        {
            "at least": 'Bring in the word "{keyword}" at a minimum {times}.',
            "less than": 'Bring in the word "{keyword}" under {frequency} times in all.',
        },
        {
            "at least": 'Say "{keyword}" {times} at the least.',
            "less than": 'Say "{keyword}" less than {frequency} times.',
        },
    )
    heldout = (
        {
            "at least": 'Count how often "{keyword}" stands there: {frequency} or above is right.',
            "less than": 'Count how often "{keyword}" stands there: anything under {frequency} is'
            " right.",
        },
    )
    excludes = (Frequency.id,)


class CountIncrement(TrainableType):
    """One keyword occurs exactly once and another one exactly twice, ignoring case."""

    id = "count:count_increment_word"
    train = (
        'Use the word "{keyword1}" once and the word "{keyword2}" twice.',
        'Write "{keyword1}" exactly one time and "{keyword2}" exactly two times.',
        'Your text should hold "{keyword1}" a single time and "{keyword2}" two times.',
    )
    heldout = ('Of "{keyword1}" I want one mention, of "{keyword2}" a pair of mentions.',)
    probes = (
        (
            {"keyword1": "river", "keyword2": "sea"},
            "The river meets the sea, a deep sea.",
            "The river meets the sea, a deep lake.",
        ),
    )
    difference = "how often two words occur"
    excludes = ("count:count_unique", "count:counting_composition")

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            drawn = shuffled(rng, list(dict.fromkeys((*words, *COMMON_WORDS))))
            return {"keyword1": drawn[0], "keyword2": drawn[1]}
        once, twice = _by_count(response, 1), _by_count(response, 2)
        if satisfied:
            if not once or not twice:
                return None
            return {"keyword1": pick(rng, once), "keyword2": pick(rng, twice)}
        # One of the two is right where that is possible, the other one is not there.
        absent = absent_words(response, words)
        if twice and rng.random() < 0.5:
            return {"keyword1": pick(rng, absent), "keyword2": pick(rng, twice)}
        first = pick(rng, once or absent)
        return {"keyword1": first, "keyword2": pick(rng, [w for w in absent if w != first] or once)}

    def near_misses(self, rng, kwargs, response, words):
        one, two = kwargs["keyword1"], kwargs["keyword2"]
        absent = pick(rng, absent_words(response, words))
        options = [(two, one), (absent, two), (one, absent)]
        for first, second in shuffled(rng, options):
            yield {"keyword1": first, "keyword2": second}


class LowercaseCounting(TrainableType):
    """At most N words in small letters."""

    id = "count:lowercase_counting"
    train = (
        "Use at most {words} in lowercase.",
        "Your answer may contain no more than {words} written in small letters.",
        "Keep to {N} lowercase words or fewer.",
    )
    heldout = ("The number of words in small letters must not go beyond {N}.",)
    probes = (({"N": 2}, "THE river RUNS to SEA", "THE river runs to SEA"),)
    difference = "capital letters"
    excludes = ("change_case:english_lowercase",)

    def fields(self, kwargs):
        return {**kwargs, "words": counted(kwargs["N"], "word")}

    def measure(self, kwargs, response):
        return checks.count_lowercase(response), "less than", kwargs["N"] + 1

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"N": int(rng.integers(2, 21))}
        count = checks.count_lowercase(response)
        spread = max(3, count // 4)
        if satisfied:
            return {"N": int(rng.integers(max(1, count), max(1, count) + spread))}
        return {"N": int(rng.integers(max(1, count - spread), count))} if count > 1 else None

    def near_misses(self, rng, kwargs, response, words):
        changed = self.propose(rng, response, False, words, None)
        if changed is not None:
            yield changed


class LetterCounting(RelationType):
    """At least N letters in all, or fewer than N."""

    id = "letters:letter_counting"
    relation = "relation"
    train = (
        {
            "at least": "Answer with at least {letters}.",
            "less than": "Answer with fewer than {letters}.",
        },
        {
            "at least": "Your text should have {N} or more letters in total.",
            "less than": "Your text should have under {N} letters in total.",
        },
        {
            "at least": "Write no fewer than {letters}.",
            "less than": "Write less than {letters}.",
        },
    )
    heldout = (
        {
            "at least": "All letters together have to reach {N}.",
            "less than": "All letters together have to stay below {N}.",
        },
    )
    probes = (({"N": 8, "relation": "less than"}, "A river.", "A quiet river."),)
    difference = "how many letters there are"
    number, low, high, step = "N", 2, 100_000, 5

    def fields(self, kwargs):
        return {**kwargs, "letters": counted(kwargs["N"], "letter")}

    def count(self, kwargs, response):
        return checks.count_letters(response)

    def draw(self, rng, relation, words):
        return {"N": 10 * int(rng.integers(2, 21))}

    def spread(self, count):
        return max(5, count // 2)


class LetterCounting2(LetterFrequency):
    """One letter occurs at least N times, or fewer than N: the verdict of IFEval's type."""

    id = "letters:letter_counting2"
    train = (
        {
            "at least": 'Bring in the letter "{letter}" at least {times}.',
            "less than": 'Bring in the letter "{letter}" fewer than {let_frequency} times.',
        },
        {
            "at least": 'Across the answer, "{letter}" should be written {times} or more.',
            "less than": 'Across the answer, "{letter}" should be written under {let_frequency}'
            " times.",
        },
        {
            "at least": 'Let "{letter}" occur no fewer than {times}, in either case.',
            "less than": 'Let "{letter}" occur less than {let_frequency} times, in either case.',
        },
    )
    heldout = (
        {
            "at least": 'Whoever counts your "{letter}" letters should get to {let_frequency}.',
            "less than": 'Whoever counts your "{letter}" letters should not get to'
            " {let_frequency}.",
        },
    )
    excludes = (LetterFrequency.id,)


class CountUnique(TrainableType):
    """No word and no mark occurs twice, in the same spelling."""

    id = "count:count_unique"
    train = (
        "Use every word once only, and no punctuation mark twice.",
        "No word or mark may be repeated in your answer.",
        "Write so that each word and each mark is different from all others.",
    )
    heldout = ("Whatever word or mark has been used must not come back.",)
    siblings = ("keywords:word_once", "length_constraints:number_words")
    probes = (({}, "The river meets a lake.", "The river meets the lake of the town."),)
    difference = "a repeated word"
    excludes = (
        "count:count_increment_word", "count:counting_composition", "first_word:first_word_sent",
        "last_word:last_word_sent", "keywords:start_end", "copy:repeat_phrase",
    )  # fmt: skip


TYPES = (
    WordOnce(), WordCount(), CountIncrement(), LowercaseCounting(), LetterCounting(),
    LetterCounting2(), CountUnique(),
)  # fmt: skip
