"""The arguments of every built-in constraint type: their fields, their kinds and their limits.

There are four families: the 25 types of the IFEval release, the 29 training types and the 58 test
types of IFBench (arXiv 2507.02833), and two types about product facts.
`clean_kwargs` alone decides whether the arguments of a row are valid; a checker runs on arguments
that passed it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

Kwargs = Mapping[str, Any]  # the arguments of a constraint, as rows carry them
Items = tuple[tuple[str, Any], ...]  # the same as sorted pairs, which can be hashed
RELATIONS = ("less than", "at least")
# Limits of what a row may make a checker look for: with them, the length of a response bounds the
# time of a check.
MAX_TEXT = 100_000  # characters of a text to compare with, such as a request to repeat
MAX_VALUES = 500  # characters of a property with all its values
MAX_PATTERN = 200  # characters of a keyword or fact, which is searched for at every position
MAX_WORDS = 100  # keywords or facts of one constraint
MAX_KEYWORDS = 1_000  # characters of all keywords of one constraint

# ISO 639-1 codes of `language:response_language`. A copy of the release's table, because reading
# the table from the package takes two seconds; a test compares the two.
LANGUAGE_CODES: dict[str, str] = {
    "en": "English", "es": "Spanish", "pt": "Portuguese", "ar": "Arabic", "hi": "Hindi",
    "fr": "French", "ru": "Russian", "de": "German", "ja": "Japanese", "it": "Italian",
    "bn": "Bengali", "uk": "Ukrainian", "th": "Thai", "ur": "Urdu", "ta": "Tamil",
    "te": "Telugu", "bg": "Bulgarian", "ko": "Korean", "pl": "Polish", "he": "Hebrew",
    "fa": "Persian", "vi": "Vietnamese", "ne": "Nepali", "sw": "Swahili", "kn": "Kannada",
    "mr": "Marathi", "gu": "Gujarati", "pa": "Punjabi", "ml": "Malayalam", "fi": "Finnish",
}  # fmt: skip

IFEVAL: dict[str, dict[str, str]] = {
    "keywords:existence": {"keywords": "words"},
    "keywords:frequency": {"keyword": "pattern", "frequency": "count", "relation": "relation"},
    "keywords:forbidden_words": {"forbidden_words": "words"},
    "keywords:letter_frequency": {
        "letter": "letter",
        "let_frequency": "count",
        "let_relation": "relation",
    },
    "language:response_language": {"language": "language"},
    "length_constraints:number_sentences": {"num_sentences": "count", "relation": "relation"},
    "length_constraints:number_paragraphs": {"num_paragraphs": "count"},
    "length_constraints:number_words": {"num_words": "count", "relation": "relation"},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": "count",
        "nth_paragraph": "count",
        "first_word": "text",
    },
    "detectable_content:number_placeholders": {"num_placeholders": "count"},
    "detectable_content:postscript": {"postscript_marker": "pattern"},
    "detectable_format:number_bullet_lists": {"num_bullets": "count"},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": "count"},
    "detectable_format:multiple_sections": {"section_spliter": "pattern", "num_sections": "count"},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "text"},
    "startend:end_checker": {"end_phrase": "text"},
    "change_case:capital_word_frequency": {
        "capital_frequency": "count",
        "capital_relation": "relation",
    },
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
    "startend:quotation": {},
}

# The training types of IF-RLVR, with the names of open-instruct, whose rows carry them.
IFTRAIN: dict[str, dict[str, str]] = {
    "keywords:word_once": {"keyword": "word"},
    "keywords:word_count_different_numbers": {
        "keyword": "word",
        "frequency": "count",
        "relation": "relation",
    },
    "keywords:exclude_word_harder": {"keyword": "word"},
    "keywords:keyword_specific_position": {"keyword": "word", "n": "positive", "m": "positive"},
    "keywords:no_adjacent_consecutive": {},
    "keywords:palindrome": {},
    "keywords:start_end": {},
    "first_word:first_word_sent": {"first_word": "word"},
    "first_word:first_word_answer": {"first_word": "word"},
    "last_word:last_word_sent": {"last_word": "word"},
    "last_word:last_word_answer": {"last_word": "word"},
    "letters:letter_counting": {"N": "positive", "relation": "relation"},
    "letters:letter_counting2": {
        "letter": "letter",
        "let_frequency": "count",
        "let_relation": "relation",
    },
    "count:lowercase_counting": {"N": "positive"},
    "count:count_unique": {},
    "count:count_increment_word": {"keyword1": "word", "keyword2": "word"},
    "count:counting_composition": {"n_sent": "positive", "n_words": "positive"},
    "paragraphs:paragraphs": {},
    "paragraphs:paragraphs2": {},
    "punctuation:punctuation_dot": {},
    "punctuation:punctuation_exclamation": {},
    "detectable_format:sentence_hyphens": {},
    "detectable_format:square_brackets": {},
    "detectable_format:bigram_wrapping": {},
    "copy:repeat_phrase": {"phrase": "pattern", "small_n": "positive"},
    "copy:copy": {"prompt_to_repeat": "text"},
    "copy:copying_simple": {"prompt_to_repeat": "text"},
    "copy:copying_multiple": {"prompt_to_repeat": "text", "N": "positive"},
    "new:copy_span_idx": {"prompt_to_repeat": "text", "n_start": "count", "n_end": "count"},
}

_KEYWORDS = {f"keyword{i}": "text" for i in range(1, 6)}
IFBENCH: dict[str, dict[str, str]] = {
    "count:word_count_range": {"min_words": "count", "max_words": "count"},
    "count:unique_word_count": {"N": "count"},
    "count:conjunctions": {"small_n": "count"},
    "count:person_names": {"N": "count"},
    "count:numbers": {"N": "count"},
    "count:punctuation": {},
    "count:words_japanese": {"N": "positive"},
    "count:pronouns": {"N": "count"},
    "count:keywords_multiple": _KEYWORDS,
    "ratio:stop_words": {"percentage": "count"},
    "ratio:sentence_type": {},
    "ratio:sentence_balance": {},
    "ratio:overlap": {"reference_text": "text", "percentage": "count"},
    "ratio:sentence_words": {},
    "words:alphabet": {},
    "words:vowel": {},
    "words:consonants": {},
    "words:palindrome": {},
    "words:prime_lengths": {},
    "words:start_verb": {},
    "words:repeats": {"small_n": "count"},
    "words:odd_even_syllables": {},
    "words:last_first": {},
    "words:paragraph_last_first": {},
    "words:no_consecutive": {},
    "words:keywords_specific_position": {"keyword": "text", "n": "positive", "m": "positive"},
    "words:words_position": {"keyword": "text"},
    "sentence:alliteration_increment": {},
    "sentence:keyword": {"word": "text", "N": "positive"},
    "sentence:increment": {"small_n": "count"},
    "format:parentheses": {},
    "format:quotes": {},
    "format:options": {"options": "text"},
    "format:newline": {},
    "format:emoji": {},
    "format:line_indent": {},
    "format:quote_unquote": {},
    "format:list": {"sep": "text"},
    "format:thesis": {},
    "format:sub-bullets": {},
    "format:no_bullets_bullets": {},
    "format:title_case": {},
    "format:output_template": {},
    "format:no_whitespace": {},
    "repeat:repeat_change": {"prompt_to_repeat": "text"},
    "repeat:repeat_simple": {},
    "repeat:repeat_span": {"prompt_to_repeat": "text", "n_start": "count", "n_end": "count"},
    "custom:multiples": {},
    "custom:mcq_count_length": {},
    "custom:reverse_newline": {},
    "custom:word_reverse": {},
    "custom:character_reverse": {},
    "custom:sentence_alphabet": {},
    "custom:european_capitals_sort": {},
    "custom:csv_city": {},
    "custom:csv_special_character": {},
    "custom:csv_quotes": {},
    "custom:date_format_list": {},
}
PRODUCT: dict[str, dict[str, str]] = {
    "product:states_facts": {"facts": "facts"},
    "product:no_other_facts": {"facts": "facts", "values": "values"},
}
FAMILY_FIELDS = {"ifeval": IFEVAL, "iftrain": IFTRAIN, "ifbench": IFBENCH, "product": PRODUCT}
FIELDS: dict[str, dict[str, str]] = {**IFEVAL, **IFTRAIN, **IFBENCH, **PRODUCT}


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):  # `Infinity` is JSON to Python
        return None
    return int(value) if value >= 0 and value == int(value) else None


def _text(most: int) -> Callable[[object], str | None]:
    def read(value: object) -> str | None:
        return value if isinstance(value, str) and value.strip() and len(value) <= most else None

    return read


def _word(value: object) -> str | None:
    """Return a word, which rows of AI2 carry as a text or as a list of that one text."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return _text(MAX_PATTERN)(value)


def _words(value: Any, most: int = MAX_PATTERN) -> tuple[str, ...] | None:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return None
    words = tuple(itertools.islice(value, MAX_WORDS + 1))
    fits = all(isinstance(word, str) and len(word) <= most for word in words)
    return words if fits and 0 < len(words) <= MAX_WORDS else None


def _keywords(value: object) -> tuple[str, ...] | None:
    words = _words(value)
    return words if words and sum(map(len, words)) <= MAX_KEYWORDS else None


def _facts(value: object, most: int = MAX_PATTERN) -> tuple[str, ...] | None:
    """Return the facts, each of which must be a text "property: value"."""
    words = _words(value, most)
    if words is None:
        return None
    parts = [word.partition(":") for word in words]
    return words if all(left.strip() and right.strip() for left, _, right in parts) else None


def _language(value: object) -> str | None:
    return value if isinstance(value, str) and value in LANGUAGE_CODES else None


# kind -> (function that returns None for an invalid value, description of valid values)
_KINDS: dict[str, tuple[Callable[[object], Any], str]] = {
    "count": (_count, "a whole number, 0 or more"),
    "words": (
        _keywords,
        f"a list of words, 1 to {MAX_WORDS} of at most {MAX_PATTERN} characters, {MAX_KEYWORDS} in "
        "all",
    ),
    "relation": (lambda v: v if v in RELATIONS else None, f"one of {RELATIONS}"),
    "text": (_text(MAX_TEXT), f"a text, not empty, of at most {MAX_TEXT} characters"),
    "pattern": (_text(MAX_PATTERN), f"a text, not empty, of at most {MAX_PATTERN} characters"),
    "word": (_word, f"one word, a text, not empty, of at most {MAX_PATTERN} characters"),
    "letter": (lambda v: v if isinstance(v, str) and len(v) == 1 else None, "one character"),
    "language": (_language, "a language code of the IFEval release"),
    "positive": (lambda v: _count(v) or None, "a whole number, 1 or more"),
    "facts": (
        _facts,
        f'a list of texts "property: value", 1 to {MAX_WORDS} of at most {MAX_PATTERN} characters',
    ),
    "values": (
        lambda value: _facts(value, MAX_VALUES),
        f'a list of texts "property: value | value | ...", 1 to {MAX_WORDS} of at most '
        f"{MAX_VALUES} characters",
    ),
}


def clean_kwargs(type_id: str, kwargs: Kwargs | None) -> dict[str, Any]:
    """Return the arguments of a built-in type with nulls dropped and counts as int.

    A field that the type does not have is refused unless it is null: rows of the public data sets
    carry every field of every type.

    Raises:
      ValueError: a field is missing, unknown or invalid; names type, field and the valid values.
    """
    given = {key: value for key, value in (kwargs or {}).items() if value is not None}
    fields = FIELDS[type_id]
    unknown = sorted(set(given) - set(fields))
    missing = [field for field in fields if field not in given]
    if unknown or missing:
        raise ValueError(
            f"kwargs of {type_id}: expected the fields {list(fields)}, got {sorted(given)}"
            f" (missing {missing}, unknown {unknown}); correct the kwargs of this row"
        )
    cleaned = {}
    for field, kind in fields.items():
        read, valid = _KINDS[kind]
        cleaned[field] = read(given[field])
        if cleaned[field] is None:
            got = repr(given[field])[:200]
            raise ValueError(
                f"kwargs of {type_id}: expected {field} to be {valid}, got {got}; correct the"
                " kwargs of this row"
            )
    paragraphs = cleaned.get("num_paragraphs", 0)
    if "nth_paragraph" in cleaned and not 1 <= cleaned["nth_paragraph"] <= paragraphs:
        raise ValueError(
            f"kwargs of {type_id}: expected nth_paragraph to be 1 to num_paragraphs"
            f" ({paragraphs}), got {cleaned['nth_paragraph']}; correct the kwargs of this row"
        )
    return cleaned
