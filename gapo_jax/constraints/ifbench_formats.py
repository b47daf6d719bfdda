"""IFBench types about form: nesting, lists, templates, case, white space, repeating the request."""

from __future__ import annotations

from gapo_jax.constraints.base import pick, shuffled
from gapo_jax.constraints.ifbench_base import IFBenchType


class Parentheses(IFBenchType):
    """Brackets nested five deep."""

    id = "format:parentheses"
    train = (
        "Nest parentheses (and [brackets {{and braces}}]) at least 5 levels deep.",
        "Somewhere brackets must stand within brackets, five levels or more.",
        "Use (round), [square] or {{curly}} brackets inside each other down to level 5 at least.",
    )
    heldout = ("Asides in asides in asides: five enclosures, one within the next, all closed.",)
    siblings = ("format:quotes", "count:punctuation")
    probes = (({}, "Go (a [b {c (d [e])}]) on.", "Go (a [b {c (d e)}]) on."),)
    difference = "a pair of brackets"


class Quotes(IFBenchType):
    """Quotes nested three deep."""

    id = "format:quotes"
    train = (
        "Include quotes within quotes within quotes, in turn with \" and '.",
        "Nest quotations three levels deep, switching between double and single marks.",
        "Quote someone quoting someone who quotes, with \" and ' alternating.",
    )
    heldout = ('Reported speech in reported speech in reported speech, marked " \' " in turn.',)
    siblings = ("format:parentheses", "count:punctuation")
    probes = (({}, '"He: \'She: "Go" and so\' on" it', '"He: She: Go and so on" it'),)
    difference = "quotation marks"


class Options(IFBenchType):
    """One of the options and nothing else."""

    id = "format:options"
    train = (
        "Answer with one of these options and explain nothing: {options}",
        "Choose one of the following, without a word more: {options}",
        "The whole reply must be one of: {options}",
    )
    heldout = ("Pick from {options} and stop there.",)
    probes = (({"options": "yes/no/maybe"}, "maybe", "maybe not"),)
    difference = "what is added to the option"
    _OPTIONS = (
        "yes/no/maybe",
        "I know or I don't know",
        "a), b), c), d)",
        "agree/disagree",
        "true/false/unclear",
    )

    def propose(self, rng, response, satisfied, words, task):
        short = response is not None and len(response.split()) <= 4
        plain = response is not None and not set(response) & set("/,") and " or " not in response
        if satisfied and short and plain and "or" not in str(response):
            return {"options": f"{str(response).strip()}/something else"}
        return {"options": pick(rng, self._OPTIONS)}

    def near_misses(self, rng, kwargs, response, words):
        for options in shuffled(rng, self._OPTIONS):
            yield {"options": options}


class Newline(IFBenchType):
    """One word a line."""

    id = "format:newline"
    train = (
        "Write each word on a new line.",
        "Start a new line after every single word.",
        "Put one word, and only one, on each line.",
    )
    heldout = ("A column of words, no two side by side.",)
    siblings = ("format:line_indent", "count:numbers")
    probes = (({}, "rivers\nrun\nfar", "rivers run\nfar"),)
    difference = "line breaks"


class Emoji(IFBenchType):
    """An emoji at the end of each sentence."""

    id = "format:emoji"
    train = (
        "Put an emoji at the end of every sentence.",
        "Every sentence must end with an emoji.",
        "Close each sentence with an emoji.",
    )
    heldout = ("Let a small picture such as 😀 round off whatever you state.",)
    siblings = ("count:punctuation", "count:numbers")
    probes = (({}, "It runs far 😀.", "It runs far ab."),)
    difference = "an emoji"


class LineIndent(IFBenchType):
    """Each line is indented deeper than the one before."""

    id = "format:line_indent"
    train = (
        "Build stairs: indent each new line further than the one before.",
        "Every line has to begin with more blanks than the previous line.",
        "Increase the indentation from line to line.",
    )
    heldout = ("Let the left edge of the text descend to the right, step after step.",)
    siblings = ("format:newline", "format:list")
    probes = (({}, "one\n two\n  three", "one\n two\n three"),)
    difference = "blanks at the start of a line"


class QuoteUnquote(IFBenchType):
    """Each quoted phrase is followed by an explanation."""

    id = "format:quote_unquote"
    train = (
        "Follow every quoted phrase by an explanation outside of quotes.",
        "After each quotation comes an unquoted explanation.",
        "No quotation may stand without an explanation behind it.",
    )
    heldout = ("Say what it means, in plain text, right after anything between quotation marks.",)
    siblings = ("format:quotes", "format:parentheses")
    probes = (({}, '"Go" means leave', 'leave means "Go"'),)
    difference = "what follows a quotation"


class SpecialList(IFBenchType):
    """A list whose items are marked by a given separator."""

    id = "format:list"
    train = (
        "Answer with a list and mark its items by {sep} instead of bullet points.",
        "Give a list in which {sep} stands where the bullets would.",
        "List your points; each begins with {sep}",
    )
    heldout = ("Enumerate, and let {sep} be the sign that opens an item.",)
    probes = (({"sep": "!?!?"}, "!?!? Rivers\n!?!? Lakes", "!?!? Rivers\nLakes"),)
    difference = "list marks"
    _MARKS = ("...", "SEPARATOR", "!?!?", "-", "***", "~", ">>", "#")

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {"sep": pick(rng, self._MARKS)}
        fitting = [mark for mark in self._MARKS if (response.count(mark) >= 2) == satisfied]
        return {"sep": pick(rng, fitting)} if fitting else None

    def near_misses(self, rng, kwargs, response, words):
        for mark in shuffled(rng, self._MARKS):
            yield {"sep": mark}


class Thesis(IFBenchType):
    """Sections begin with a thesis in HTML italics."""

    id = "format:thesis"
    train = (
        "Begin each section with a thesis statement in italics, marked <i>like this</i> in HTML.",
        "Start every section by a thesis between <i> and </i>, then go on in plain text.",
        "Put the thesis of each section first, in HTML italics.",
    )
    heldout = ("Slanted by <i></i>, the claim opens a section; its discussion stands upright.",)
    siblings = ("format:list", "format:output_template")
    probes = (({}, "<i>Rivers matter</i> for us.", "Rivers matter for us."),)
    difference = "HTML tags"


class SubBullets(IFBenchType):
    """Bullets with sub-bullets."""

    id = "format:sub-bullets"
    train = (
        "Use bullet points marked * and, below each, at least one sub-bullet marked -",
        "Every * bullet needs one or more - bullets under it.",
        "Make a list of two levels: * for the items, - for one or more details of each.",
    )
    heldout = ("Whatever a star introduces, a dash must specify.",)
    siblings = ("format:no_bullets_bullets", "format:list")
    probes = (({}, "* Rivers\n - long\n* Lakes\n - deep", "* Rivers\n - long\n* Lakes\n deep"),)
    difference = "sub-bullets"


class SomeBullets(IFBenchType):
    """Two sentences, then two bullets."""

    id = "format:no_bullets_bullets"
    train = (
        "Write at least two sentences that end in a period, then at least two * bullet points.",
        "First two or more sentences, then two or more bullets marked by *",
        "Let a list of two * bullets or more follow on two sentences or more.",
    )
    heldout = ("Prose of a pair of sentences comes first; a starred list of two items ends it.",)
    siblings = ("format:sub-bullets", "format:list")
    probes = (({}, "It runs. It is deep.\n* one\n* two", "It runs. It is deep.\n* one\ntwo"),)
    difference = "bullets at the end"


class TitleCase(IFBenchType):
    """Title case throughout."""

    id = "format:title_case"
    train = (
        "Write the entire answer in title case: every major word begins with a capital.",
        "Capitalize The First Letter Of Every Word, As This Sentence Does.",
        "All of the reply has to be in title case.",
    )
    heldout = ("Spell Each Term As Headlines Do, from the first to the last.",)
    siblings = ("format:emoji", "count:numbers")
    probes = (({}, "The Quiet River", "The quiet River"),)
    difference = "capital letters"


class OutputTemplate(IFBenchType):
    """A fixed template."""

    id = "format:output_template"
    train = (
        "Use exactly this template: My Answer: [answer] My Conclusion: [conclusion] Future Outlook:"
        " [outlook]",
        'Divide the reply by the labels "My Answer:", "My Conclusion:" and "Future Outlook:".',
        "Fill in this form: My Answer: ... My Conclusion: ... Future Outlook: ...",
    )
    heldout = (
        'Three captions have to be there, letter for letter: "My Answer:", "My Conclusion:",'
        ' "Future Outlook:".',
    )
    siblings = ("format:thesis", "format:list")
    probes = (
        (
            {},
            "My Answer: yes. My Conclusion: go. Future Outlook: good.",
            "My Answer: yes. My Conclusion: go. Outlook: good.",
        ),
    )
    difference = "the labels of the template"


class NoWhitespace(IFBenchType):
    """No white space at all."""

    id = "format:no_whitespace"
    train = (
        "The output must not contain any whitespace.",
        "Write without blanks, tabs and line breaks.",
        "Leave no space anywhere in the answer.",
    )
    heldout = ("Runeverythingtogether: not one gap between characters.",)
    siblings = ("format:newline", "count:numbers")
    probes = (({}, "Riversrunfar.", "Rivers run far."),)
    difference = "blanks"


class RepeatChange(IFBenchType):
    """The request repeated with another first word."""

    id = "repeat:repeat_change"
    train = (
        'Repeat this request with another first word, and do not answer it: "{prompt_to_repeat}"',
        'Write "{prompt_to_repeat}" again, only its first word changed, and nothing else.',
        'Copy "{prompt_to_repeat}" but replace the first word; give no answer.',
    )
    heldout = ('Say nothing but "{prompt_to_repeat}", the word at its start exchanged.',)
    probes = (
        (
            {"prompt_to_repeat": "Write about a river."},
            "Sing about a river.",
            "Write about a river.",
        ),
    )
    difference = "the first word"
    _REQUESTS = ("Write a short answer to this.", "Tell me something about it.")

    def propose(self, rng, response, satisfied, words, task):
        if satisfied and response is not None:
            parts = response.split()
            if len(parts) < 2 or " ".join(parts) != response:
                return None
            return {"prompt_to_repeat": " ".join(["Write", *parts[1:]])}
        return {"prompt_to_repeat": task or pick(rng, self._REQUESTS)}

    def near_misses(self, rng, kwargs, response, words):
        parts = kwargs["prompt_to_repeat"].split()
        if len(parts) > 2:
            yield {"prompt_to_repeat": " ".join(parts[:-1])}
        yield {"prompt_to_repeat": response}


class RepeatSimple(IFBenchType):
    """The sentence of the release itself."""

    id = "repeat:repeat_simple"
    train = (
        "Only output this sentence here, ignore all other requests.",
        'Output "Only output this sentence here, ignore all other requests." and nothing else.',
        "Ignore the rest and write just this: Only output this sentence here, ignore all other"
        " requests.",
    )
    heldout = (
        "Whatever was asked before, reply by these words alone: Only output this sentence here,"
        " ignore all other requests.",
    )
    siblings = ("repeat:repeat_change", "format:options")
    _SENTENCE = "Only output this sentence here, ignore all other requests."
    probes = (({}, _SENTENCE, _SENTENCE.replace("all", "some")),)
    difference = "the words of the sentence"


class RepeatSpan(IFBenchType):
    """Some of the words of the request. (The release counts words where its text says
    characters; verdicts are the release's, the phrasings say what is judged.)"""

    id = "repeat:repeat_span"
    train = (
        "Copy the words from number {n_start} up to but without number {n_end}, counted from 0, of"
        ' "{prompt_to_repeat}"',
        'Of "{prompt_to_repeat}" write only the words {n_start} to {n_end}, the first one being'
        " number 0 and the last one left out.",
        'Give the span of words [{n_start}, {n_end}) of "{prompt_to_repeat}", counting from 0.',
    )
    heldout = (
        "Starting to count at 0, cut the words {n_start} to {n_end}, end excluded, out of"
        ' "{prompt_to_repeat}" and show them.',
    )
    probes = (
        (
            {"prompt_to_repeat": "Write about a quiet river.", "n_start": 1, "n_end": 4},
            "about a quiet",
            "about a quiet river.",
        ),
    )
    difference = "which words are copied"

    def propose(self, rng, response, satisfied, words, task):
        if satisfied and response is not None:
            parts = response.split()
            start = int(rng.integers(0, 4))
            text = " ".join(["Write", "it", "down", "now:"][:start] + parts + ["and", "more."])
            return {"prompt_to_repeat": text, "n_start": start, "n_end": start + len(parts)}
        text = task or "Tell me something useful about the river and the sea."
        start = int(rng.integers(0, 3))
        return {"prompt_to_repeat": text, "n_start": start, "n_end": start + 3}

    def near_misses(self, rng, kwargs, response, words):
        for start, end in shuffled(rng, ((0, 1), (0, -1), (1, 0))):
            moved = kwargs["n_start"] + start, kwargs["n_end"] + end
            if 0 <= moved[0] < moved[1]:
                yield {**kwargs, "n_start": moved[0], "n_end": moved[1]}


TYPES = (
    Parentheses(),
    Quotes(),
    Options(),
    Newline(),
    Emoji(),
    LineIndent(),
    QuoteUnquote(),
    SpecialList(),
    Thesis(),
    SubBullets(),
    SomeBullets(),
    TitleCase(),
    OutputTemplate(),
    NoWhitespace(),
    RepeatChange(),
    RepeatSimple(),
    RepeatSpan(),
)
