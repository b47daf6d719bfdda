"""IFBench types about words and sentences: first letters, lengths, positions, repeats."""

from __future__ import annotations

import string
from collections import Counter

from gapo_jax.constraints import official
from gapo_jax.constraints.base import pick, shuffled
from gapo_jax.constraints.ifbench_base import CountType, IFBenchType
from gapo_jax.constraints.words import COMMON_WORDS, absent_words, content_words

_BARE = str.maketrans("", "", string.punctuation)
_LETTERS = ("words:no_consecutive", "words:prime_lengths", "count:numbers")


def sentences(text: str) -> list[str]:
    """Return the sentences as IFBench's own splitter finds them."""
    from gapo_jax.constraints import ifbench_official

    ifbench_official.registry()
    from if_verifiable.ifbench.instructions_util import split_into_sentences

    return split_into_sentences(text)


class Alphabet(IFBenchType):
    """Each word starts with the next letter of the alphabet."""

    id = "words:alphabet"
    train = (
        "Each word must start with the next letter of the alphabet; after Z comes A again.",
        "Let the first letters of your words run through the alphabet in order, from Z back to A.",
        "Begin every word with the letter that follows the one before it, looping after Z.",
    )
    heldout = ("Initials ascend: whatever opens on D is followed by something on E, and so forth.",)
    siblings = _LETTERS
    probes = (({}, "Boats carry dry earth.", "Boats carry dry sand."),)
    difference = "first letters"


class Vowel(IFBenchType):
    """One paragraph with three kinds of vowels at most."""

    id = "words:vowel"
    train = (
        "Write one paragraph whose words contain only three types of vowels.",
        "In a single paragraph, use no more than three of the vowels a, e, i, o, u.",
        "At most three different vowels may occur, and all stands in one paragraph.",
    )
    heldout = ("Do without two of a, e, i, o and u, and break no line.",)
    siblings = _LETTERS
    probes = (({}, "The red hen went west.", "The red hen sat on a bus in it."),)
    difference = "which vowels occur"


class Consonants(IFBenchType):
    """A consonant cluster in each word."""

    id = "words:consonants"
    train = (
        "Each word needs a consonant cluster: two or more consonants together.",
        "Use only words in which two consonants stand side by side.",
        "Every word must have at least one pair of neighbouring consonants.",
    )
    heldout = ("No term may lack a spot where b, c, d or their like meet another such letter.",)
    siblings = ("words:prime_lengths", "words:no_consecutive")
    probes = (({}, "Cold winds bring storms", "Cold winds are storms"),)
    difference = "letters inside a word"


class Palindromes(IFBenchType):
    """Ten palindromes of five letters or more."""

    id = "words:palindrome"
    train = (
        "Include at least 10 single-word palindromes of 5 letters or more.",
        "Ten or more words, each at least 5 letters long, must read the same backwards.",
        "Work no fewer than 10 palindromes of at least five characters into the text.",
    )
    heldout = ("Words such as level, alike from both ends: ten or above, none below five letters.",)
    siblings = ("count:numbers", "count:pronouns")
    _TEN = "level radar civic kayak rotor refer madam tenet stats solos"
    probes = (({}, _TEN, _TEN.replace("radar", "radio")),)
    difference = "a palindrome"


class PrimeLengths(IFBenchType):
    """Only words of prime length."""

    id = "words:prime_lengths"
    train = (
        "Use only words whose length is a prime number.",
        "Every word must have 2, 3, 5, 7, 11 or another prime number of letters.",
        "Each word's number of letters has to be prime.",
    )
    heldout = ("Terms of one, four, six, eight, nine or ten characters are not allowed.",)
    siblings = ("words:consonants", "words:no_consecutive")
    probes = (({}, "The river is wet.", "The river is cold."),)
    difference = "the length of a word"


class StartVerb(IFBenchType):
    """The first word is a verb, as NLTK's tagger says."""

    id = "words:start_verb"
    train = (
        "Start the answer with a verb.",
        "The first word of the reply must be a verb.",
        "Open with a verb.",
    )
    heldout = ("What comes first has to name an action.",)
    siblings = ("words:words_position", "words:no_consecutive")
    probes = (({}, "Go to the river.", "The river runs."),)
    difference = "the first word"


class Repeats(CountType):
    """No word more than so many times."""

    id = "words:repeats"
    field, noun, demand, start = "small_n", "time", "at most", (1, 6)
    train = (
        "Do not use any word more than {things}.",
        "No word may occur more than {things}.",
        "Each word can be written {things} at most.",
    )
    heldout = ("Past {n}, all further use of the same term is off limits.",)
    probes = (({"small_n": 1}, "The river meets a lake.", "The river meets the lake."),)
    difference = "whether a word repeats"

    def count(self, response):
        return max(Counter(response.lower().translate(_BARE).split()).values(), default=0)


class Syllables(IFBenchType):
    """Words with odd and even numbers of syllables in turn."""

    id = "words:odd_even_syllables"
    train = (
        "Alternate between words with odd and even numbers of syllables.",
        "A word with an odd number of syllables must be followed by one with an even number, and"
        " the other way round.",
        "Let odd and even syllable counts take turns from word to word.",
    )
    heldout = ("Neighbouring terms have to differ in the parity of their beats.",)
    siblings = ("words:no_consecutive", "words:repeats")
    probes = (({}, "The river runs", "The deep river"),)
    difference = "how many syllables a word has"


class LastFirst(IFBenchType):
    """The last word of a sentence is the first of the next."""

    id = "words:last_first"
    train = (
        "The last word of each sentence must be the first word of the next one.",
        "Begin every sentence with the word that the one before it ended on.",
        "Chain the sentences: what ends one opens the next.",
    )
    heldout = ("Take up, as you start each further sentence, the very term you closed with.",)
    siblings = ("sentence:increment", "words:no_consecutive")
    probes = (({}, "I see rain. Rain falls.", "I see rain. Snow falls."),)
    difference = "the first word of a sentence"


class ParagraphLastFirst(IFBenchType):
    """Each paragraph ends with the word that it starts with."""

    id = "words:paragraph_last_first"
    train = (
        "Each paragraph must end with the word that it started with; new lines divide paragraphs.",
        "Close every paragraph with its own first word, one paragraph a line.",
        "The first word of a paragraph has to be its last word too.",
    )
    heldout = ("Let each line of prose come round: its opening term concludes it as well.",)
    siblings = ("words:last_first", "words:no_consecutive")
    probes = (({}, "Rain brings more rain", "Rain brings more snow"),)
    difference = "the last word"


class NoConsecutive(IFBenchType):
    """No two neighbouring words share their first letter."""

    id = "words:no_consecutive"
    train = (
        "No two consecutive words may share the same first letter.",
        "Never let a word begin with the same letter as the word before it.",
        "Neighbouring words must start with different letters.",
    )
    heldout = ("Alliteration is out, even between just a pair of adjoining terms.",)
    siblings = ("words:repeats", "count:numbers")
    probes = (({}, "The river meets a lake.", "The river runs a lake."),)
    difference = "first letters"


class SpecificPosition(IFBenchType):
    """A keyword as the m-th word of the n-th sentence."""

    id = "words:keywords_specific_position"
    train = (
        'In sentence {n}, make "{keyword}" word number {m}.',
        'Put the word "{keyword}" into sentence {n}, at place {m} of it.',
        'Word {m} of sentence {n} must be "{keyword}".',
    )
    heldout = ('Going to sentence {n} and counting to {m} there, one has to find "{keyword}".',)
    probes = (
        ({"keyword": "deep", "n": 2, "m": 3}, "It runs. It is deep.", "It runs. It is cold."),
    )
    difference = "one word"

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            word = pick(rng, list(words) or COMMON_WORDS)
            return {"keyword": word, "n": int(rng.integers(1, 4)), "m": int(rng.integers(1, 7))}
        split = [official.word_tokenize(part) for part in sentences(response)]
        places = [
            (n, m, word)
            for n, tokens in enumerate(split[:8], 1)
            for m, word in enumerate(tokens[:12], 1)
            if word.isalpha()
        ]
        if not places:
            return None if satisfied else {"keyword": "water", "n": 1, "m": 1}
        n, m, word = pick(rng, places)
        if not satisfied:
            other = pick(rng, places)[2]
            word = other if other != word else pick(rng, absent_words(response, words))
        return {"keyword": word, "n": n, "m": m}

    def near_misses(self, rng, kwargs, response, words):
        for move in shuffled(rng, (-1, 1)):
            if kwargs["m"] + move >= 1:
                yield {**kwargs, "m": kwargs["m"] + move}
            if kwargs["n"] + move >= 1:
                yield {**kwargs, "n": kwargs["n"] + move}


class WordsPosition(IFBenchType):
    """The second word and the last but one are a keyword."""

    id = "words:words_position"
    train = (
        'The second word and the last word but one of your answer must be "{keyword}".',
        'Make "{keyword}" both the second word and the second to last one.',
        'Write "{keyword}" in second place and again in the place before the last.',
    )
    heldout = ('One word in from either end there has to stand "{keyword}".',)
    probes = (({"keyword": "we"}, "Here we go as we said", "Here we go as it said"),)
    difference = "the last word but one"

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"keyword": pick(rng, list(words) or COMMON_WORDS)}
        tokens = official.word_tokenize(response)
        if satisfied:
            return {"keyword": tokens[1]} if len(tokens) > 1 else None
        second = [tokens[1]] if len(tokens) > 1 and tokens[1].isalpha() else []
        return {"keyword": pick(rng, second or absent_words(response, words))}

    def near_misses(self, rng, kwargs, response, words):
        for word in shuffled(rng, [*content_words(response)[:6], *absent_words(response, words)]):
            yield {"keyword": word}


class AlliterationIncrement(IFBenchType):
    """Each sentence has more alliterative words than the one before."""

    id = "sentence:alliteration_increment"
    train = (
        "Each sentence must have a longer run of alliterative words than the one before it.",
        "From sentence to sentence, more words in a row have to begin with the same letter.",
        "Let the alliterations grow: every sentence has more of them than its predecessor.",
    )
    heldout = ("Alike initials, side by side, are to multiply with every further sentence.",)
    siblings = ("sentence:increment", "words:no_consecutive")
    probes = (({}, "It runs. Big boats go.", "It runs. Two boats go."),)
    difference = "first letters"


class SentenceKeyword(IFBenchType):
    """A keyword in the n-th sentence."""

    id = "sentence:keyword"
    train = (
        'Include the word "{word}" in sentence {N}.',
        'Sentence {N} must contain "{word}".',
        'Use "{word}" in sentence number {N}.',
    )
    heldout = ('When the reader gets to sentence {N}, "{word}" has to be met with in it.',)
    probes = (
        ({"word": "deep", "N": 2}, "It runs. It is deep.", "It runs. It is cold."),
        ({"word": "deep", "N": 2}, "It runs. It is deep.", "It is deep. It runs."),
    )
    difference = "one word of one sentence"

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            word = pick(rng, list(words) or COMMON_WORDS)
            return {"word": word, "N": int(rng.integers(1, 4))}
        split = sentences(response)[:10]
        usable = [(n, w) for n, part in enumerate(split, 1) for w in content_words(part)]
        if not usable:
            return None if satisfied else {"word": pick(rng, COMMON_WORDS), "N": 1}
        n, word = pick(rng, usable)
        if satisfied:
            return {"word": word, "N": n}
        # A word of another sentence, or the same word one sentence on.
        away = [w for m, w in usable if m != n and w not in split[n - 1].lower()]
        if away:
            return {"word": pick(rng, away), "N": n}
        return {"word": word, "N": n + 1}

    def near_misses(self, rng, kwargs, response, words):
        for move in shuffled(rng, (-1, 1)):
            if kwargs["N"] + move >= 1:
                yield {**kwargs, "N": kwargs["N"] + move}
        for word in shuffled(rng, absent_words(response, words))[:3]:
            yield {**kwargs, "word": word}


class SentenceIncrement(CountType):
    """Each sentence has exactly so many words more than the one before."""

    id = "sentence:increment"
    field, noun, demand, start = "small_n", "word", "exactly", (1, 4)
    train = (
        "Each sentence must have exactly {n} more words than the previous one.",
        "Let every sentence be {things} longer than the one before it.",
        "The number of words grows by {n} from one sentence to the next.",
    )
    heldout = ("Lengths in words climb in steps of {n}, sentence by sentence.",)
    probes = (({"small_n": 2}, "It runs. It runs very far.", "It runs. It runs far."),)
    difference = "how many words a sentence has"

    def measure(self, kwargs, response):
        return None

    def count(self, response):
        lengths = [len(part.translate(_BARE).split()) for part in sentences(response)]
        return max(0, lengths[1] - lengths[0]) if len(lengths) > 1 else 1


TYPES = (
    Alphabet(),
    Vowel(),
    Consonants(),
    Palindromes(),
    PrimeLengths(),
    StartVerb(),
    Repeats(),
    Syllables(),
    LastFirst(),
    ParagraphLastFirst(),
    NoConsecutive(),
    SpecificPosition(),
    WordsPosition(),
    AlliterationIncrement(),
    SentenceKeyword(),
    SentenceIncrement(),
)
