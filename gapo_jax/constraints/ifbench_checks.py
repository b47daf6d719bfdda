"""Official verdicts of the 58 IFBench types (arXiv 2507.02833), made safe to call.

The verdicts follow allenai/IFBench as of August 2026. Most checkers come from the package
`if-verifiable`, which holds an older state; eight types are decided here (`_DECIDED_HERE`), and
sentences are split by Punkt, as IFBench does since December 2025. A test holds verdicts of the
original. Added beside:

* Nothing is downloaded, and NLTK outside the package is unchanged: sentences and words come from
  `text.py`, stop words from the list below (NLTK's English list without the entries that have an
  apostrophe: the checker counts tokens of letters and never meets one).
* `words:start_verb` needs NLTK's part-of-speech tagger, which no package carries; without it the
  type is refused with the command that installs it.
* A text that makes a checker raise (an empty sentence, a broken CSV) does not follow.
* Beyond `LONG_TEXT` characters the slow checkers run in linear forms, runs of more than 1,000 equal
  white space characters are shortened to 1,000, and runs of combining marks to 32.
"""

from __future__ import annotations

import csv
import functools
import re
import string
import types
from typing import Any

from gapo_jax.constraints import text
from gapo_jax.constraints.fields import Items, clean_kwargs

STOP_WORDS: tuple[str, ...] = tuple(
    """i me my myself we our ours ourselves you your yours yourself yourselves he him his himself
    she her hers herself it its itself they them their theirs themselves what which who whom this
    that these those am is are was were be been being have has had having do does did doing a an
    the and but if or because as until while of at by for with about against between into through
    during before after above below to from up down in out on off over under again further then
    once here there when where why how all any both each few more most other some such no nor not
    only own same so than too very s t can will just don should now d ll m o re ve y ain aren
    couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won
    wouldn""".split()
)
START_VERB, REPEAT_SPAN = "words:start_verb", "repeat:repeat_span"
_TAGGER = "taggers/averaged_perceptron_tagger_eng"
_MAX_LINES = 5_000  # a longer staircase would need a text beyond MAX_TEXT
_RUNS = re.compile(r"(\s)\1+")  # the whole run: with a lower limit the search starts over and over
# What the checkers raise on malformed texts; each means that the text does not follow.
_RAISED = (IndexError, ValueError, KeyError, ZeroDivisionError, RecursionError, csv.Error)


@functools.cache
def registry() -> dict[str, type]:
    """Return the official checker class of each IFBench id, with the replacements put in."""
    import nltk

    # The package's module downloads NLTK data while it is imported; none of it is needed.
    download, nltk.download = nltk.download, lambda *args, **kwargs: False
    try:
        from if_verifiable.ifbench import instructions as module
        from if_verifiable.ifbench import instructions_util as util
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    finally:
        nltk.download = download
    words = types.SimpleNamespace(words=lambda language: list(STOP_WORDS))
    mine = types.SimpleNamespace(
        tokenize=nltk.tokenize,
        corpus=types.SimpleNamespace(stopwords=words),
        word_tokenize=text.word_tokenize,
        ngrams=nltk.ngrams,
        pos_tag=_pos_tag,
    )
    util.nltk = module.nltk = mine
    util.split_into_sentences = lambda value: list(text.split_sentences(value))
    return INSTRUCTION_DICT


@functools.cache
def _tagger_is_there() -> bool:
    import nltk

    try:
        nltk.data.find(_TAGGER)
    except LookupError:
        return False
    return True


@functools.lru_cache(maxsize=text.CACHE_SIZE)
def _tagged(words: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    import nltk

    return tuple(nltk.pos_tag(list(words)))


def _pos_tag(words) -> tuple[tuple[str, str], ...]:
    # The checker reads the first tag only, and the tagger looks two words ahead, not further.
    return _tagged(tuple(words[:4]))


def missing_data(type_id: str) -> str | None:
    """Return the command that makes this type usable here, or None if it is."""
    if type_id != START_VERB or _tagger_is_there():
        return None
    return "python -m nltk.downloader averaged_perceptron_tagger_eng"


def require(type_id: str) -> None:
    """Raise ValueError if a type cannot be verified on this machine; names the command to run."""
    command = missing_data(type_id)
    if command:
        raise ValueError(f"{type_id} needs NLTK data that is not installed: run `{command}`")


@functools.lru_cache(maxsize=text.CACHE_SIZE)
def _checker(type_id: str, items: Items) -> tuple[Any, str]:
    """Return the official checker and the official wording of its instruction."""
    kwargs = clean_kwargs(type_id, dict(items))
    checker: Any = registry()[type_id](type_id)
    given = dict(kwargs)
    if type_id == REPEAT_SPAN:
        given |= {"n_start": 1, "n_end": 1}  # not 0, for which the package draws a number
    wording = checker.build_description(**given)
    if type_id == REPEAT_SPAN:
        wording = checker._description_pattern.format(**kwargs)
    return checker, wording


def describe(type_id: str, items: Items) -> str:
    """Return the official wording of an instruction; `items` are the arguments as sorted pairs.

    Raises:
      ValueError: invalid arguments.
    """
    return _checker(type_id, items)[1]


def follows(type_id: str, items: Items, response: str) -> bool:
    """Return the strict official verdict; `items` are the arguments as sorted pairs.

    Raises:
      ValueError: invalid arguments, or NLTK data that is missing (`require`).
    """
    require(type_id)
    checker, _ = _checker(type_id, items)
    if not response.strip():
        return False
    if len(response) > text.LONG_TEXT:
        response = _RUNS.sub(lambda match: match[0][:1000], response)
        if type_id in _NORMALISED:
            response = text.short_marks(response)
        if type_id in _LINEAR:
            return _LINEAR[type_id](checker, response)
    if type_id in _DECIDED_HERE:
        return _DECIDED_HERE[type_id](response, **clean_kwargs(type_id, dict(items)))
    try:
        return bool(checker.check_following(response))
    except _RAISED:
        return False


def word_a_line(checker: Any, response: str) -> bool:
    """Check `format:newline` in linear time: the number of non-empty lines is that of the words."""
    response = response.translate(str.maketrans("", "", string.punctuation))
    lines = response.strip().split("\n")
    return sum(line != "" for line in lines) == len(response.split())


def stairs(checker: Any, response: str) -> bool:
    """Check `format:line_indent` with a limit on the lines: removing blank lines is quadratic."""
    return response.count("\n") <= _MAX_LINES and bool(checker.check_following(response))


def special_character(checker: Any, response: str) -> bool:
    r"""Check `custom:csv_special_character`, with its pattern `".*[^\d\w\s].*"` in linear time."""
    response = response.replace('"', '"""')
    try:
        rows = list(csv.reader(response.split("\n")))
    except csv.Error:
        return False
    head = "ProductID,Category,Brand,Price,Stock"
    if not rows or re.sub(r'["\s]', "", response.split("\n")[0]) != head or len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        for field in row:
            inner = field.split("\n")[0]
            last = inner.rfind('"')
            if field[:1] == '"' and last > 1 and re.search(r"[^\d\w\s]", inner[1:last]):
                return True
    return False


def prose_then_bullets(checker: Any, response: str) -> bool:
    """Check `format:no_bullets_bullets`, splitting lines into sentences only until two are found.

    The official form splits every line, though of later lines it uses only whether they are blank.
    """
    prose, sentences, bullets = True, 0, 0
    for line in map(str.strip, response.split("\n")):
        if line.startswith("*"):
            prose = False
            if sentences < 2:
                return False
            bullets += 1
        elif prose:
            sentences += len(text.split_sentences(line)) if sentences < 2 else 0
            prose = line != ""
        else:
            return False
    return bullets >= 2


# Types that normalise the text (Unicode) and read its ASCII letters only.
_NORMALISED = ("custom:reverse_newline", "custom:european_capitals_sort")
_LINEAR = {
    "format:no_bullets_bullets": prose_then_bullets,
    "format:newline": word_a_line,
    "format:line_indent": stairs,
    "custom:csv_special_character": special_character,
}


# --- the types on which the package is behind IFBench ---------------------------------------------

# What IFBench counts as pronouns since May 2026: personal, possessive and reflexive ones, then
# demonstrative, relative and interrogative, and indefinite ones.
PRONOUNS = frozenset(
    """i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his
    himself she her hers herself it its itself they them their theirs themselves
    this that these those who whom whose which what whoever whomever whatever whichever
    anybody anyone anything everybody everyone everything nobody nothing somebody someone something
    each either neither both all some any none""".split()
)


@functools.cache
def _names() -> tuple[str, ...]:
    """Return the names of `count:person_names`, which its wording lists."""
    _, _, listed = describe("count:person_names", (("N", 1),)).partition("person names: ")
    return tuple(name.strip(" .") for name in listed.split(","))


def _person_names(response: str, N: int) -> bool:
    return sum(bool(re.search(rf"\b{name}\b", response)) for name in _names()) >= N


def _pronouns(response: str, N: int) -> bool:
    words = text.word_tokenize(response.replace("/", " ").lower())
    return sum(word in PRONOUNS for word in words) >= N


def _sentence_keyword(response: str, word: str, N: int) -> bool:
    sentences = text.split_sentences(response)
    pattern = rf"\b{re.escape(word)}\b"
    return len(sentences) >= N and bool(re.search(pattern, sentences[N - 1], re.IGNORECASE))


def _specific_position(response: str, keyword: str, n: int, m: int) -> bool:
    sentences = text.split_sentences(response)
    # Punctuation marks are no words here, unlike in the training type of nearly the same name.
    words = [
        token
        for token in (text.word_tokenize(sentences[n - 1]) if len(sentences) >= n else ())
        if any(map(str.isalnum, token))
    ]
    return len(words) >= m and words[m - 1].lower() == keyword.strip().lower()


def _words_position(response: str, keyword: str) -> bool:
    words = [word.lower() for word in text.word_tokenize(response)]
    if words and words[-1] in string.punctuation:
        words.pop()
    return len(words) >= 2 and words[1] == words[-2] == keyword.strip().lower()


def _repeat_span(response: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    wanted = prompt_to_repeat[n_start : n_end + 1]
    return response.strip().lower() == wanted.strip().lower()


def _title_case(response: str) -> bool:
    words = [word for word in text.word_tokenize(response) if word[0].isalpha()]
    # A capital inside a word, as in iPhone, is no fault.
    return not any(
        word[0].islower() and (word[1:].islower() or word[1:].isupper() or len(word) == 1)
        for word in words
    )


def _quote_unquote(response: str) -> bool:
    joined = "".join(response.replace("'\"'", "").split())
    inside = joined.strip(string.digits + string.punctuation.replace('"', ""))
    return '""' not in joined and not inside.endswith('"')


_DECIDED_HERE = {
    "count:person_names": _person_names,
    "count:pronouns": _pronouns,
    "sentence:keyword": _sentence_keyword,
    "words:keywords_specific_position": _specific_position,
    "words:words_position": _words_position,
    REPEAT_SPAN: _repeat_span,
    "format:title_case": _title_case,
    "format:quote_unquote": _quote_unquote,
}
