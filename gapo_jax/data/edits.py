"""Rules that edit a response so that it gains a property which it would hardly ever have.

A small model never writes a title, a postscript or quotation marks of its own accord, so without
edited texts the discriminator would see those constraints violated only. The edits look like
something a person might have written and do not prove anything: callers check with the verifiers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import numpy as np

from gapo_jax import constraints
from gapo_jax.constraints.words import content_words

# Share of edits with the marks in the wrong place, so that a mark alone does not tell.
_NEAR_MISS = 0.15
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]?\s+")


def sentences(text: str) -> list[str]:
    """Split a text into sentences at line breaks and at . ! ? followed by white space.

    A plain rule for editing; verdicts use the official splitter. List markers are dropped, and so
    is an unfinished last sentence (a response cut at its length limit) if any other is there.
    """
    parts: list[str] = []
    for line in text.split("\n"):
        line = re.sub(r"^\s*(?:[*\-•]|\d+[.)])\s+", "", line.strip())
        parts.extend(part.strip() for part in _SENTENCE_END.split(line) if part.strip())
    if len(parts) > 1 and not re.search(r"[.!?][\"')\]]?$", parts[-1]):
        parts.pop()
    return parts


def _whole(text: str) -> str:
    """Return the text without an unfinished last sentence."""
    parts = sentences(text)
    last = parts[-1] if parts else ""
    at = text.rfind(last)
    return text[: at + len(last)].strip() if at >= 0 and last else text.strip()


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _title(text: str, rng: np.random.Generator) -> str | None:
    words = content_words(text)
    if not words:
        return None
    subject = _pick(rng, words[:6]).capitalize()
    forms = ("{}", "On {}", "A Note on {}", "Thoughts about {}", "{} in Brief", "The World of {}")
    gap = "\n" if rng.random() < 0.5 else "\n\n"
    return f"<<{_pick(rng, forms).format(subject)}>>{gap}{text}"


_AFTERTHOUGHTS = (
    "I hope this helps.",
    "Let me know how it goes.",
    "There is always more to learn.",
    "Take your time with it.",
    "Ask a friend to join in.",
    "Share this with someone you like.",
)


def _postscript(text: str, rng: np.random.Generator) -> str | None:
    constraint = constraints.trainable("detectable_content:postscript").sample(rng)
    if constraint is None:
        return None
    parts, marker = sentences(text), constraint.kwargs["postscript_marker"]
    if len(parts) > 1 and "\n" not in text and rng.random() < 0.6:
        return f"{' '.join(parts[:-1])}\n\n{marker} {parts[-1]}"
    return f"{_whole(text)}\n\n{marker} {_pick(rng, _AFTERTHOUGHTS)}"


def _quotation(text: str, rng: np.random.Generator) -> str:
    plain = text.replace('"', "'").strip()
    parts = sentences(plain)
    if len(parts) > 1 and rng.random() < _NEAR_MISS:
        return f'"{parts[0]}" {" ".join(parts[1:])}'
    return f'"{plain}"'


def _ending(text: str, rng: np.random.Generator) -> str | None:
    constraint = constraints.trainable("startend:end_checker").sample(rng)
    if constraint is None:
        return None
    phrase = constraint.kwargs["end_phrase"]
    if rng.random() < _NEAR_MISS:
        return f"{phrase} {_whole(text)}"
    gap = " " if rng.random() < 0.5 else "\n"
    return f"{_whole(text)}{gap}{phrase}"


def _no_comma(text: str, rng: np.random.Generator) -> str | None:
    del rng
    return text.replace(",", "") if "," in text else None


def _bullets(text: str, rng: np.random.Generator) -> str | None:
    parts = sentences(text)
    if not parts:
        return None
    marker = "*" if rng.random() < 0.5 else "-"
    if len(parts) == 1:
        parts = [part.strip().capitalize() for part in re.split(r",\s(?:and\s)?", parts[0])]
    if len(parts) > 2 and rng.random() < 0.3:  # an opening sentence, then the list
        return "\n".join([parts[0], *(f"{marker} {item}" for item in parts[1:6])])
    size = int(rng.integers(1, min(len(parts), 5) + 1))
    return "\n".join(f"{marker} {item}" for item in parts[:size])


def _fewer_sentences(text: str, rng: np.random.Generator) -> str | None:
    parts = sentences(text)
    if len(parts) < 2:
        return None
    return " ".join(parts[: int(rng.integers(1, len(parts)))])


def _first_sentence(text: str, rng: np.random.Generator) -> str | None:
    del rng
    parts = sentences(text)
    return parts[0] if len(parts) > 1 else None


def _paragraphs(divider: str) -> Callable[[str, np.random.Generator], str | None]:
    def edit(text: str, rng: np.random.Generator) -> str | None:
        parts = sentences(text)
        if len(parts) < 2:
            return None
        cuts = int(rng.integers(1, min(len(parts), 4)))
        at = np.sort(rng.choice(np.arange(1, len(parts)), size=cuts, replace=False))
        blocks = np.split(np.array(parts, dtype=object), at)
        return divider.join(" ".join(block) for block in blocks)

    return edit


def _sections(text: str, rng: np.random.Generator) -> str | None:
    parts = sentences(text)
    if len(parts) < 2:
        return None
    name = "Section" if rng.random() < 0.5 else "SECTION"
    return "\n\n".join(f"{name} {i}\n{item}" for i, item in enumerate(parts[:3], 1))


def _on_words(count: int, form: str) -> Callable[[str, np.random.Generator], str | None]:
    """Return an edit that rewrites 1 to `count` of the text's words by `form`."""

    def edit(text: str, rng: np.random.Generator) -> str | None:
        words = content_words(text)
        if not words:
            return None
        size = int(rng.integers(1, min(count, len(words)) + 1))
        for word in rng.choice(words, size=size, replace=False):
            made = str(word).upper() if form == "upper" else None
            text = re.sub(
                rf"\b{word}\b",
                lambda match, made=made: made or form.format(match[0]),
                text,
                count=1,
                flags=re.IGNORECASE,
            )
        return text

    return edit


def _json(text: str, rng: np.random.Generator) -> str:
    return json.dumps({_pick(rng, ("answer", "text", "response")): text}, indent=2)


def _two_responses(text: str, rng: np.random.Generator) -> str | None:
    parts = sentences(text)
    if len(parts) < 2:
        return None
    cut = int(rng.integers(1, len(parts)))
    return f"{' '.join(parts[:cut])}\n******\n{' '.join(parts[cut:])}"


_EDITS: dict[str, Callable[[str, np.random.Generator], str | None]] = {
    "detectable_format:title": _title,
    "detectable_content:postscript": _postscript,
    "startend:quotation": _quotation,
    "startend:end_checker": _ending,
    "punctuation:no_comma": _no_comma,
    "detectable_format:number_bullet_lists": _bullets,
    "length_constraints:number_sentences": _fewer_sentences,
    "length_constraints:number_words": _first_sentence,
    "length_constraints:number_paragraphs": _paragraphs("\n\n***\n\n"),
    "length_constraints:nth_paragraph_first_word": _paragraphs("\n\n"),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_highlighted_sections": _on_words(4, "*{}*"),
    "detectable_content:number_placeholders": _on_words(4, "[{}]"),
    "change_case:capital_word_frequency": _on_words(6, "upper"),
    "change_case:english_capital": lambda text, rng: text.upper(),
    "change_case:english_lowercase": lambda text, rng: text.lower(),
    "detectable_format:json_format": _json,
    "combination:two_responses": _two_responses,
}

EDITABLE = frozenset(_EDITS)  # ids that `rule_edit` has a rule for


def rule_edit(response: str, type_id: str, rng: np.random.Generator) -> str | None:
    """Return the response edited towards a constraint type, or None where no rule applies.

    Args:
        response: the text to edit.
        type_id: full id of the constraint type, such as "detectable_format:title".
        rng: numpy generator; decides between variants of an edit.

    Returns:
        A text that differs from the response, or None: no rule for this type (keywords,
        languages, ...), or nothing to do (no comma to drop, a single sentence).
    """
    edit = _EDITS.get(type_id)
    text = response.strip()
    if edit is None or not text:
        return None
    edited = edit(text, rng)
    return edited if edited and edited != response else None
