"""The one place that turns (prompt, response) into what the discriminator reads.

Gold and generated text go through `discriminator_text` and `encode_discriminator` alike, so that
format can never give away where a text came from (the official release joins them differently:
real rows as one output, generated rows as prompt + decoded whole).

BERT tokenizers drop line breaks, and with them titles, bullets and paragraphs; each line break
becomes `NEWLINE`, a character that has its own id in the BERT vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEWLINE = "¶"
CUT = "…"  # stands where truncation took the middle out
_SPECIALS = 3  # [CLS] prompt [SEP] response [SEP]


class EncodedTexts(NamedTuple):
    """Discriminator input: three int32 arrays [B, T] and `truncated_B`, bool."""

    tokens_BT: np.ndarray
    mask_BT: np.ndarray
    type_ids_BT: np.ndarray
    truncated_B: np.ndarray


def _normalise(text: str) -> str:
    # Leading and trailing white space depends on how a text was obtained (decoded up to the end
    # token, cut at the length limit, read from a file), so it must not reach the discriminator.
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    lines = (line.rstrip() for line in text.split("\n"))
    return f" {NEWLINE} ".join(lines)


def discriminator_text(prompt: str, response: str) -> tuple[str, str]:
    """Return the two texts that the discriminator reads, for real and generated text alike.

    Surrounding white space is dropped, white space at line ends is dropped, line breaks become
    visible. The response must be plain text: decoded without special tokens.
    """
    return _normalise(prompt), _normalise(response)


def _keep_ends(ids: list[int], limit: int, cut_id: int) -> list[int]:
    """Take the middle out of `ids` so that `limit` remain, the cut marked by one token."""
    if len(ids) <= limit:
        return ids
    head = limit // 2
    tail = limit - head - 1
    return ids[:head] + [cut_id] + (ids[-tail:] if tail else [])


def pair_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, max_length: int
) -> tuple[list[int], int, bool]:
    """Tokenise one (prompt, response).

    A pair that is too long loses the middle of the response first, since a verdict on format sits
    at its ends, but never more than down to half of the room; then the middle of the prompt,
    whose constraints stand at its ends.

    Returns:
        The ids with special tokens, the number of ids in the first segment, and whether
        something was cut.
    """
    room = max_length - _SPECIALS
    if room < 4:
        raise ValueError(f"max_length is {max_length}: the discriminator needs at least 7 tokens")
    first, second = discriminator_text(prompt, response)
    prompt_ids: list[int] = tokenizer(first, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore
    reply_ids: list[int] = tokenizer(second, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore
    return _join(tokenizer, prompt_ids, reply_ids, room)


def _join(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], reply_ids: list[int], room: int
) -> tuple[list[int], int, bool]:
    cut = len(prompt_ids) + len(reply_ids) > room
    if cut:
        cut_id: int = tokenizer.convert_tokens_to_ids(CUT)  # pyright: ignore
        reply_ids = _keep_ends(reply_ids, max(room - len(prompt_ids), room // 2), cut_id)
        prompt_ids = _keep_ends(prompt_ids, room - len(reply_ids), cut_id)
    first = [tokenizer.cls_token_id, *prompt_ids, tokenizer.sep_token_id]
    return [*first, *reply_ids, tokenizer.sep_token_id], len(first), cut  # pyright: ignore


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    max_length: int,
    pad_to: int | Sequence[int] | None = None,
) -> EncodedTexts:
    """Tokenise prompts and responses for the discriminator.

    Args:
        tokenizer: the discriminator's own tokenizer (BERT type: [CLS] prompt [SEP] response [SEP]).
        prompts: B prompts; `responses`: B responses.
        max_length: longest row in tokens, special tokens counted.
        pad_to: fixed width, or bucket widths of which the smallest that fits is taken; None pads
            to the longest row.

    Returns:
        Padded int32 arrays, and which rows lost text.

    Raises:
        ValueError: when the two sequences differ in length, are empty, or `pad_to` is too small.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"got {len(prompts)} prompts and {len(responses)} responses")
    if not prompts:
        raise ValueError("nothing to encode: got no prompts")
    if max_length < _SPECIALS + 4:
        raise ValueError(f"max_length is {max_length}: the discriminator needs at least 7 tokens")
    pairs = [discriminator_text(p, r) for p, r in zip(prompts, responses, strict=True)]
    # One call for all texts: the Rust tokenizer works in parallel and its overhead is per call.
    texts = [first for first, _ in pairs] + [second for _, second in pairs]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore
    room = max_length - _SPECIALS
    rows = [
        _join(tokenizer, first, second, room)
        for first, second in zip(ids[: len(pairs)], ids[len(pairs) :], strict=True)
    ]
    width = _width(max(len(row) for row, _, _ in rows), pad_to)
    shape = (len(rows), width)
    tokens_BT = np.full(shape, tokenizer.pad_token_id or 0, np.int32)
    mask_BT, type_ids_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for index, (row, first_length, _) in enumerate(rows):
        tokens_BT[index, : len(row)] = row
        mask_BT[index, : len(row)] = 1
        type_ids_BT[index, first_length : len(row)] = 1
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

    `encode_texts` says also which rows were cut. With `on_truncation="raise"` a cut row is a
    ValueError that gives the row and the limit.
    """
    encoded = encode_texts(tokenizer, prompts, responses, max_length, pad_to)
    if on_truncation == "raise" and encoded.truncated_B.any():
        rows = np.flatnonzero(encoded.truncated_B)
        raise ValueError(
            f"{len(rows)} of {len(prompts)} rows exceed {max_length} discriminator tokens (first: "
            f"row {rows[0]}): raise the discriminator's max_length or shorten the texts"
        )
    return encoded.tokens_BT, encoded.mask_BT, encoded.type_ids_BT
