"""Official verdicts: the IFEval checkers of the package `if-verifiable`, made safe to call.

The verdicts are those of the IFEval release (google-research/instruction_following_eval, Zhou et
al. 2023, arXiv 2311.07911): strict looks at the response as it is, loose at eight variants of it
(first line, last line or both dropped, asterisks dropped), and an empty response follows nothing.
This file and `ifbench_official.py` alone touch the package; they add what a training loop needs:

* Sentences are split by the module `punkt`, whose English model is NLTK's own, so no tokenizer
  data is downloaded. Only the package's own reference to NLTK is replaced, not NLTK.
* Language detection is seeded, so a verdict is a function of its arguments alone.
* Keyword arguments are checked first: a missing field would be drawn at random by the package.
* Keywords are regular expressions to the package. One that does not compile, or whose matching
  time could explode, is taken literally; every ordinary keyword keeps its official meaning.
* Texts beyond `LONG_TEXT` characters go through linear-time forms of the few patterns whose
  official form takes quadratic time; on short texts the official form always runs. So the time of
  a check is bounded: text and arguments are (`MAX_TEXT` and the limits of `fields.py`), patterns of
  data have few ways to match (`bounded_pattern`), and everything else is linear.

IFBench's checkers stand in `ifbench_official.py`; `follows` serves all families.
"""

from __future__ import annotations

import functools
import logging
import re
import types
import unicodedata
import warnings
from collections.abc import Mapping
from typing import Any

from gapo_jax.constraints.fields import FIELDS as FIELDS
from gapo_jax.constraints.fields import IFBENCH, PRODUCT
from gapo_jax.constraints.fields import RELATIONS as RELATIONS
from gapo_jax.constraints.fields import clean_kwargs as clean_kwargs

LONG_TEXT = 10_000  # characters; responses of a few thousand tokens stay below
MAX_TEXT = 200_000  # characters, some 50,000 tokens; longer texts follow nothing
_CACHE_SIZE = 4_096  # texts or instances remembered


@functools.cache
def sentence_tokenizer():
    """Return the English Punkt tokenizer, with its recent results remembered."""
    import punkt

    tokenizer = punkt.tokenizer_for("english")

    @functools.lru_cache(maxsize=_CACHE_SIZE)
    def tokenize(text: str) -> tuple[str, ...]:
        return tuple(tokenizer.tokenize(text))

    return types.SimpleNamespace(tokenize=tokenize)


@functools.cache
def _word_tokenizer():
    """Return NLTK's word tokenizer without its limit of wall-clock time on every pattern, by which
    a verdict would depend on how busy the machine is; all of its patterns are linear."""
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


@functools.lru_cache(maxsize=_CACHE_SIZE)
def word_tokenize(text: str) -> tuple[str, ...]:
    """Split into words as `nltk.word_tokenize` does: sentences first, then Treebank words."""
    words = _word_tokenizer()
    return tuple(
        token for part in sentence_tokenizer().tokenize(text) for token in words.tokenize(part)
    )


@functools.lru_cache(maxsize=_CACHE_SIZE)
def detect_language(text: str) -> str:
    """Return langdetect's code for the text, the same one every time.

    Raises `langdetect.LangDetectException` where the text has nothing to go by.
    """
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return langdetect.detect(text)


@functools.cache
def instructions():
    """Import the official checkers and put the three replacements into them; once a process.

    The import is lazy because the package pulls in `datasets` (two seconds). The replacements
    are bound to the names that the package's two modules look up, so NLTK, langdetect and
    logging themselves stay as they are.
    """
    import langdetect
    import nltk
    from if_verifiable.ifeval import instructions as module
    from if_verifiable.ifeval import instructions_util as util

    util._get_sentence_tokenizer = sentence_tokenizer
    util.nltk = types.SimpleNamespace(
        tokenize=nltk.tokenize, data=nltk.data, word_tokenize=word_tokenize
    )
    module.langdetect = types.SimpleNamespace(
        detect=detect_language, LangDetectException=langdetect.LangDetectException
    )
    # The checkers log an error for each text without letters, to the root logger.
    quiet = logging.getLogger("gapo_jax.constraints.official")
    quiet.setLevel(logging.CRITICAL + 1)
    module.logging = quiet
    return module


@functools.cache
def registry() -> dict[str, type]:
    """Return the official checker class of each instruction id."""
    instructions()
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    return INSTRUCTION_DICT


@functools.cache
def conflicts() -> dict[str, frozenset[str]]:
    """Return the release's table of types that must not meet in one prompt, made symmetric."""
    instructions()
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_CONFLICTS

    table = {key: set(others) | {key} for key, others in INSTRUCTION_CONFLICTS.items()}
    for key, others in list(table.items()):
        for other in others:
            table[other].add(key)
    return {key: frozenset(others) for key, others in table.items()}


def language_codes() -> Mapping[str, str]:
    """Return the release's languages: ISO 639-1 code -> English name."""
    instructions()
    from if_verifiable.ifeval.instructions_util import LANGUAGE_CODES

    return LANGUAGE_CODES


# --- patterns that come from data ------------------------------------------------------------

_REPEAT = re.compile(r"[*+]|\{")
_CHOICE = re.compile(r"[?|]")
# A repeated group, a look-around or other extension, a reference to a group: each can take more
# than linear time for every way to match.
_UNSAFE = re.compile(r"\)[*+?{]|\(\?|\\\d")
_MOST_CHOICES = 3  # of `?` and `|`: at most 2 ** 3 ways to match from each place of a short text


def bounded_pattern(text: str, *, long: bool = False) -> str:
    """Return `text` as the official checkers use it (a pattern), or escaped where that is unsafe.

    Escaped: what does not compile, or only with a warning, `_UNSAFE` syntax, more than one repeat
    or more than `_MOST_CHOICES` choices (matching time explodes), and in a long text any repeat
    (matching time is quadratic) and more than one choice. What remains tries at most 8 ways (2 in
    a long text) from each place, each as long as the pattern or, with its one repeat, as a short
    text.
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


_PATTERN_FIELDS = ("keywords", "forbidden_words", "keyword", "section_spliter", "postscript_marker")


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _checker(type_id: str, items: tuple[tuple[str, Any], ...], long: bool):
    kwargs = clean_kwargs(type_id, dict(items))
    for field in _PATTERN_FIELDS:
        if field in kwargs:
            value = kwargs[field]
            if isinstance(value, str):
                kwargs[field] = bounded_pattern(value.strip(), long=long)
            else:
                kwargs[field] = [bounded_pattern(word, long=long) for word in value]
    letter = kwargs.get("letter")
    if letter is not None and not (letter.isascii() and letter.isalpha()):
        # The release replaces such a letter by a random one; we count the one that was asked for.
        kwargs["letter"] = "a"
    checker = registry()[type_id](type_id)
    checker.build_description(**kwargs)
    if letter is not None:
        checker._letter = letter.lower()
    return checker


def _key(kwargs: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    items = []
    for field, value in sorted((kwargs or {}).items()):
        if isinstance(value, list | set | frozenset):
            value = tuple(sorted(value, key=str))
        items.append((field, value))
    return tuple(items)


# --- long texts ------------------------------------------------------------------------------

_MARKS = 32  # combining marks in a row that are kept: Unicode's stream-safe form keeps 30


def short_marks(text: str) -> str:
    """Cut runs of combining marks to `_MARKS`: normalising a run takes time quadratic in it.

    No word of any language comes near; the rest of the text stays.
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
    """Shorten long runs of white space: their middle becomes one newline if it held one.

    The bullet and postscript patterns read a run only through its ends and through whether a
    line begins inside it, so their verdicts stay.
    """
    return _SPACES.sub(lambda m: m[1] + ("\n" if "\n" in m[2] else " ") + m[3], text)


def count_placeholders(text: str) -> int:
    r"""Count the matches of `\[.*?\]` in linear time."""
    found = 0
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0:
            end = line.find("]", start)
            if end < 0:
                break
            found += 1
            start = line.find("[", end)
    return found


def has_title(text: str) -> bool:
    r"""Say whether `<<[^\n]+>>` matches with something inside, in linear time."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start <= end - 3 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def _follows_long(type_id: str, checker: Any, response: str) -> bool:
    if type_id == "detectable_content:number_placeholders":
        return count_placeholders(response) >= checker._num_placeholders
    if type_id == "detectable_format:title":
        return has_title(response)
    if type_id in ("detectable_format:number_bullet_lists", "detectable_content:postscript"):
        response = squeeze_spaces(response)
    return checker.check_following(response)


def _follows_ifeval(type_id: str, kwargs: Mapping[str, Any] | None, response: str) -> bool:
    long = len(response) > LONG_TEXT
    checker = _checker(type_id, _key(kwargs), long)
    if not response.strip():
        return False
    try:
        if long:
            return bool(_follows_long(type_id, checker, response))
        return bool(checker.check_following(response))
    except RecursionError:  # json.loads on a deeply nested text: no verdict of the release
        return False


def follows(type_id: str, kwargs: Mapping[str, Any] | None, response: str) -> bool:
    """Return the strict verdict on one response for one instruction of any family.

    Official for IFEval and IFBench types, ours for product facts. Never raises for any response;
    an empty one follows nothing, and neither does one of more than `MAX_TEXT` characters, which
    bounds the time of a check.

    Raises:
      ValueError: kwargs that do not fit the type (`clean_kwargs`).
      KeyError: an unknown id (`registry.get` gives the friendly message).
    """
    if len(response) > MAX_TEXT:
        clean_kwargs(type_id, kwargs)
        return False
    try:
        if type_id in IFBENCH:
            from gapo_jax.constraints import ifbench_official

            return ifbench_official.follows(type_id, _key(kwargs), response)
        if type_id in PRODUCT:
            from gapo_jax.constraints import facts

            return facts.follows(type_id, clean_kwargs(type_id, kwargs), response)
        return _follows_ifeval(type_id, kwargs, response)
    except TypeError:  # a value that cannot be hashed fits no field: say which
        clean_kwargs(type_id, kwargs)
        raise


def loose_variants(response: str) -> list[str]:
    """Return the release's eight variants of a response, the response itself first."""
    from if_verifiable.common import get_loose_transformations

    return get_loose_transformations(response)


def follows_loose(type_id: str, kwargs: Mapping[str, Any] | None, response: str) -> bool:
    """Return the loose official verdict: some variant of the response follows strictly."""
    return any(follows(type_id, kwargs, variant) for variant in loose_variants(response))
