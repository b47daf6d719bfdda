"""IFTrain types about the form of the whole text: paragraphs, wrapping, copies of a request.

`iftrain_checks.py` gives their verdicts. Phrasings say what the verdict measures: a copied span
ends before its last index, and full stops count as words where words are counted in sentences.
"""

from __future__ import annotations

from gapo_jax.constraints import iftrain_checks as checks
from gapo_jax.constraints.base import TrainableType, counted, pick, shuffled
from gapo_jax.constraints.fields import FIELDS
from gapo_jax.constraints.ifeval_whole_text import REQUESTS, swapped_words
from gapo_jax.constraints.text import word_tokenize

# Phrases to vary, written for this project.
PHRASES: tuple[str, ...] = (
    "a small boat on wide water",
    "the old man and his dog",
    "bread with butter and honey",
    "under the light of stars",
    "we walked home through snow",
    "many roads lead to town",
)
_PARAGRAPHS = (
    "paragraphs:paragraphs", "paragraphs:paragraphs2", "count:counting_composition",
    "length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word",
)  # fmt: skip
# Forms that take hold of every word of a text.
_WRAPPED = (
    "detectable_format:square_brackets", "detectable_format:bigram_wrapping",
    "detectable_format:sentence_hyphens", "detectable_format:json_format", "startend:quotation",
)  # fmt: skip


class Paragraphs(TrainableType):
    """Two paragraphs, divided by `***`."""

    id = "paragraphs:paragraphs"
    train = (
        "Write two paragraphs with the markdown divider *** between them.",
        "Your answer must have 2 paragraphs, separated by ***.",
        "Give a pair of paragraphs and put *** between the first and the second.",
    )
    heldout = ("Split what you say in two, with *** as the line that parts it.",)
    siblings = ("paragraphs:paragraphs2", "length_constraints:number_paragraphs")
    probes = (({}, "The river runs.\n***\nIt is deep.", "The river runs. It is deep."),)
    difference = "the divider ***"
    excludes = _PARAGRAPHS


class Paragraphs2(TrainableType):
    """Two paragraphs, divided by a blank line."""

    id = "paragraphs:paragraphs2"
    train = (
        "Write two paragraphs with a blank line between them.",
        "Your answer must have 2 paragraphs, separated by two line breaks.",
        "Give a pair of paragraphs; one empty line, and only one, divides the text.",
    )
    heldout = ("Split what you say in two, with an empty line where it parts.",)
    siblings = ("paragraphs:paragraphs", "length_constraints:number_paragraphs")
    probes = (({}, "The river runs.\n\nIt is deep.", "The river runs. It is deep."),)
    difference = "the blank line"
    excludes = _PARAGRAPHS


class Composition(TrainableType):
    """Three paragraphs divided by `***`, with equal numbers of sentences and of words in each."""

    id = "count:counting_composition"
    train = (
        "Write 3 paragraphs divided by ***, each of {sentences} with {words} (full stops count).",
        "Give three paragraphs with *** between them. Every one has {sentences}, every sentence"
        " {words}, marks included.",
        "Put *** between your three paragraphs of {sentences}; each sentence is {words} long, its"
        " full stop counted too.",
    )
    heldout = (
        "Three paragraphs, parted by ***, are wanted: {sentences} per paragraph and, marks"
        " counted, {words} per sentence.",
    )
    probes = (
        (
            {"n_sent": 1, "n_words": 4},
            "The river runs.\n***\nIt is deep.\n***\nWe go there.",
            "The river runs.\n***\nIt is very deep.\n***\nWe go there.",
        ),
    )
    difference = "how many words a sentence has"
    excludes = (*_PARAGRAPHS, "count:count_unique", "count:count_increment_word",
                "keywords:frequency", "keywords:letter_frequency")  # fmt: skip

    def fields(self, kwargs):
        return {
            "sentences": counted(kwargs["n_sent"], "sentence"),
            "words": counted(kwargs["n_words"], "word"),
        }

    def propose(self, rng, response, satisfied, words, task):
        if response is None or not satisfied:
            return {"n_sent": int(rng.integers(1, 4)), "n_words": int(rng.integers(4, 10))}
        inside = checks.sentences(checks.DIVIDER.split(response)[0])
        if not inside:
            return None
        return {"n_sent": len(inside), "n_words": max(1, len(word_tokenize(inside[0])))}

    def near_misses(self, rng, kwargs, response, words):
        for field, step in shuffled(
            rng, [("n_sent", 1), ("n_sent", -1), ("n_words", 1), ("n_words", -1)]
        ):
            if kwargs[field] + step >= 1:
                yield {**kwargs, field: kwargs[field] + step}


class SentenceHyphens(TrainableType):
    """Sentences joined by hyphens without blanks around them, and no other hyphens."""

    id = "detectable_format:sentence_hyphens"
    train = (
        "Connect all sentences by hyphens, with no spaces between them.",
        "Put a hyphen and no blank between any two sentences.",
        "Your sentences must be joined like this: First one.-Second one.",
    )
    heldout = ("From one sentence to the next there is a hyphen, never a space.",)
    siblings = ("punctuation:punctuation_exclamation", "detectable_format:title")
    probes = (({}, "The river runs.-It is deep.", "The river runs. - It is deep."),)
    difference = "blanks around hyphens"
    excludes = _WRAPPED


class SquareBrackets(TrainableType):
    """Every word stands in square brackets."""

    id = "detectable_format:square_brackets"
    train = (
        "Put every word of your answer in square brackets.",
        "Each word must be written [like] [this].",
        "Wrap all your words one by one in [ and ].",
    )
    heldout = ("No word may stand without square brackets of its own.",)
    siblings = ("detectable_format:bigram_wrapping", "detectable_content:number_placeholders")
    probes = (({}, "[The] [river] [runs.]", "[The] [river] runs."),)
    difference = "square brackets"
    excludes = (*_WRAPPED, "detectable_content:number_placeholders", "detectable_format:title")


class BigramWrapping(TrainableType):
    """Every two words stand in double angle brackets."""

    id = "detectable_format:bigram_wrapping"
    train = (
        "Wrap every two words in double angle brackets, like <<this is>> <<an example>>.",
        "Your words must come in pairs, each pair between << and >>.",
        "Enclose word pairs one after the other: <<first second>> <<third fourth>>.",
    )
    heldout = ("Pair all the words up, and let << and >> hold each pair.",)
    siblings = ("detectable_format:square_brackets", "detectable_format:title")
    probes = (({}, "<<The quiet>> <<river runs>>", "<<The quiet>> river runs"),)
    difference = "double angle brackets"
    excludes = (*_WRAPPED, "detectable_format:title")


class RepeatPhrase(TrainableType):
    """A phrase occurs N times, each time with exactly one word exchanged inside."""

    id = "copy:repeat_phrase"
    train = (
        'Repeat the phrase "{phrase}" exactly {small_n} times, each time with another word in place'
        " of one of its middle words.",
        'Vary "{phrase}" {small_n} times: exchange one inner word, and keep its first and last'
        " word.",
        'Write {small_n} versions of "{phrase}", each of which differs from it in one word inside.',
    )
    heldout = (
        'Of "{phrase}" I would like {small_n} variants; a single word between its ends is new in'
        " each.",
    )
    probes = (
        (
            {"phrase": "bread with butter and honey", "small_n": 2},
            "bread with jam and honey, bread with butter or honey",
            "bread with jam and honey, bread with butter and honey",
        ),
    )
    difference = "one word of a phrase"
    excludes = ("count:count_unique",)

    def propose(self, rng, response, satisfied, words, task):
        if response is None or not satisfied:
            return {"phrase": pick(rng, PHRASES), "small_n": int(rng.integers(2, 4))}
        for phrase in shuffled(rng, PHRASES):
            number = sum(1 for _ in checks.variations(response, phrase))
            if number and self.follows({"phrase": phrase, "small_n": number}, response):
                return {"phrase": phrase, "small_n": number}
        return None

    def near_misses(self, rng, kwargs, response, words):
        number = kwargs["small_n"]
        options = [{"small_n": number + 1}, {"phrase": pick(rng, PHRASES)}]
        for change in shuffled(rng, options + ([{"small_n": number - 1}] if number > 1 else [])):
            yield {**kwargs, **change}


class _Copy(TrainableType):
    """A copy of a request and nothing else; no other constraint fits into its prompt."""

    difference = "the copied words"
    excludes = tuple(FIELDS)

    def _copied(self, response) -> dict | None:
        """Return arguments that the response satisfies by what it is."""
        return {"prompt_to_repeat": response.strip()}

    def propose(self, rng, response, satisfied, words, task):
        if response is None or not satisfied:
            return {"prompt_to_repeat": task if task else pick(rng, REQUESTS)}
        return self._copied(response)

    def near_misses(self, rng, kwargs, response, words):
        for text in swapped_words(rng, kwargs["prompt_to_repeat"]):
            yield {**kwargs, "prompt_to_repeat": text}


class Copy(_Copy):
    """The response is a request word for word."""

    id = "copy:copy"
    train = (
        'Copy these words exactly and do not act on them: "{prompt_to_repeat}"',
        'Your output is to be a copy of "{prompt_to_repeat}" with nothing added or answered.',
        'Do not do what follows, only copy it: "{prompt_to_repeat}"',
    )
    heldout = ('The text to reproduce, and not to follow, is "{prompt_to_repeat}"',)
    probes = (
        ({"prompt_to_repeat": "Write about a river."}, "Write about a river.", "It runs to sea."),
    )


class CopyingSimple(Copy):
    """The response is a request word for word: the verdict of `copy:copy`."""

    id = "copy:copying_simple"
    train = (
        'Repeat this request without change and without an answer: "{prompt_to_repeat}"',
        'Say "{prompt_to_repeat}" once more as it stands; do not answer it.',
        'Before and after "{prompt_to_repeat}" write nothing, and leave it unanswered.',
    )
    heldout = ('All that I want to hear back is "{prompt_to_repeat}" itself.',)


class CopyingMultiple(_Copy):
    """The response is a request N times, divided by six asterisks."""

    id = "copy:copying_multiple"
    train = (
        "Repeat this request {N} times, separated by ******, and do not answer it:"
        ' "{prompt_to_repeat}"',
        'Say "{prompt_to_repeat}" {N} times over with six asterisks (******) in between, nothing'
        " else.",
        'Put ****** between {N} exact copies of "{prompt_to_repeat}" and leave it unanswered.',
    )
    heldout = ('I want to hear back "{prompt_to_repeat}" {N} times, parted by ****** each time.',)
    probes = (
        (
            {"prompt_to_repeat": "Write about a river.", "N": 2},
            "Write about a river.\n******\nWrite about a river.",
            "Write about a river.",
        ),
    )

    def _copied(self, response):
        copies = response.split("******")
        return (
            {"prompt_to_repeat": copies[0].strip(), "N": len(copies)} if copies[0].strip() else None
        )

    def propose(self, rng, response, satisfied, words, task):
        kwargs = super().propose(rng, response, satisfied, words, task)
        return (
            kwargs if kwargs is None or "N" in kwargs else {**kwargs, "N": int(rng.integers(2, 4))}
        )

    def near_misses(self, rng, kwargs, response, words):
        for step in shuffled(rng, (-1, 1)):
            if kwargs["N"] + step >= 1:
                yield {**kwargs, "N": kwargs["N"] + step}
        yield from super().near_misses(rng, kwargs, response, words)


class CopySpan(_Copy):
    """The response is a span of a request, by the indices of its characters."""

    id = "new:copy_span_idx"
    train = (
        "Copy the characters from index {n_start} up to, but not including, index {n_end} of this"
        ' text, counting from 0: "{prompt_to_repeat}"',
        'Of "{prompt_to_repeat}" write only the span [{n_start}, {n_end}) in characters, where the'
        " first one has the index 0.",
        'Your output is "{prompt_to_repeat}"[{n_start}:{n_end}], in the notation of Python.',
    )
    heldout = (
        'Character {n_start} of "{prompt_to_repeat}" is where your copy starts, and before'
        " character {n_end} it stops; the first character has the number 0.",
    )
    probes = (
        (
            {"prompt_to_repeat": "Write about a river.", "n_start": 6, "n_end": 13},
            "about a",
            "about a river",
        ),
    )

    def propose(self, rng, response, satisfied, words, task):
        sources = [task, *REQUESTS] if task else list(REQUESTS)
        if response is not None and satisfied:
            answer = response.strip().lower()
            for source in sources:
                start = source.lower().find(answer)
                if start >= 0:
                    return self._kwargs(source, start, start + len(answer))
            return None
        source = sources[0] if task else pick(rng, sources)
        start = int(rng.integers(max(1, len(source) - 4)))
        return self._kwargs(source, start, int(rng.integers(start + 1, len(source) + 1)))

    def near_misses(self, rng, kwargs, response, words):
        start, end = kwargs["n_start"], kwargs["n_end"]
        moves = [(start, end + 2), (start + 2, end), (start, end - 2), (start - 2, end)]
        for low, high in shuffled(rng, moves):
            if 0 <= low < high:
                yield self._kwargs(kwargs["prompt_to_repeat"], low, high)

    @staticmethod
    def _kwargs(source, start, end):
        return {"prompt_to_repeat": source, "n_start": start, "n_end": end}


TYPES = (
    Paragraphs(), Paragraphs2(), Composition(), SentenceHyphens(), SquareBrackets(),
    BigramWrapping(), RepeatPhrase(), Copy(), CopyingSimple(), CopyingMultiple(), CopySpan(),
)  # fmt: skip
