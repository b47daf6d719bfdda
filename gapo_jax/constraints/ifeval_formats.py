"""IFEval types about form: bullets, title, JSON, highlights, sections, fixed answers."""

from __future__ import annotations

import re

from gapo_jax.constraints.base import TrainableType, counted, pick, shuffled
from gapo_jax.constraints.counting import AtLeastType
from gapo_jax.constraints.text import LONG_TEXT, squeeze_spaces


class BulletLists(TrainableType):
    """Exactly N lines that start with `*` or `-`."""

    id = "detectable_format:number_bullet_lists"
    train = (
        'Give exactly {bullets}, each on its own line starting with "* ".',
        'Write {bullets} in markdown, one per line with "*" in front, no more and no fewer.',
        'Your answer must contain exactly {bullets}. Start every bullet line with "* ".',
        'Use precisely {bullets} (lines that begin with "* ").',
    )
    heldout = (
        'I want {num_bullets} markdown list {items} from you, each line opening with "* ".',
        'The answer needs {bullets} in all, marked "* " at the line start.',
    )
    probes = (
        (
            {"num_bullets": 2},
            "Rivers:\n* They are long.\n* They are deep.",
            "Rivers:\nThey are long.\nThey are deep.",
        ),
        (
            {"num_bullets": 2},
            "Rivers:\n* They are long.\n* They are deep.",
            "Rivers: * They are long. * They are deep.",
        ),
    )
    difference = "bullet marks or the line breaks before them"

    def fields(self, kwargs):
        number = kwargs["num_bullets"]
        return {
            **kwargs,
            "bullets": counted(number, "bullet point"),
            "items": "item" if number == 1 else "items",
        }

    def measure(self, kwargs, response):
        return self._count(response), "exactly", kwargs["num_bullets"]

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"num_bullets": int(rng.integers(2, 5))}
        count = self._count(response)
        if satisfied:
            return {"num_bullets": count} if count else None
        # Without any bullet each number is equally far, so the usual small ones are asked for.
        numbers = [n for n in range(1, max(6, count + 3)) if n != count]
        near = [n for n in numbers if abs(n - count) <= 2] if count else numbers[1:4]
        return {"num_bullets": pick(rng, near)}

    def near_misses(self, rng, kwargs, response, words):
        count = self._count(response)
        # "Exactly" can be missed on both sides.
        for step in shuffled(rng, (-1, 1, -2, 2)):
            if count + step >= 1:
                yield {"num_bullets": count + step}

    @staticmethod
    def _count(response):
        # The official patterns, with the same guard as `ifeval_checks.follows_long`: mining counts
        # the bullets of the same long texts that are verified.
        if len(response) > LONG_TEXT:
            response = squeeze_spaces(response)
        stars = re.findall(r"^\s*\*[^\*].*$", response, flags=re.MULTILINE)
        return len(stars) + len(re.findall(r"^\s*-.*$", response, flags=re.MULTILINE))


class Title(TrainableType):
    """A title in double angle brackets somewhere."""

    id = "detectable_format:title"
    train = (
        "Add a title in double angle brackets, like <<title>>.",
        "Your answer must have a title wrapped in double angle brackets, such as <<my title>>.",
        "Put a heading of the form <<heading>> on it.",
        "Give it a title, written between << and >>.",
    )
    heldout = (
        "Name the text: the name belongs inside doubled angle brackets, for instance <<name>>.",
        "Start from a headline that is enclosed like this: <<headline>>.",
    )
    # Near misses of a type without arguments: other marks that a text bears or lacks as a whole.
    siblings = ("startend:quotation", "detectable_content:postscript", "startend:end_checker")
    probes = (
        (
            {},
            "<<Rivers>>\nThey run to the sea.",
            "Rivers\nThey run to the sea.",
        ),
        (
            {},
            "<<Rivers>>\nThey run to the sea.",
            "<Rivers>\nThey run to the sea.",
        ),
    )
    difference = "double angle brackets"


class JsonFormat(TrainableType):
    """The whole response is JSON, in markdown ticks or bare."""

    id = "detectable_format:json_format"
    train = (
        "Give the whole answer as valid JSON.",
        "Your entire output must be in JSON format; markdown ticks around it are fine.",
        "Reply with nothing but a JSON object.",
    )
    heldout = ("Everything you output has to parse as JSON.",)
    siblings = (
        "detectable_format:title",
        "detectable_format:number_bullet_lists",
        "startend:end_checker",
        "detectable_content:postscript",
    )
    probes = (
        (
            {},
            '{"answer": "The river runs to the sea."}',
            '"answer": "The river runs to the sea."',
        ),
    )
    difference = "braces"


class HighlightedSections(AtLeastType):
    """At least N passages between markdown asterisks."""

    id = "detectable_format:number_highlighted_sections"
    train = (
        "Highlight at least {parts} with markdown, like *this part*.",
        "Mark {num_highlights} or more {noun} of the text in markdown, such as *marked part*.",
        "Put at least {parts} of your answer between asterisks, as in *important words*.",
    )
    heldout = ("A minimum of {parts} should stand out, set in asterisks like *so*.",)
    probes = (
        (
            {"num_highlights": 1},
            "The *quiet river* runs to the sea.",
            "The quiet river runs to the sea.",
        ),
    )
    difference = "asterisks"
    number = "num_highlights"

    def fields(self, kwargs):
        number = kwargs["num_highlights"]
        noun = "part" if number == 1 else "parts"
        return {**kwargs, "parts": f"{number} {noun}", "noun": noun}

    def count(self, response):
        # As the release counts. The single form matches the bare "**" of a double one too, but
        # without text inside it does not count.
        single = re.findall(r"\*[^\n\*]*\*", response)
        double = re.findall(r"\*\*[^\n\*]*\*\*", response)
        return sum(bool(part.strip("*").strip()) for part in single) + sum(
            bool(part.removeprefix("**").removesuffix("**").strip()) for part in double
        )


class MultipleSections(TrainableType):
    """At least N sections, each marked with a word and a number."""

    id = "detectable_format:multiple_sections"
    train = (
        'Divide the answer into {sections} and begin each with "{section_spliter}" and its number,'
        ' as in "{section_spliter} 1".',
        'Your answer must have {sections}, headed "{section_spliter} 1" and so on.',
        'Write {sections}. Each one starts with "{section_spliter}" plus a number, like'
        ' "{section_spliter} 1".',
    )
    heldout = (
        'Organise everything under {headings} of the form "{section_spliter} 1",'
        " numbered from one.",
    )
    probes = (
        (
            {"section_spliter": "Section", "num_sections": 2},
            "Section 1\nRivers run.\nSection 2\nThey are deep.",
            "Section one\nRivers run.\nSection two\nThey are deep.",
        ),
    )
    difference = "numbered section marks"
    _MARKS = ("Section", "SECTION", "Part")

    def fields(self, kwargs):
        number = kwargs["num_sections"]
        return {
            **kwargs,
            "sections": counted(number, "section"),
            "headings": counted(number, "heading"),
        }

    def measure(self, kwargs, response):
        count = self._count(kwargs["section_spliter"], response)
        return count, "at least", kwargs["num_sections"]

    def propose(self, rng, response, satisfied, words, task):
        mark = pick(rng, self._MARKS)
        if response is None:
            return self._kwargs(mark, int(rng.integers(2, 4)))
        # Marks of the response itself come first: a mark that does not occur is violated trivially.
        present = [mark for mark in self._MARKS if self._count(mark, response)]
        # Without a numbered mark only 0 sections would hold, which is no constraint.
        if satisfied:
            if not present:
                return None
            mark = pick(rng, present)
            return self._kwargs(mark, self._count(mark, response))
        if present and rng.random() < 0.7:
            mark = pick(rng, present)
        return self._kwargs(mark, max(2, self._count(mark, response) + int(rng.integers(1, 3))))

    def near_misses(self, rng, kwargs, response, words):
        mark = kwargs["section_spliter"]
        for step in shuffled(rng, (1, 2)):
            yield self._kwargs(mark, self._count(mark, response) + step)

    @staticmethod
    def _count(mark, response):
        # The release counts the splits of a pattern, which is the number of its matches.
        return len(re.findall(re.escape(mark) + r"\s?\d+", response))

    @staticmethod
    def _kwargs(mark, number):
        return {"section_spliter": mark, "num_sections": number}


class ConstrainedResponse(TrainableType):
    """The response holds one of the release's three fixed answers."""

    id = "detectable_format:constrained_response"
    # The three answers are fixed by the release, so the phrasings spell them out.
    train = (
        'Answer with one of these: "My answer is yes.", "My answer is no.", "My answer is maybe."',
        'Choose your reply from "My answer is yes.", "My answer is no." and "My answer is maybe."',
        'The reply must be "My answer is yes." or "My answer is no." or "My answer is maybe."',
    )
    heldout = (
        'Three replies are open to you: "My answer is yes.", "My answer is no." or'
        ' "My answer is maybe." Take one.',
    )
    siblings = ("startend:end_checker", "detectable_format:title", "startend:quotation")
    probes = (({}, "My answer is maybe.", "My answer may be."),)
    difference = "the fixed answer"


TYPES = (
    BulletLists(),
    ConstrainedResponse(),
    HighlightedSections(),
    MultipleSections(),
    JsonFormat(),
    Title(),
)
