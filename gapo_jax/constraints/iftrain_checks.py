"""Verdicts of the 29 training types of IF-RLVR (arXiv 2507.02833), linear in the text.

Ids, arguments and verdicts follow AI2's open-instruct, whose rows (`IF_multi_constraints`)
carry them; the code is this project's own. `tests/constraints/iftrain_cases.jsonl` holds verdicts
of the original on texts and arguments of many kinds. Three things differ on purpose:

* The original draws a missing argument, and often 0, at random for every verdict. Here a missing
  argument is an error of the row, an index of 0 means 0, and a count of 0 is refused where the
  original would not count it.
* A keyword that is no safe pattern is taken literally (`text.bounded_pattern`), where the original
  fails or takes for ever. A phrase with `|` is literal too.
* Where the original raises an error on a text, the text does not follow.

Words and sentences are counted as there: a full stop is a word to `word_tokenize`, sentences end by
the rules of `split_into_sentences`, and keywords count inside other words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from gapo_jax.constraints import ifeval_checks
from gapo_jax.constraints.fields import Items, clean_kwargs
from gapo_jax.constraints.text import LONG_TEXT, bounded_pattern, word_tokenize

DIVIDER, BLANK_LINE = re.compile(r"\s?\*\*\*\s?"), re.compile(r"\n\n")
_LOWERCASE, _LETTER = re.compile(r"\b[a-z]+\b"), re.compile(r"[a-zA-Z]")
_MARKS = re.compile(r"[^\w\s]")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text by the rules that these types count with."""
    return ifeval_checks.instructions().instructions_util.split_into_sentences(text)


def occurrences(text: str, keyword: str) -> int:
    """Count a keyword, which is a pattern where that is safe, ignoring case."""
    pattern = bounded_pattern(keyword.strip(), long=len(text) > LONG_TEXT)
    return sum(1 for _ in re.finditer(pattern, text, re.IGNORECASE))


def count_lowercase(text: str) -> int:
    """Count the words in small letters of a to z."""
    return len(_LOWERCASE.findall(text))


def count_letters(text: str) -> int:
    """Count the letters of a to z, capital or small."""
    return len(_LETTER.findall(text))


def same_text(text: str, wanted: str) -> bool:
    """Compare two texts, ignoring case and the blanks around them."""
    return text.strip().lower() == wanted.strip().lower()


def opening_word(text: str) -> str:
    """Return the first word of a text with its marks, in small letters; "" without a word."""
    words = text.split(maxsplit=1)
    return words[0].lower() if words else ""


def closing_word(text: str) -> str:
    """Return the last word of a text without its marks, in small letters; "" without a word."""
    words = text.rsplit(maxsplit=1)
    return _MARKS.sub("", words[-1]).lower() if words else ""


def variations(text: str, phrase: str) -> Iterator[str]:
    """Yield the shortest passages from the first word of a phrase to its last one, line by line."""
    first, last = (
        re.escape(word) if "|" in word else bounded_pattern(word, long=len(text) > LONG_TEXT)
        for word in (phrase.split()[0], phrase.split()[-1])
    )
    head, tail = re.compile(f"{first} "), re.compile(f" {last}")
    for line in text.split("\n"):
        start = head.search(line)
        while start:
            end = tail.search(line, start.end())
            if end is None:  # nor does a later start have one
                break
            yield line[start.start() : end.end()]
            start = head.search(line, end.end())


def _repeat_phrase(text: str, phrase: str, small_n: int) -> bool:
    wanted, number = phrase.split(), 0
    for passage in variations(text, phrase):
        number += 1
        words = passage.split()
        if number > small_n or len(words) != len(wanted):
            return False
        if sum(a != b for a, b in zip(words, wanted, strict=True)) != 1:
            return False
    return number == small_n


def _sentence_hyphens(text: str) -> bool:
    # Compared as far as both lists go.
    return all(
        part.strip() == part == wanted
        for part, wanted in zip(text.split("-"), sentences(text.replace("-", " ")), strict=False)
    )


def _no_adjacent_consecutive(text: str) -> bool:
    first = [word[0].lower() for word in text.split()]
    # A capital may have two small letters; one word alone is compared with nothing.
    if len(first) > 1 and any(len(letter) != 1 for letter in first):
        return False
    return all(ord(b) - ord(a) != 1 for a, b in zip(first, first[1:], strict=False))


def two_parts(text: str, divider: re.Pattern[str]) -> bool:
    """Return whether a divider separates exactly two parts; only its ends may be blank."""
    parts = divider.split(text)
    return all(part.strip() for part in parts[1:-1]) and sum(map(bool, map(str.strip, parts))) == 2


def _every_sentence(text: str, word_of: Callable[[str], str], word: str) -> bool:
    return all(word_of(sentence) == word.strip().lower() for sentence in sentences(text))


def _specific_position(text: str, keyword: str, n: int, m: int) -> bool:
    parts = sentences(text)
    words = word_tokenize(parts[n - 1]) if len(parts) >= n else ()
    return len(words) >= m and words[m - 1] == keyword.strip()


def _composition(text: str, n_sent: int, n_words: int) -> bool:
    parts = DIVIDER.split(text)
    if len(parts) != 3:
        return False
    for part in parts:
        inside = sentences(part)
        if len(inside) != n_sent or any(len(word_tokenize(s)) != n_words for s in inside):
            return False
    return True


def _start_end(text: str) -> bool:
    words = word_tokenize(text)
    return len(words) >= 2 and words[0].lower() == words[-1].lower()


def _bigrams(text: str) -> bool:
    words = text.split()
    return all(
        left.startswith("<<") and right.endswith(">>")
        for left, right in zip(words[::2], words[1::2], strict=False)
    )


def _copies(text: str, prompt_to_repeat: str, number: int) -> bool:
    copies = text.split("******")
    return len(copies) == number and all(same_text(part, prompt_to_repeat) for part in copies)


def _letter_counting(text: str, N: int, relation: str) -> bool:
    return count_letters(text) >= N if relation == "at least" else count_letters(text) < N


def _as_in_ifeval(type_id: str) -> Callable[..., bool]:
    def follows(text: str, **kwargs: Any) -> bool:
        return ifeval_checks.follows(type_id, tuple(sorted(kwargs.items())), text)

    return follows


_CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:word_once": lambda text, keyword: occurrences(text, keyword) == 1,
    "keywords:word_count_different_numbers": _as_in_ifeval("keywords:frequency"),
    "keywords:exclude_word_harder": lambda text, keyword: f" {keyword.strip()} " not in text,
    "keywords:keyword_specific_position": _specific_position,
    "keywords:no_adjacent_consecutive": _no_adjacent_consecutive,
    "keywords:palindrome": lambda text: any(word == word[::-1] for word in text.split()),
    "keywords:start_end": _start_end,
    "first_word:first_word_sent": lambda text, first_word: _every_sentence(
        text, opening_word, first_word
    ),
    "first_word:first_word_answer": lambda text, first_word: (
        opening_word(text) == first_word.strip().lower()
    ),
    "last_word:last_word_sent": lambda text, last_word: _every_sentence(
        text, closing_word, last_word
    ),
    "last_word:last_word_answer": lambda text, last_word: (
        closing_word(text) == last_word.strip().lower()
    ),
    "letters:letter_counting": _letter_counting,
    "letters:letter_counting2": _as_in_ifeval("keywords:letter_frequency"),
    "count:lowercase_counting": lambda text, N: count_lowercase(text) <= N,
    "count:count_unique": lambda text: len(set(word_tokenize(text))) == len(word_tokenize(text)),
    "count:count_increment_word": lambda text, keyword1, keyword2: (
        (occurrences(text, keyword1), occurrences(text, keyword2)) == (1, 2)
    ),
    "count:counting_composition": _composition,
    "paragraphs:paragraphs": lambda text: two_parts(text, DIVIDER),
    "paragraphs:paragraphs2": lambda text: two_parts(text, BLANK_LINE),
    "punctuation:punctuation_dot": lambda text: "." not in text,
    "punctuation:punctuation_exclamation": lambda text: "!" not in text,
    "detectable_format:sentence_hyphens": _sentence_hyphens,
    "detectable_format:square_brackets": lambda text: all(
        word.startswith("[") and word.endswith("]") for word in text.split()
    ),
    "detectable_format:bigram_wrapping": _bigrams,
    "copy:repeat_phrase": _repeat_phrase,
    "copy:copy": lambda text, prompt_to_repeat: same_text(text, prompt_to_repeat),
    "copy:copying_simple": lambda text, prompt_to_repeat: same_text(text, prompt_to_repeat),
    "copy:copying_multiple": lambda text, prompt_to_repeat, N: _copies(text, prompt_to_repeat, N),
    "new:copy_span_idx": lambda text, prompt_to_repeat, n_start, n_end: same_text(
        text, prompt_to_repeat[n_start:n_end]
    ),
}


def follows(type_id: str, items: Items, response: str) -> bool:
    """Return the strict verdict on a response; `items` are the arguments as sorted pairs.

    Raises:
      ValueError: invalid arguments.
    """
    kwargs = clean_kwargs(type_id, dict(items))
    return bool(response.strip()) and _CHECKS[type_id](response, **kwargs)
