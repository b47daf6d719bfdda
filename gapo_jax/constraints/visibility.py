"""Which constraint types a discriminator cannot see, found at start-up: it cannot teach them.

A type has probe texts, one satisfying and one violating, that differ in nothing but what the type
is about (`ConstraintType.probes`, which a test verifies). Both go through the discriminator's own
tokenisation. If the two become the same tokens, the type is invisible: an uncased tokenizer drops
capitals, some drop line breaks and with them bullets and paragraphs. If they differ by themselves,
but not at the end or in the middle of a text of ordinary length, truncation removes the evidence.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence

from gapo_jax.constraints.registry import get
from gapo_jax.records import Constraint

ACTIONS = ("refuse", "drop")

_TASK = "Write a few sentences about rivers and how people live beside them."
# Filler without commas, quotation marks or capitals inside a sentence.
_FILLER = (
    "Water comes down from the hills and finds its way through the valley.",
    "People built their first houses close to it because the soil was good.",
    "Boats brought grain and cloth and news from one place to the next.",
    "In spring the fields flood and in autumn the banks are dry again.",
    "Children still learn to swim there on long warm days.",
)


@dataclasses.dataclass(frozen=True)
class VisibilityReport:
    """Which types the discriminator sees.

    Attributes:
      visible: ids it sees, in the order given.
      identical: id -> the difference that is lost; the tokenizer maps both texts to the same ids.
      truncated: id -> the same, for texts whose difference comes after `max_length`.
    """

    visible: tuple[str, ...]
    identical: dict[str, str]
    truncated: dict[str, str]
    max_length: int

    @property
    def invisible(self) -> tuple[str, ...]:
        """Ids that the discriminator cannot see, for either reason."""
        return tuple(self.identical) + tuple(self.truncated)

    def lines(self) -> list[str]:
        """Return one line per invisible type: the difference that is lost, and how."""
        lines = [
            f"{name}: its tokenizer makes satisfying and violating texts the same ({lost} lost)"
            for name, lost in self.identical.items()
        ]
        return lines + [
            f"{name}: truncation to {self.max_length} tokens removes the evidence ({lost})"
            for name, lost in self.truncated.items()
        ]


def filler(words: int) -> str:
    """Return plain sentences with at least this number of words."""
    sentences: list[str] = []
    count = 0
    for sentence in itertools.cycle(_FILLER):
        if count >= words:
            break
        sentences.append(sentence)
        count += len(sentence.split())
    return " ".join(sentences)


def _same(
    encode: Callable[[str, str], Sequence[int]],
    prompt: str,
    texts: tuple[str, str],
    max_length: int | None,
) -> bool:
    # Cut here, as an `encode` may leave the cutting to its caller.
    first, second = (list(encode(prompt, text))[:max_length] for text in texts)
    return first == second


def _lengthened(text: str, before: str, after: str) -> str:
    # A quotation mark or brace that must be the first character stays the first.
    opening = text[:1] if text[:1] in ('"', "{") else ""
    return f"{opening}{before} {text[len(opening) :]} {after}".rstrip()


def _versions(
    constraint: Constraint, texts: tuple[str, str], words: int
) -> Iterator[tuple[str, str]]:
    """Yield the probe inside a full response: at its end, and in its middle where the verdicts stay
    the same (no text may follow an ending)."""
    kind = get(constraint.id)
    # At the end, because truncation from the right loses that first.
    body = filler(words)
    yield _lengthened(texts[0], body, ""), _lengthened(texts[1], body, "")
    # In the middle, because an encode may keep both ends and drop what is between.
    half = filler(words // 2)
    good, bad = (_lengthened(text, half, half) for text in texts)
    if kind.check(constraint, good) and not kind.check(constraint, bad):
        yield good, bad


def _lost(type_id: str, encode, max_length: int | None, words: int = 0) -> bool:
    """Return whether both texts of some probe give the same ids, alone or in a full response."""
    kind = get(type_id)
    for kwargs, good, bad in kind.probes:
        constraint = Constraint(type_id, kwargs)
        # A prompt of usual length: it takes its share of `max_length`.
        prompt = f"{_TASK} {kind.describe(constraint, kind.train_styles[0])}"
        versions = _versions(constraint, (good, bad), words) if words else [(good, bad)]
        if any(_same(encode, prompt, texts, max_length) for texts in versions):
            return True
    return False


def check_visibility(
    type_ids: Sequence[str],
    encode: Callable[[str, str], Sequence[int]],
    *,
    max_length: int,
    response_words: int = 36,
) -> VisibilityReport:
    """Find the types whose verdict the discriminator cannot see.

    Args:
      type_ids: full ids.
      encode: (prompt, response) -> token ids, exactly as the discriminator gets them; it may
        truncate by itself.
      max_length: the discriminator's limit; ids beyond it are not seen.
      response_words: length of the text around the evidence, about that of a full response; 36
        words are 48 tokens of most tokenizers. 0 tries the bare probes only.

    Returns:
      The report. A type is invisible if one of its probes is, because the discriminator would take
      that way of violating it for satisfying it. A type without probes counts as visible.

    Raises:
      ValueError: an unknown id.
    """
    visible, identical, truncated = [], {}, {}
    for type_id in type_ids:
        lost = get(type_id).difference
        # From the strongest to the weakest reason: the message names what has to change.
        if _lost(type_id, encode, None):
            identical[type_id] = lost
        elif _lost(type_id, encode, max_length):
            truncated[type_id] = lost
        elif response_words and _lost(type_id, encode, max_length, response_words):
            truncated[type_id] = lost
        else:
            visible.append(type_id)
    return VisibilityReport(tuple(visible), identical, truncated, max_length)


def enforce(report: VisibilityReport, on_invisible: str = "refuse") -> tuple[str, ...]:
    """Return the ids to train with.

    Args:
      report: of `check_visibility`.
      on_invisible: "refuse" raises if a type is invisible; "drop" leaves it out with a warning.

    Raises:
      ValueError: another action, invisible types under "refuse", or no type left under "drop".
    """
    if on_invisible not in ACTIONS:
        raise ValueError(f"on_invisible: expected one of {ACTIONS}, got {on_invisible!r}")
    if not report.invisible:
        return report.visible
    lines = "\n  ".join(report.lines())
    if on_invisible == "refuse" or not report.visible:
        raise ValueError(
            f"the discriminator cannot see {len(report.invisible)} of the constraint types:\n"
            f"  {lines}\n"
            "take them out of data.types, use a discriminator whose tokenizer keeps the"
            " difference (cased; a larger discriminator.max_tokens), or set"
            " data.on_invisible=drop to go on without them"
            + ("" if report.visible else "; with none left there is nothing to train on")
        )
    warnings.warn(
        f"left out, as the discriminator cannot see them:\n  {lines}", UserWarning, stacklevel=2
    )
    return report.visible
