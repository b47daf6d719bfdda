"""Load tokenizers; encode prompts and responses to padded arrays, and decode responses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gapo_jax import hub
from gapo_jax.data.batching import bucket, round_up
from gapo_jax.data.chat import ChatText, end_id, response_ids
from gapo_jax.data.chat import chat_prompt as chat_prompt
from gapo_jax.data.control_tokens import limit_ids, text_encoder
from gapo_jax.data.gguf_tokenizer import gguf_tokenizer


def load_tokenizer(src: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an HF folder, a hub id, or a `.gguf` file (from its metadata).

    Truncation and padding stored in a tokenizer file are switched off: lengths are this library's
    business. No weight is read. Raises FileNotFoundError or ValueError as `hub.resolve` and
    `hub.open_gguf` do, and ValueError for a GGUF vocabulary that is not byte-level BPE with a known
    pre-tokeniser.
    """
    path = hub.resolve(src)
    if path.is_file():
        return gguf_tokenizer(path)
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise FileNotFoundError(
            f"Wanted a tokenizer in {path}, got a folder without tokenizer.json. "
            "Copy the tokenizer files of the base model into it."
        )
    tokenizer = _read(path)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _read(path: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer files of a folder, none of whose code is run or asked for."""
    try:
        try:
            return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except ValueError:  # its class is code of the folder; its tokenizer.json says all the same
            if not (path / "tokenizer.json").is_file():
                raise
            return PreTrainedTokenizerFast.from_pretrained(path)
    except Exception as error:  # the Rust library raises bare exceptions
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"Wanted a tokenizer in {path}, got files that cannot be read ({reason}). Copy the "
            "tokenizer files of the base model into it, tokenizer.json above all."
        ) from error


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts made by `chat_prompt`; any other text is read as plain text."""
    return [
        text.ids if isinstance(text, ChatText) else text_encoder(tokenizer).encode([text])[0]
        for text in prompts
    ]


def encode_prompts(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_len: int,
    *,
    buckets: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(tokens_BP, mask_BP)`, int32, padded on the left, of texts made by `chat_prompt`.

    P is the smallest of `buckets` (by default the next multiple of 32) that holds the longest
    prompt, so that few shapes are compiled; pass `buckets=(max_len,)` for one shape.

    Raises:
        ValueError: no prompts, an empty prompt, or one above `max_len` tokens (index and length).
    """
    if not prompts:
        raise ValueError("Wanted at least one prompt, got none.")
    rows = prompt_ids(tokenizer, prompts)
    for index, row in enumerate(rows):
        if not 0 < len(row) <= max_len:
            raise ValueError(
                f"Wanted prompts of 1 to {max_len} tokens, got {len(row)} tokens in prompt {index} "
                f"({prompts[index][-80:]!r}). Shorten it or raise the prompt length limit."
            )
    longest = max(map(len, rows))
    width = bucket(longest, buckets) if buckets else round_up(longest, max_len, 32)
    return _padded(tokenizer, rows, width, left=True)


def _padded(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[list[int]], width: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens [B, width], mask) of rows that fit, int32."""
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        tokens[index, place] = row
        mask[index, place] = 1
    return tokens, mask


def encode_responses(
    tokenizer: PreTrainedTokenizerFast,
    responses: Sequence[str],
    ended: Sequence[bool],
    width: int,
    eos_id: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(tokens_BR, mask_BR)`, int32, padded on the right to `width`.

    A response that `ended` gets the end that the chat template gives an answer, or `eos_id` where
    there is none. Raises ValueError for one that does not fit (index and length).
    """
    rows = response_ids(tokenizer, responses, ended, eos_id)
    for index, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(
                f"Wanted responses of at most {width} tokens, got {len(row)} in response {index} "
                f"({responses[index][-80:]!r}). Leave it out or raise the response length limit."
            )
    return _padded(tokenizer, rows, width, left=False)


def decode_responses(
    tokenizer: PreTrainedTokenizerFast, tokens_BR: np.ndarray, mask_BR: np.ndarray
) -> list[str]:
    """Return the text of each response verbatim, without special tokens and the end of an answer.

    `tokens_BR` and `mask_BR` are int arrays; tokens with mask 0 are padding and are left out.
    """
    tokens_BR, mask_BR = np.asarray(tokens_BR), np.asarray(mask_BR)
    if tokens_BR.shape != mask_BR.shape or tokens_BR.ndim != 2:
        raise ValueError(
            f"Wanted tokens_BR and mask_BR of one shape [B, R], got {tokens_BR.shape} and "
            f"{mask_BR.shape}."
        )
    end = end_id(tokenizer)  # of some templates an ordinary token for the tokenizer
    rows = [row[(mask > 0) & (row != end)] for row, mask in zip(tokens_BR, mask_BR, strict=True)]
    return [
        str(
            tokenizer.decode(
                row.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        for row in rows
    ]


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """Check that the tokenizer belongs to a model with `vocab_size` embeddings.

    Added tokens beyond them, as Gemma 3's text models have one for images, are accepted: only a
    text that gives such an id is refused, when it is encoded.

    Raises:
        ValueError: a token of the vocabulary itself has no embedding.
    """
    outside = {name: i for name, i in tokenizer.get_vocab().items() if i >= vocab_size}
    if not outside:
        return
    added = tokenizer.get_added_vocab()
    wrong = [name for name in outside if name not in added]
    if wrong:
        name = max(wrong, key=outside.__getitem__)
        raise ValueError(
            f"Wanted token ids below the model's vocabulary of {vocab_size}, got a tokenizer with "
            f"id {outside[name]} ({name!r}). Use the tokenizer that "
            "belongs to the model, or resize the embedding first."
        )
    limit_ids(tokenizer, vocab_size)
