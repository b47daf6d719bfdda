"""IFEval types about edges and marks: ending, postscript, quotation, placeholders, commas."""

from __future__ import annotations

from gapo_jax.constraints.base import TrainableType, counted, pick
from gapo_jax.constraints.counting import AtLeastType
from gapo_jax.constraints.ifeval_checks import count_placeholders
from gapo_jax.constraints.text import split_sentences

# Closing lines to ask for, written for this project.
END_PHRASES: tuple[str, ...] = (
    "I hope this helps.",
    "That is all for now.",
    "Thanks for reading.",
    "Let me know what you think.",
    "Have a good day.",
    "Good luck with it.",
    "This is my answer.",
    "Take care of yourself.",
    "Enjoy every moment.",
    "What do you say?",
    "The rest is up to you.",
    "That says it all.",
)


class EndChecker(TrainableType):
    """The response ends with an exact phrase (closing quotation marks aside)."""

    id = "startend:end_checker"
    train = (
        'End your answer with the exact phrase "{end_phrase}"',
        'The last words of your reply must be "{end_phrase}" Write nothing after them.',
        'Finish with "{end_phrase}" and add nothing more.',
        'Close the text with these very words: "{end_phrase}"',
    )
    heldout = (
        'Nothing may come after the final phrase, which has to be "{end_phrase}"',
        'Let "{end_phrase}" be how it concludes.',
    )
    probes = (
        (
            {"end_phrase": "I hope this helps."},
            "The river runs to the sea. I hope this helps.",
            "The river runs to the sea.",
        ),
        (
            {"end_phrase": "I hope this helps."},
            "The river runs to the sea. I hope this helps.",
            "I hope this helps. The river runs to the sea.",
        ),
    )
    difference = "the last words"

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"end_phrase": pick(rng, END_PHRASES)}
        known = [phrase for phrase in END_PHRASES if self._ends(response, phrase)]
        if satisfied:
            if known:
                return {"end_phrase": pick(rng, known)}
            tail = self._tail(response, rng)
            return {"end_phrase": tail} if tail else None
        # Half of them come from inside the response, so that being its own is no sign of an ending.
        inner = split_sentences(response)[:-1]
        if inner and rng.random() < 0.5:
            tail = self._tail(pick(rng, inner), rng)
            if tail:
                return {"end_phrase": tail}
        return {"end_phrase": pick(rng, END_PHRASES)}

    def near_misses(self, rng, kwargs, response, words):
        # There is no phrase near another one; a few draws are enough, as nearly each is violated.
        for _ in range(4):
            yield self.propose(rng, response, False, words, None)

    @staticmethod
    def _ends(response, phrase):
        # As the release compares: quotation marks around the text and case do not count.
        return response.strip().strip('"').lower().endswith(phrase.lower())

    @staticmethod
    def _tail(text, rng):
        lines = text.strip().strip('"').splitlines()
        words = lines[-1].lstrip("*-# ").split() if lines else []
        # Three to five words: shorter endings are common by chance, longer ones are hard to repeat.
        size = int(rng.integers(3, 6))
        return " ".join(words[-size:]) if len(words) > size else None


class Postscript(TrainableType):
    """A postscript with its marker."""

    id = "detectable_content:postscript"
    train = (
        "At the end, add a postscript that starts with {postscript_marker}",
        "Finish with a postscript beginning with {postscript_marker}",
        "Your answer must include a postscript marked {postscript_marker}",
        "Append a short postscript; open it with {postscript_marker}",
    )
    heldout = (
        "After the main text, write an afterthought introduced by {postscript_marker}",
        "There has to be a line with {postscript_marker} below your reply.",
    )
    probes = (
        (
            {"postscript_marker": "P.S."},
            "The river runs to the sea. P.S. It is deep.",
            "The river runs to the sea. It is deep.",
        ),
    )
    difference = "the postscript marker"
    siblings = ("startend:end_checker", "detectable_format:title")
    _MARKERS = ("P.S.", "P.P.S")

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"postscript_marker": self._MARKERS[int(rng.random() < 0.2)]}
        fitting = [
            m
            for m in self._MARKERS
            if self.follows({"postscript_marker": m}, response) == satisfied
        ]
        if not fitting:
            return None
        # The second marker is rare, on both sides of a pair alike.
        if len(fitting) == 1:
            return {"postscript_marker": fitting[0]}
        return {"postscript_marker": fitting[int(rng.random() < 0.2)]}

    def near_misses(self, rng, kwargs, response, words):
        for marker in self._MARKERS:
            yield {"postscript_marker": marker}


class Quotation(TrainableType):
    """The whole response stands between double quotation marks."""

    id = "startend:quotation"
    train = (
        "Wrap your whole answer in double quotation marks.",
        'Put the entire reply between double quotes, like "this".',
        'The answer must start with " and end with " (double quotation marks).',
        "Enclose everything you write in double quotation marks.",
    )
    heldout = (
        'The first and the last character of the text have to be a double quote (").',
        "Make the complete response one quotation, with double marks around it.",
    )
    siblings = (
        "detectable_format:title",
        "detectable_content:postscript",
        "startend:end_checker",
    )
    probes = (
        ({}, '"The river runs to the sea."', "The river runs to the sea."),
        ({}, '"The river runs to the sea."', '"The river runs to the sea.'),
    )
    difference = "quotation marks at both ends"


class Placeholders(AtLeastType):
    """At least N placeholders in square brackets."""

    id = "detectable_content:number_placeholders"
    train = (
        "Include at least {placeholders} in square brackets, such as [name].",
        "Leave {num_placeholders} or more blanks to fill in, written like [date].",
        "The text must contain at least {placeholders} of the form [place].",
    )
    heldout = ("Use bracketed slots such as [address], a minimum of {num_placeholders} of them.",)
    probes = (
        (
            {"num_placeholders": 1},
            "The river [name] runs to the sea.",
            "The river name runs to the sea.",
        ),
    )
    difference = "square brackets"
    number = "num_placeholders"

    def fields(self, kwargs):
        return {**kwargs, "placeholders": counted(kwargs["num_placeholders"], "placeholder")}

    def count(self, response):
        return count_placeholders(response)


class NoComma(TrainableType):
    """No comma anywhere."""

    id = "punctuation:no_comma"
    train = (
        "Do not use any commas.",
        "Write it without a single comma.",
        "Avoid commas in your whole answer.",
        "Your reply must not contain commas.",
    )
    heldout = (
        "The comma is off limits in this text.",
        "Refrain from using commas altogether.",
    )
    siblings = (
        "keywords:forbidden_words",
        "length_constraints:number_words",
        "length_constraints:number_sentences",
        "keywords:existence",
    )
    probes = (({}, "Rivers are long and deep.", "Rivers are long, and deep."),)
    difference = "commas"


TYPES = (EndChecker(), Postscript(), Quotation(), Placeholders(), NoComma())
