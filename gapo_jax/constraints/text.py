"""How a response is read: without its thinking, split into sentences and words, within limits.

The tokenisation is that of the IFEval release: English Punkt sentences and NLTK words. Every
function here takes linear time in the text, or works on a text that is short.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from typing import Any

LONG_TEXT = 10_000  # characters; longer texts go through the linear forms of slow checkers
MAX_TEXT = 200_000  # characters, about 50,000 tokens; a longer text follows no constraint
CACHE_SIZE = 4_096  # texts or instances whose result is remembered

_OPEN, _CLOSE = "<think>", "</think>"


def final_answer(response: str) -> str:
    """Return a response without its thinking: without every `<think>...</think>`.

    Two cases lack one of the tags. Where the chat template opens the block, the response has only
    `</think>`: all text before it is thinking. A response that starts with `<think>` and never
    closes it (cut off at the token limit) holds no answer: the result is empty. An unclosed
    `<think>` further back is ordinary text. A response without thinking is returned unchanged.
    """
    if _CLOSE not in response:
        return "" if response.lstrip().startswith(_OPEN) else response
    kept: list[str] = []
    place = 0
    while (end := response.find(_CLOSE, place)) >= 0:
        start = response.find(_OPEN, place, end)
        if start < 0:
            kept.clear()
        else:
            kept.append(response[place:start])
        place = end + len(_CLOSE)
    before, rest = "".join(kept), response[place:]
    if not before.strip() and rest.lstrip().startswith(_OPEN):
        return ""
    return (before + rest).lstrip()


def with_opening(response: str, prompt: str) -> str:
    """Return what a model wrote behind a rendered prompt, with the `<think>` at its end in front.

    Some chat templates open the block themselves. A response that was cut off inside it has neither
    tag then, and would pass for an answer.
    """
    return _OPEN + response if prompt.rstrip().endswith(_OPEN) else response


# --- sentences, words and the language --------------------------------------------------------


@functools.cache
def _punkt() -> Any:
    import punkt

    return punkt.tokenizer_for("english")


@functools.lru_cache(maxsize=CACHE_SIZE)
def split_sentences(text: str) -> tuple[str, ...]:
    """Split into sentences by the English Punkt model of NLTK, which the module `punkt` carries."""
    return tuple(_punkt().tokenize(text))


@functools.cache
def _word_tokenizer() -> Any:
    """Return NLTK's word tokenizer without its wall-clock limit on every pattern.

    With that limit a verdict would depend on how busy the machine is. All its patterns are linear.
    """
    from nltk.tokenize.destructive import NLTKWordTokenizer

    def plain(pattern: Any) -> Any:
        return getattr(pattern, "_rx", pattern)

    words: Any = NLTKWordTokenizer()
    for name in ("STARTING_QUOTES", "PUNCTUATION", "ENDING_QUOTES"):
        setattr(words, name, [(plain(pattern), new) for pattern, new in getattr(words, name)])
    for name in ("PARENS_BRACKETS", "DOUBLE_DASHES"):
        pattern, new = getattr(words, name)
        setattr(words, name, (plain(pattern), new))
    for name in ("CONTRACTIONS2", "CONTRACTIONS3"):
        setattr(words, name, [plain(pattern) for pattern in getattr(words, name)])
    return words


@functools.lru_cache(maxsize=CACHE_SIZE)
def word_tokenize(text: str) -> tuple[str, ...]:
    """Split into words as `nltk.word_tokenize` does: sentences first, then Treebank words."""
    words = _word_tokenizer()
    return tuple(token for part in split_sentences(text) for token in words.tokenize(part))


@functools.lru_cache(maxsize=CACHE_SIZE)
def detect_language(text: str) -> str:
    """Return the code that langdetect finds, with its seed fixed: a function of the text alone.

    Raises `langdetect.LangDetectException` where the text has no features, such as digits only.
    """
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return langdetect.detect(text)


# --- patterns that come from data -------------------------------------------------------------

_REPEAT = re.compile(r"[*+]|\{")
_CHOICE = re.compile(r"[?|]")
# A repeated group, a look-around or other extension, a reference to a group: each can take more
# than linear time for every way to match.
_UNSAFE = re.compile(r"\)[*+?{]|\(\?|\\\d")
_MOST_CHOICES = 3  # of `?` and `|`: at most 2 ** 3 ways to match from each position of a short text


def bounded_pattern(text: str, *, long: bool = False) -> str:
    """Return `text` as the official checkers use it (a pattern), or escaped where that is unsafe.

    A pattern is escaped if it does not compile, or compiles only with a warning, if it has
    `_UNSAFE` syntax, or if it has more than one repeat or more than `_MOST_CHOICES` choices, as
    its matching time explodes. For a `long` text it is also escaped if it has any repeat (the
    matching time is quadratic) or more than one choice. What remains tries at most 8 ways (2 in a
    long text) from each position.
    """
    if not re.search(r"[\\^$.|?*+()\[\]{}]", text):
        return text
    plain = re.sub(r"([*+?])\+", r"\1", text)  # possessive
    repeats, choices = len(_REPEAT.findall(plain)), len(_CHOICE.findall(plain))
    most = (0, 1) if long else (1, _MOST_CHOICES)
    unsafe = repeats > most[0] or choices > most[1] or _UNSAFE.search(text)
    if not unsafe:
        try:
            # In the contexts in which the checkers place it. Python warns of a pattern, such as
            # one with [[, that will mean something else in a later version.
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for context in (
                    text,
                    rf"\b{text}\b",
                    rf"\s*{text.lower()}.*$",
                    rf"\s?{text}\s?\d+",
                ):
                    re.compile(context)
        except (re.error, RecursionError, OverflowError, Warning):
            unsafe = True
    return re.escape(text) if unsafe else text


# --- runs of one kind of character ------------------------------------------------------------

_MARKS = 32  # combining marks in a row that are kept; Unicode's stream-safe form keeps 30


def short_marks(text: str) -> str:
    """Cut runs of combining marks to `_MARKS`: normalising a run takes time quadratic in it.

    No word of any language comes near that length. The rest of the text is unchanged.
    """
    if text.isascii():
        return text
    kept, run = [], 0
    for char in text:
        run = run + 1 if unicodedata.combining(char) else 0
        if run <= _MARKS:
            kept.append(char)
    return "".join(kept)


_SPACES = re.compile(r"(\s{8})(\s{48,})(\s{8})")


def squeeze_spaces(text: str) -> str:
    """Shorten long runs of white space: their middle becomes a newline if it held one, or a blank.

    The bullet and postscript patterns depend on a run only through its ends and through whether a
    line begins inside it, so their verdicts are unchanged.
    """
    return _SPACES.sub(lambda m: m[1] + ("\n" if "\n" in m[2] else " ") + m[3], text)
