"""Verdicts on product facts: which "property: value" facts a text states, and which others.

A text states a fact where its value occurs as whole words and is not denied. Before the comparison
both sides are normalised: case, hyphens, plurals, spelled-out units and small numbers ("two-litre",
"2 l"), British and American spellings. A mention is denied by "not", "no", "without", "rather than"
and similar words up to four words before it in the same clause. A value of one fact that lies
inside the mention of another (steel in stainless steel) is no mention of its own. Every check is
linear in the text and never raises.

It cannot see paraphrase ("crimson" for red), values split over a clause, or which property a bare
number belongs to. On 40 sentences labelled by hand, 25 of which state the value, precision is 24/24
and recall 24/25; a test holds both.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from gapo_jax.constraints.fields import Items, clean_kwargs
from gapo_jax.constraints.text import CACHE_SIZE, short_marks

_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[%°.,;:!?()\n]")
_BREAKS = frozenset((*".,;:!?()\n", "but"))
_DENIALS = frozenset(
    """not no never without non neither nor than instead unlike except cannot lack excluding doesn
    isn aren don won wasn weren couldn didn hasn haven wouldn shouldn""".split()
)
_SOFTENED = frozenset(("only", "just", "merely"))  # "not only red" affirms
_REACH = 4  # words before a mention in which a denial counts
_NUMBERS = dict(
    zip("one two three four five six seven eight nine ten eleven twelve".split(), range(1, 13))
)
_SPELLINGS = {
    **{word: str(number) for word, number in _NUMBERS.items()},
    "color": "colour", "gray": "grey", "aluminum": "aluminium", "percent": "%",
    "litre": "l", "liter": "l", "millilitre": "ml", "milliliter": "ml", "kilogram": "kg",
    "kilo": "kg", "gram": "g", "centimetre": "cm", "centimeter": "cm", "millimetre": "mm",
    "millimeter": "mm", "metre": "m", "meter": "m", "watt": "w", "volt": "v", "hour": "h",
    "hr": "h", "minute": "min", "decibel": "db", "hertz": "hz", "gigabyte": "gb", "yr": "year",
    "inche": "inch",
}  # fmt: skip


def split_fact(fact: str) -> tuple[str, str]:
    """Return (property, value) of a text "property: value"."""
    left, _, right = fact.partition(":")
    return left.strip(), right.strip()


@functools.lru_cache(maxsize=CACHE_SIZE)
def tokens(text: str) -> tuple[str, ...]:
    """Return the words, numbers and clause marks of a text in their normal form."""
    text = unicodedata.normalize("NFKC", short_marks(text)).lower()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    words = []
    for token in _TOKEN.findall(text):
        # A plural as its singular, crudely: both sides go through it, so only equality matters.
        if len(token) > 3 and token.endswith("s") and not token.endswith("ss"):
            token = token[:-1]
        words.append(_SPELLINGS.get(token, token))
    return tuple(words)


@functools.lru_cache(maxsize=256)
def _places(text: str) -> dict[str, list[int]]:
    """Return the positions of each token of a text, so that a value is looked up, not searched."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(tokens(text)):
        places.setdefault(word, []).append(place)
    return places


def _denied(words: Sequence[str], start: int) -> bool:
    # In "not blue or green" the denial of green stands further away.
    reach = _REACH + 2 * (start > 0 and words[start - 1] in ("or", "nor"))  # not blue or green
    for place in range(start - 1, max(-1, start - 1 - reach), -1):
        if words[place] in _BREAKS:
            return False
        if words[place] in _DENIALS:
            return words[min(place + 1, len(words) - 1)] not in _SOFTENED
    return False


def mentions(text: str, value: str) -> list[tuple[int, int]]:
    """Return the token spans [start, end) at which a text affirms a value."""
    words, wanted = tokens(text), tokens(value)
    size = len(wanted)
    if not size:
        return []
    return [
        (start, start + size)
        for start in _places(text).get(wanted[0], ())
        if words[start : start + size] == wanted and not _denied(words, start)
    ]


def _affirmed(
    text: str,
    values: Iterable[tuple[str, ...]],
    counts: Callable[[int, int], bool] = lambda start, end: True,
) -> set[tuple[str, ...]]:
    """Return the values (as tokens) with an affirmed mention that counts.

    Each place of the text is looked at once for each length of a value, however many there are.
    """
    words, places = tokens(text), _places(text)
    affirmed: set[tuple[str, ...]] = set()
    by_size: dict[int, set[tuple[str, ...]]] = {}
    for value in values:
        by_size.setdefault(len(value), set()).add(value)
    by_size.pop(0, None)
    for size, wanted in by_size.items():
        firsts = {value[0] for value in wanted}
        for start in sorted(itertools.chain.from_iterable(places.get(f, ()) for f in firsts)):
            value = words[start : start + size]
            if value in wanted and counts(start, start + size) and not _denied(words, start):
                affirmed.add(value)
                wanted.discard(value)
    return affirmed


def stated(text: str, facts: Iterable[str]) -> list[str]:
    """Return the facts whose value the text states."""
    facts = list(facts)
    values = [tokens(split_fact(fact)[1]) for fact in facts]
    affirmed = _affirmed(text, values)
    return [fact for fact, value in zip(facts, values, strict=True) if value in affirmed]


def others_stated(text: str, facts: Sequence[str], values: Sequence[str]) -> list[str]:
    """Return the facts "property: value" that the text states beyond the given ones.

    Args:
      text: any string.
      facts: the facts that may be stated.
      values: "property: value | value | ...", everything a product of the kind could have.
    """
    given = {tokens(split_fact(fact)[1]): split_fact(fact)[1] for fact in facts}
    spans = sorted(span for value in given.values() for span in mentions(text, value))
    starts = [low for low, _ in spans]
    # The furthest end of all mentions up to each one: a part lies inside a mention if it ends
    # before the furthest end of the mentions that start no later.
    ends = list(itertools.accumulate((high for _, high in spans), max))

    def outside(start: int, end: int) -> bool:
        before = bisect.bisect_right(starts, start)
        return not before or end > ends[before - 1]

    known = []
    for line in values:
        name, options = split_fact(line)
        for option in map(str.strip, options.split("|")):
            known.append((f"{name}: {option}", tokens(option)))
    others = _affirmed(text, {value for _, value in known} - set(given), outside)
    return [fact for fact, value in known if value in others]


def follows(type_id: str, items: Items, response: str) -> bool:
    """Return the verdict on a response; `items` are the arguments as sorted pairs.

    Raises:
      ValueError: invalid arguments.
    """
    kwargs = clean_kwargs(type_id, dict(items))
    if not response.strip():
        return False
    if type_id == "product:states_facts":
        return len(stated(response, kwargs["facts"])) == len(kwargs["facts"])
    return not others_stated(response, kwargs["facts"], kwargs["values"])
