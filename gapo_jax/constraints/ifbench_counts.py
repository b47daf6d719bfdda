"""IFBench types that count: words, names, numbers, pronouns, shares, overlaps."""

from __future__ import annotations

import re
import string

from gapo_jax.constraints.base import pick, shuffled
from gapo_jax.constraints.ifbench_base import CountType, IFBenchType
from gapo_jax.constraints.ifbench_official import STOP_WORDS
from gapo_jax.constraints.words import COMMON_WORDS, content_words

_STRIP = string.punctuation + " "
_BARE = str.maketrans("", "", string.punctuation)
NAMES: tuple[str, ...] = tuple(
    """Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander
    Amelia Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella
    Jacob Scarlett Nathan Victoria Elijah Layla Nicholas Audrey David Hannah Christopher Penelope
    Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan""".split()
)
PRONOUNS = frozenset(
    """i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his
    himself she her hers herself it its itself they them their theirs themselves""".split()
)


class WordCountRange(IFBenchType):
    """Between so many and so many words."""

    id = "count:word_count_range"
    train = (
        "Write between {min_words} and {max_words} words.",
        "The answer must have no fewer than {min_words} and no more than {max_words} words.",
        "Keep the length within {min_words} to {max_words} words.",
    )
    heldout = ("Neither under {min_words} words nor over {max_words} is acceptable.",)
    probes = (
        ({"min_words": 3, "max_words": 5}, "The quiet river runs.", "The quiet river runs on far."),
    )
    difference = "how many words there are"

    def measure(self, kwargs, response):
        count = self._count(response)
        if count < kwargs["min_words"]:
            return count, "at least", kwargs["min_words"]
        return count, "less than", kwargs["max_words"] + 1

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            low = int(rng.integers(2, 9)) * 10
            return {"min_words": low, "max_words": low + int(rng.integers(1, 4)) * 10}
        count = self._count(response)
        width = max(4, count // 5)
        low = max(1, count - int(rng.integers(0, width + 1)))
        if not satisfied:  # the same window, moved past the count on either side
            low = count + 1 + int(rng.integers(0, 5))
            if count > width + 2 and rng.random() < 0.5:
                low = max(1, count - width - 1 - int(rng.integers(0, 5)))
        return {"min_words": low, "max_words": low + width}

    def near_misses(self, rng, kwargs, response, words):
        for _ in range(4):
            yield self.propose(rng, response, False, words, None)

    @staticmethod
    def _count(response):
        return len(re.findall(r"\w+", response))


class UniqueWords(CountType):
    """At least so many different words."""

    id = "count:unique_word_count"
    field, noun, start = "N", "different word", (10, 40)
    train = (
        "Use at least {things}.",
        "Your vocabulary here must reach {n} or more distinct words.",
        "The text needs no fewer than {things}.",
    )
    heldout = ("Repetitions aside, count {n} words at a minimum.",)
    probes = (({"N": 4}, "The river runs far.", "The river runs the river."),)
    difference = "whether words repeat"

    def count(self, response):
        return len({word.strip(_STRIP) for word in response.lower().split()})


class Conjunctions(CountType):
    """At least so many different coordinating conjunctions."""

    id = "count:conjunctions"
    field, noun, high, start = "small_n", "coordinating conjunction", 7, (2, 5)
    train = (
        "Use at least {n} different coordinating conjunctions, such as and, but, or.",
        "Work {n} or more distinct coordinating conjunctions into the text.",
        "No fewer than {n} different coordinating conjunctions should occur.",
    )
    heldout = ("Join clauses by a minimum of {n} unlike words of the kind of yet and nor.",)
    probes = (({"small_n": 2}, "Rivers bend and turn but run.", "Rivers bend and turn and run."),)
    difference = "which small words join the clauses"

    def count(self, response):
        # The words are told apart as they are written, marks and capitals included.
        known = ("and", "but", "for", "nor", "or", "so", "yet")
        return len({word for word in response.split() if word.strip(_STRIP).lower() in known})


class PersonNames(CountType):
    """At least so many of fifty given names."""

    id = "count:person_names"
    field, noun, high = "N", "person name", 50
    _LIST = ", ".join(NAMES)
    train = (
        f"Mention at least {{n}} different names of this list: {_LIST}.",
        f"Let {{n}} or more persons occur whose names stand here: {_LIST}.",
        f"From these names use no fewer than {{n}}: {_LIST}.",
    )
    heldout = (f"A minimum of {{n}} people, called as in this register: {_LIST}.",)
    probes = (({"N": 2}, "Emma met Liam by the river.", "Emma met Bob by the river."),)
    difference = "a name"

    def count(self, response):
        return sum(name in response for name in NAMES)


class Numbers(CountType):
    """Exactly so many numbers in digits."""

    id = "count:numbers"
    field, noun, demand = "N", "number", "exactly"
    train = (
        "Include exactly {things}, written in digits.",
        "There must be {things} in the text, in digits, no more and no fewer.",
        "Use digits for precisely {things}.",
    )
    heldout = ("Whoever counts the figures in it has to find {n}.",)
    probes = (({"N": 1}, "It took 3 days.", "It took three days."),)
    difference = "digits"

    def count(self, response):
        return len(re.findall(r"\d+", response.translate(_BARE)))


class Pronouns(CountType):
    """At least so many personal pronouns."""

    id = "count:pronouns"
    field, noun = "N", "pronoun"
    train = (
        "Use at least {things}, such as I, you, her, ours.",
        "The text should hold {n} or more personal pronouns.",
        "No fewer than {n} personal pronouns must occur.",
    )
    heldout = ("Words of the sort of he, them and itself are to stand there {n} times at least.",)
    probes = (({"N": 2}, "We like it here.", "We like tea here."),)
    difference = "a pronoun"

    def count(self, response):
        words = response.replace("/", " ").lower().translate(_BARE).split()
        return sum(word in PRONOUNS for word in words)


class Punctuation(IFBenchType):
    """Every standard punctuation mark, the interrobang among them."""

    id = "count:punctuation"
    train = (
        "Use every standard punctuation mark at least once: . , ! ? ; : and the interrobang ?!",
        "All of . , ! ? ; : must occur, and ?! as well.",
        "Leave no punctuation mark out: period, comma, exclamation mark, question mark, semicolon,"
        " colon, and ?! too.",
    )
    heldout = ("Whatever marks a sentence may bear, from comma to ?!, show each of them once.",)
    siblings = ("count:numbers", "count:pronouns")
    probes = (({}, "Yes, no; so: go. Now! Why? What?!", "Yes, no, so: go. Now! Why? What?!"),)
    difference = "a punctuation mark"


class Japanese(CountType):
    """Every n-th word is Japanese."""

    id = "count:words_japanese"
    field, noun, start = "N", "word", (2, 9)
    train = (
        "Make every word whose place is a multiple of {n} Japanese.",
        "Counting words, each one at a multiple of {n} has to be in Japanese.",
        "One word in {n} must be Japanese: those at the places that {n} divides.",
    )
    heldout = ("Let a term written in kana or kanji fall on all positions divisible by {n}.",)
    probes = (({"N": 2}, "The 川 is 静か today", "The river is 静か today"),)
    difference = "Japanese letters"

    def measure(self, kwargs, response):
        return None

    def propose(self, rng, response, satisfied, words, task):
        if response is None or not satisfied:
            return {"N": int(rng.integers(2, 9))}
        if not re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", response):
            return (
                None  # beyond the last word nothing is asked: true of any text, and no constraint
            )
        return {"N": int(rng.integers(2, 9))}

    def near_misses(self, rng, kwargs, response, words):
        for number in shuffled(rng, (2, 3, 4, 5)):
            yield {"N": number}


class KeywordsMultiple(IFBenchType):
    """Five keywords, once, twice, three, five and seven times."""

    id = "count:keywords_multiple"
    train = (
        'Write "{keyword1}" once, "{keyword2}" twice, "{keyword3}" three times, "{keyword4}" five'
        ' times and "{keyword5}" seven times.',
        'Use these words so often: "{keyword1}" 1, "{keyword2}" 2, "{keyword3}" 3, "{keyword4}" 5,'
        ' "{keyword5}" 7 times.',
        'The word "{keyword1}" has to occur once, "{keyword2}" twice, "{keyword3}" 3 times,'
        ' "{keyword4}" 5 times, "{keyword5}" 7 times.',
    )
    heldout = (
        'I want to find 1 x "{keyword1}", 2 x "{keyword2}", 3 x "{keyword3}", 5 x "{keyword4}" and'
        ' 7 x "{keyword5}".',
    )
    _FIVE = {f"keyword{i}": w for i, w in enumerate(("tea", "sun", "oak", "fog", "ivy"), 1)}
    _TEXT = "tea sun sun" + " oak" * 3 + " fog" * 5 + " ivy" * 7
    probes = ((_FIVE, _TEXT, _TEXT + " ivy"),)
    difference = "how often a word occurs"

    def propose(self, rng, response, satisfied, words, task):
        if response is None or not satisfied:
            pool = list(dict.fromkeys((*words, *content_words(response or ""), *COMMON_WORDS)))
            return {f"keyword{i}": word for i, word in enumerate(shuffled(rng, pool)[:5], 1)}
        found: dict[int, list[str]] = {}
        lowered = response.lower()
        for word in content_words(response):
            found.setdefault(lowered.count(word), []).append(word)
        if not all(found.get(number) for number in (1, 2, 3, 5, 7)):
            return None
        return {
            f"keyword{i}": pick(rng, found[number]) for i, number in enumerate((1, 2, 3, 5, 7), 1)
        }

    def near_misses(self, rng, kwargs, response, words):
        names = list(kwargs)
        for first, second in zip(names, names[1:]):  # two words exchanged
            yield {**kwargs, first: kwargs[second], second: kwargs[first]}


class StopWords(CountType):
    """No more than such a share of stop words."""

    id = "ratio:stop_words"
    field, noun, demand, high, start = "percentage", "percent", "at most", 100, (30, 60)
    train = (
        "Stop words may make up no more than {n}% of all words.",
        "Keep the share of stop words at or below {n}% of the text.",
        "At most {n}% of your words should be stop words.",
    )
    heldout = ("Filler such as the, of, and is limited to {n} words in a hundred.",)
    probes = (({"percentage": 20}, "Rivers carry sand.", "Rivers carry the sand of it."),)
    difference = "small words"

    def count(self, response):
        words = re.findall(r"\w+", response)
        held = sum(word.lower() in _STOP for word in words)
        return -(-100 * held // len(words)) if words else 100


_STOP = frozenset(STOP_WORDS)


class SentenceType(IFBenchType):
    """Two declarative sentences for each question."""

    id = "ratio:sentence_type"
    train = (
        "Keep a 2:1 ratio of declarative to interrogative sentences.",
        "For each question write exactly two statements.",
        "There must be twice as many statements as questions.",
    )
    heldout = ("One sentence in three is to ask something; the others assert.",)
    siblings = ("ratio:sentence_balance", "count:numbers")
    probes = (({}, "It runs. It is deep. Is it far?", "It runs. It is deep. It is far."),)
    difference = "question marks"


class SentenceBalance(IFBenchType):
    """As many statements as questions as exclamations."""

    id = "ratio:sentence_balance"
    train = (
        "Balance declarative, interrogative and exclamatory sentences: as many of each.",
        "Use equally many statements, questions and exclamations.",
        "Statements, questions and exclamations must occur in the same number.",
    )
    heldout = ("Periods, question marks and shouts are to close an equal count of sentences.",)
    siblings = ("ratio:sentence_type", "count:numbers")
    probes = (({}, "It runs. Is it far? Go there!", "It runs. Is it far? Go there."),)
    difference = "the marks that end sentences"


class Overlap(IFBenchType):
    """Such a share of letter trigrams in common with a text, within two percent."""

    id = "ratio:overlap"
    train = (
        "Keep a trigram overlap of {percentage}% (give or take 2%) with this text:"
        ' "{reference_text}"',
        'Of your letter trigrams, {percentage}% (2% more or less) must occur in "{reference_text}"',
        'Share {percentage}% (plus or minus 2%) of the trigrams with "{reference_text}"',
    )
    heldout = (
        "Measured in runs of three characters, {percentage} in a hundred (2 either way) are to be"
        ' those of "{reference_text}"',
    )
    probes = (
        (
            {"reference_text": "The quiet river runs.", "percentage": 100},
            "The quiet river runs.",
            "The quiet river walks.",
        ),
    )
    difference = "words of the reference"

    def measure(self, kwargs, response):
        return self._share(kwargs["reference_text"], response), "exactly", kwargs["percentage"]

    def propose(self, rng, response, satisfied, words, task):
        reference = task or "Rivers carry sand and news from the hills to the open sea."
        if response is None:
            return {"reference_text": reference, "percentage": int(rng.integers(1, 8)) * 10}
        share = self._share(reference, response)
        move = int(rng.integers(-1, 2)) if satisfied else pick(rng, (-12, -8, -5, 5, 8, 12))
        return {"reference_text": reference, "percentage": min(100, max(0, share + move))}

    def near_misses(self, rng, kwargs, response, words):
        share = self._share(kwargs["reference_text"], response)
        for move in shuffled(rng, (-8, -5, 5, 8)):
            if 0 <= share + move <= 100:
                yield {**kwargs, "percentage": share + move}

    @staticmethod
    def _share(reference, response):
        def trigrams(text):
            return {text[i : i + 3] for i in range(len(text) - 2)}

        mine = trigrams(response)
        return round(100 * len(mine & trigrams(reference)) / len(mine)) if mine else 0


class SentenceWords(IFBenchType):
    """Three sentences of equal length in characters."""

    id = "ratio:sentence_words"
    train = (
        "Answer in three sentences of the same number of characters but of different words.",
        "Give exactly three sentences, equally many characters long, with all different words.",
        "Write three sentences; each has as many characters as the others and its own words.",
    )
    heldout = ("A trio of sentences, letter for letter of one length, sharing no word.",)
    siblings = ("ratio:sentence_type", "ratio:sentence_balance")
    probes = (({}, "It is deep. We go home. They leave.", "It is deep. We go home. They left."),)
    difference = "the length of a sentence"


TYPES = (
    WordCountRange(),
    UniqueWords(),
    Conjunctions(),
    PersonNames(),
    Numbers(),
    Punctuation(),
    Japanese(),
    Pronouns(),
    KeywordsMultiple(),
    StopWords(),
    SentenceType(),
    SentenceBalance(),
    Overlap(),
    SentenceWords(),
)
