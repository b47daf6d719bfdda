"""Turn (prompt, response) into what the discriminator reads: the only place that does.

Real and generated texts go through the same functions, so the format can never give away where a
text came from. (The official release joins them differently: real rows as one output, generated
rows as prompt plus decoded whole.) Contents are encoded so that they cannot hold a control token
such as [SEP] (`control_tokens.py`).

BERT tokenizers drop line breaks, and with them titles, bullets and paragraphs. For them each line
break becomes `NEWLINE`, a character that has its own id in the BERT vocabularies. Byte-level
tokenizers (RoBERTa, ModernBERT) keep line breaks and get them unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gapo_jax.data.control_tokens import text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEWLINE = "¶"
CUT = "…"  # stands where truncation took the middle out
_MIN_ROOM = 4


class EncodedTexts(NamedTuple):
    """Discriminator input: three int32 arrays [B, T] and `truncated_B`, bool."""

    tokens_BT: np.ndarray
    mask_BT: np.ndarray
    type_ids_BT: np.ndarray
    truncated_B: np.ndarray


class _PairLayout(NamedTuple):
    """The ids that a tokenizer puts around two texts, and the segment id of the second."""

    before: list[int]
    between: list[int]
    after: list[int]
    segment: int

    def room(self, max_length: int) -> int:
        """Return the tokens left for text; ValueError when they are too few to mean anything."""
        specials = len(self.before) + len(self.between) + len(self.after)
        if max_length < specials + _MIN_ROOM:
            raise ValueError(
                f"max_length is {max_length}: the discriminator needs at least "
                f"{specials + _MIN_ROOM} tokens"
            )
        return max_length - specials


def _pair_layout(tokenizer: PreTrainedTokenizerBase) -> _PairLayout:
    """Read the layout off the tokenizer's own encoding of a pair.

    BERT gives [CLS] a [SEP] b [SEP], RoBERTa <s> a </s></s> b </s>. A tokenizer that puts nothing
    behind the texts gets the layout of BERT.
    """
    encoding = tokenizer("a", "b", return_token_type_ids=True)
    ids: list[int] = encoding["input_ids"]  # pyright: ignore
    texts = encoding.sequence_ids(0)
    first = [place for place, text in enumerate(texts) if text == 0]
    second = [place for place, text in enumerate(texts) if text == 1]
    segment: int = encoding["token_type_ids"][second[0]]  # pyright: ignore
    if after := ids[second[-1] + 1 :]:
        return _PairLayout(ids[: first[0]], ids[first[-1] + 1 : second[0]], after, segment)
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    if start is None or end is None:
        raise ValueError(
            "wanted a tokenizer that frames texts or has a cls_token and a sep_token, got "
            f"{type(tokenizer).__name__} with {start} and {end}: use the tokenizer of an encoder"
        )
    return _PairLayout([start], [end], [end], segment)  # pyright: ignore


def line_break(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text for a line break: itself, or `NEWLINE` if the tokenizer drops line breaks."""
    broken, spaced = (tokenizer(text, add_special_tokens=False) for text in ("a\nb", "a b"))
    return "\n" if broken["input_ids"] != spaced["input_ids"] else f" {NEWLINE} "


def _normalise(text: str, between_lines: str) -> str:
    # Leading and trailing white space depends on how a text was obtained (decoded up to the end
    # token, cut at the length limit, read from a file), so it must not reach the discriminator.
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    lines = (line.rstrip() for line in text.split("\n"))
    return between_lines.join(lines)


def discriminator_text(
    prompt: str, response: str, between_lines: str = f" {NEWLINE} "
) -> tuple[str, str]:
    """Return the two texts that the discriminator reads, for real and generated text alike.

    White space around the text and at line ends is dropped, and each line break becomes
    `between_lines` (see `line_break`). The response must be plain text, decoded without special
    tokens.
    """
    return _normalise(prompt, between_lines), _normalise(response, between_lines)


def _keep_ends(ids: list[int], limit: int, cut_id: int) -> list[int]:
    """Shorten `ids` to `limit` by replacing their middle with one token, `cut_id`."""
    if len(ids) <= limit:
        return ids
    head = limit // 2
    tail = limit - head - 1
    return ids[:head] + [cut_id] + (ids[-tail:] if tail else [])


def pair_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, max_length: int
) -> tuple[list[int], int, bool]:
    """Tokenise one (prompt, response).

    A pair that is too long first loses the middle of its response, since what decides a constraint
    on format is at the ends, but at least half of the room is left to the response. Then it loses
    the middle of the prompt, whose constraints are at the ends.

    Returns:
        The ids with special tokens, the number of ids in the first segment, and whether something
            was
        cut.
    """
    layout = _pair_layout(tokenizer)
    room = layout.room(max_length)
    first, second = discriminator_text(prompt, response, line_break(tokenizer))
    prompt_ids, reply_ids = text_encoder(tokenizer).encode([first, second])
    return _join(tokenizer, layout, prompt_ids, reply_ids, room)


def _join(
    tokenizer: PreTrainedTokenizerBase,
    layout: _PairLayout,
    prompt_ids: list[int],
    reply_ids: list[int],
    room: int,
) -> tuple[list[int], int, bool]:
    cut = len(prompt_ids) + len(reply_ids) > room
    if cut:
        # If it takes several tokens, the last one is the mark; the first may be a blank.
        cut_id: int = tokenizer(CUT, add_special_tokens=False)["input_ids"][-1]  # pyright: ignore
        reply_ids = _keep_ends(reply_ids, max(room - len(prompt_ids), room // 2), cut_id)
        prompt_ids = _keep_ends(prompt_ids, room - len(reply_ids), cut_id)
    first = [*layout.before, *prompt_ids, *layout.between]
    return [*first, *reply_ids, *layout.after], len(first), cut


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    max_length: int,
    pad_to: int | Sequence[int] | None = None,
    as_is: bool = False,
) -> EncodedTexts:
    """Tokenise prompts and responses for the discriminator.

    Args:
        tokenizer: the discriminator's own tokenizer, whose special tokens stand around the texts;
            segment ids are 0 throughout where it gives none (RoBERTa).
        prompts: B prompts; `responses`: B responses.
        max_length: longest row in tokens, special tokens counted.
        pad_to: fixed width, or bucket widths of which the smallest that fits is taken; None pads
            to the longest row.
        as_is: leave blanks and line breaks alone, for networks that others trained.

    Returns:
        Padded int32 arrays, and which rows lost text.

    Raises:
        ValueError: when the two sequences differ in length, are empty, or `pad_to` is too small.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"got {len(prompts)} prompts and {len(responses)} responses")
    if not prompts:
        raise ValueError("nothing to encode: got no prompts")
    layout = _pair_layout(tokenizer)
    room = layout.room(max_length)
    between = line_break(tokenizer)
    pairs = list(zip(prompts, responses, strict=True))
    if not as_is:
        pairs = [discriminator_text(prompt, response, between) for prompt, response in pairs]
    # One call for all texts: the Rust tokenizer works in parallel.
    texts = [first for first, _ in pairs] + [second for _, second in pairs]
    ids = text_encoder(tokenizer).encode(texts)
    rows = [
        _join(tokenizer, layout, first, second, room)
        for first, second in zip(ids[: len(pairs)], ids[len(pairs) :], strict=True)
    ]
    width = _width(max(len(row) for row, _, _ in rows), pad_to)
    shape = (len(rows), width)
    tokens_BT = np.full(shape, tokenizer.pad_token_id or 0, np.int32)
    mask_BT, type_ids_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for index, (row, first_length, _) in enumerate(rows):
        tokens_BT[index, : len(row)] = row
        mask_BT[index, : len(row)] = 1
        type_ids_BT[index, first_length : len(row)] = layout.segment
    return EncodedTexts(tokens_BT, mask_BT, type_ids_BT, np.array([cut for _, _, cut in rows]))


def _width(longest: int, pad_to: int | Sequence[int] | None) -> int:
    if pad_to is None:
        return longest
    sizes = (pad_to,) if isinstance(pad_to, int) else tuple(sorted(pad_to))
    for size in sizes:
        if longest <= size:
            return size
    raise ValueError(
        f"a discriminator row has {longest} tokens, pad_to allows {sizes}: raise pad_to or lower "
        "max_length"
    )


def encode_discriminator(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    max_length: int,
    pad_to: int | Sequence[int] | None = None,
    on_truncation: Literal["cut", "raise"] = "cut",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (tokens_BT, mask_BT, type_ids_BT), int32, as the discriminator reads them.

    With `on_truncation="raise"` a row that would be cut raises ValueError with its number and the
    limit; use `encode_texts` to learn which rows were cut.
    """
    encoded = encode_texts(tokenizer, prompts, responses, max_length, pad_to)
    if on_truncation == "raise" and encoded.truncated_B.any():
        rows = np.flatnonzero(encoded.truncated_B)
        raise ValueError(
            f"{len(rows)} of {len(prompts)} rows exceed {max_length} discriminator tokens (first: "
            f"row {rows[0]}): raise the discriminator's max_length or shorten the texts"
        )
    return encoded.tokens_BT, encoded.mask_BT, encoded.type_ids_BT
