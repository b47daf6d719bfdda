"""Official verdicts of the 25 IFEval types, made safe to call in a training loop.

The checkers come from the package `if-verifiable`, which carries the code of the release
(google-research/instruction_following_eval; Zhou et al. 2023, arXiv 2311.07911). Added here:

* Sentences and words are split by `text.py`, without a download. Only the package's own reference
  to NLTK is replaced, not NLTK.
* The seed of language detection is fixed, so a verdict is a function of its arguments alone.
* Arguments are checked first: the package would draw a missing one at random.
* Keywords are regular expressions to the package. One that does not compile, or whose matching
  time could explode, is taken literally (`text.bounded_pattern`); every ordinary keyword keeps its
  official meaning.
* Texts beyond `LONG_TEXT` characters go through linear forms of the few patterns whose official
  form takes quadratic time; on shorter texts the official form runs. Text and arguments have a
  greatest size, so the time of a check is bounded.
"""

from __future__ import annotations

import functools
import logging
import types
from typing import Any

from gapo_jax.constraints import text
from gapo_jax.constraints.fields import Items, clean_kwargs


@functools.cache
def instructions() -> Any:
    """Import the official checkers and put the three replacements into them; once per process.

    The import is inside the function because the package imports `datasets`, which takes two
    seconds. The replacements are bound to the names that the package's two modules look up, so
    NLTK, langdetect and logging themselves are unchanged.
    """
    import langdetect
    import nltk
    from if_verifiable.ifeval import instructions as module
    from if_verifiable.ifeval import instructions_util as util

    # The package expects an object with `tokenize`; its own one needs data that NLTK downloads.
    sentences = types.SimpleNamespace(tokenize=text.split_sentences)
    util._get_sentence_tokenizer = lambda: sentences
    util.nltk = types.SimpleNamespace(
        tokenize=nltk.tokenize, data=nltk.data, word_tokenize=text.word_tokenize
    )
    module.langdetect = types.SimpleNamespace(
        detect=text.detect_language, LangDetectException=langdetect.LangDetectException
    )
    # The checkers log an error for each text without letters, to the root logger.
    quiet = logging.getLogger("gapo_jax.constraints.ifeval_checks")
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
    """Return the release's table of types that exclude each other in one prompt, made symmetric."""
    instructions()
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_CONFLICTS

    # The release lists some conflicts with one of the two types only.
    table = {key: set(others) | {key} for key, others in INSTRUCTION_CONFLICTS.items()}
    for key, others in list(table.items()):
        for other in others:
            table[other].add(key)
    return {key: frozenset(others) for key, others in table.items()}


_PATTERN_FIELDS = ("keywords", "forbidden_words", "keyword", "section_spliter", "postscript_marker")


@functools.lru_cache(maxsize=text.CACHE_SIZE)
def checker(type_id: str, items: Items, long: bool) -> Any:
    """Return the official checker for arguments given as sorted pairs; `long` is of the text."""
    kwargs = clean_kwargs(type_id, dict(items))
    for field in _PATTERN_FIELDS:
        if field in kwargs:
            value = kwargs[field]
            # `strip` because the checker strips a single keyword and would then compile another
            # pattern than the one that was found safe.
            if isinstance(value, str):
                kwargs[field] = text.bounded_pattern(value.strip(), long=long)
            else:
                kwargs[field] = [text.bounded_pattern(word, long=long) for word in value]
    letter = kwargs.get("letter")
    if letter is not None and not (letter.isascii() and letter.isalpha()):
        # The release replaces such a letter by a random one; here the letter of the row counts.
        kwargs["letter"] = "a"
    # Made once per set of arguments: the loose verdict asks it for up to eight texts.
    made = registry()[type_id](type_id)
    made.build_description(**kwargs)
    if letter is not None:
        made._letter = letter.lower()
    return made


def count_placeholders(response: str) -> int:
    r"""Count the matches of `\[.*?\]` in linear time."""
    count = 0
    for line in response.split("\n"):
        start = line.find("[")
        while start >= 0:
            end = line.find("]", start)
            if end < 0:
                break
            count += 1
            start = line.find("[", end)
    return count


def has_title(response: str) -> bool:
    r"""Return whether `<<[^\n]+>>` matches with something inside, in linear time."""
    for line in response.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start <= end - 3 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def follows_long(type_id: str, official: Any, response: str) -> bool:
    """Return the verdict of an official checker on a long text, by a linear form where needed."""
    if type_id == "detectable_content:number_placeholders":
        return count_placeholders(response) >= official._num_placeholders
    if type_id == "detectable_format:title":
        return has_title(response)
    # Their patterns stay the official ones; only what makes them slow is taken out of the text.
    if type_id in ("detectable_format:number_bullet_lists", "detectable_content:postscript"):
        response = text.squeeze_spaces(response)
    return official.check_following(response)


def follows(type_id: str, items: Items, response: str) -> bool:
    """Return the strict official verdict; `items` are the arguments as sorted pairs.

    Raises:
      ValueError: invalid arguments (`clean_kwargs`).
    """
    long = len(response) > text.LONG_TEXT
    # Before the empty response is refused: invalid arguments are an error for any response.
    official = checker(type_id, items, long)
    if not response.strip():
        return False
    try:
        if long:
            return bool(follows_long(type_id, official, response))
        return bool(official.check_following(response))
    except RecursionError:  # json.loads on a deeply nested text: no verdict of the release
        return False
