"""Tokenizers from HF folders, hub ids and GGUF metadata; the chat template; encode and decode.

The chat template is applied in `templated` and nowhere else. The result is text in which every
special token is visible, BOS included where the model wants one, so `encode_prompts` adds none and
BOS cannot come in twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import gguf
import jinja2
import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gapo_jax import hub

# The split of Llama 3's and Qwen 2's tokenizer.json, which differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split_words(digits: str) -> pre_tokenizers.PreTokenizer:
    pattern = tokenizers.Regex(_WORDS.replace("DIGITS", digits))
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# Pre-tokenisers named by `tokenizer.ggml.pre`. llama.cpp's `smollm` splits digits one by one and
# then applies the GPT-2 pattern; transformers' own GGUF reader leaves the digit split out, which
# shows on blanks before a digit ("a  1"). `dbrx` has the pattern of `llama-bpe` (llama.cpp's pull
# request 7132).
_PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama-bpe": lambda: _split_words(r"\p{N}{1,3}"),
    "dbrx": lambda: _split_words(r"\p{N}{1,3}"),
    "qwen2": lambda: _split_words(r"\p{N}"),
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def load_tokenizer(src: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an HF folder, a hub id, or a `.gguf` file (from its metadata).

    Truncation and padding stored in a tokenizer file are switched off: lengths are this library's
    business. No weight is read. Raises FileNotFoundError or ValueError as `hub.resolve` and
    `hub.open_gguf` do, and ValueError for a GGUF vocabulary that is not byte-level BPE with a known
    pre-tokeniser.
    """
    path = hub.resolve(src)
    if path.is_file():
        return _gguf_tokenizer(path)
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise FileNotFoundError(
            f"Wanted a tokenizer in {path}, got a folder without tokenizer.json. "
            "Copy the tokenizer files of the base model into it."
        )
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer from `tokenizer.ggml.*` (llama.cpp's gguf-py constants)."""
    reader = hub.open_gguf(path)
    model = hub.gguf_required(reader, "tokenizer.ggml.model")
    pre = hub.gguf_value(reader, "tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise ValueError(
            f"Wanted a GGUF tokenizer of model 'gpt2' with pre-tokeniser in "
            f"{sorted(_PRE_TOKENIZERS)}, got {model!r} with {pre!r} in {path}. "
            "Give convert.py and generate.py the model's own tokenizer: --tokenizer with its HF "
            "folder or hub id (to train, export the model with it first)."
        )
    tokens = hub.gguf_required(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in hub.gguf_required(reader, "tokenizer.ggml.merges")]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            # Llama 3's vocabulary has whole words that its merges do not reach.
            ignore_merges=pre == "llama-bpe",
        )
    )
    if pre == "qwen2":
        # Of the model's tokenizer.json; llama.cpp leaves it out.
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    types = hub.gguf_value(reader, "tokenizer.ggml.token_type", [])
    for kind, special in ((gguf.TokenType.CONTROL, True), (gguf.TokenType.USER_DEFINED, False)):
        added = [
            tokenizers.AddedToken(token, normalized=False, special=special)
            for token, token_type in zip(tokens, types, strict=False)
            if token_type == kind
        ]
        (backend.add_special_tokens if special else backend.add_tokens)(added)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_gguf_settings(reader, tokens))


def _gguf_settings(reader: gguf.GGUFReader, tokens: Sequence[str]) -> dict[str, object]:
    """Special tokens, BOS/EOS policy, length limit and chat template, as tokenizer arguments."""
    architecture = hub.gguf_required(reader, "general.architecture")
    # llama.cpp's default.
    adds_bos = hub.gguf_value(reader, "tokenizer.ggml.pre") == "llama-bpe"
    settings: dict[str, object] = {
        "add_bos_token": bool(hub.gguf_value(reader, "tokenizer.ggml.add_bos_token", adds_bos)),
        "add_eos_token": bool(hub.gguf_value(reader, "tokenizer.ggml.add_eos_token", False)),
        "model_max_length": int(hub.gguf_value(reader, f"{architecture}.context_length", 1 << 30)),
        "clean_up_tokenization_spaces": False,
        "chat_template": hub.gguf_value(reader, "tokenizer.chat_template"),
    }
    for name, key in _SPECIAL.items():
        index = hub.gguf_value(reader, f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            settings[f"{name}_token"] = tokens[index]
    settings.setdefault("pad_token", settings.get("eos_token"))
    return settings


def chat_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str, system: str | None = None) -> str:
    """Return the text that the model is to continue: one user turn in the model's chat template.

    `system=None` leaves the system turn to the template: SmolLM2's writes "You are a helpful AI
    assistant named SmolLM, trained by Hugging Face". A string, "" included, replaces it. Without a
    template the prompt stands for itself, behind BOS if the tokenizer adds one, and a system text
    raises ValueError. The result is encoded with `add_special_tokens=False` (`encode_prompts`).
    """
    if tokenizer.chat_template is None:
        if system is not None:
            raise ValueError(
                "Wanted a chat template for the system text, got a tokenizer without one. "
                "Set system to None, or set the chat_template of the tokenizer."
            )
        adds_bos = tokenizer.bos_token_id is not None and (
            tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        )
        return f"{tokenizer.bos_token}{prompt}" if adds_bos else prompt
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": prompt})
    return templated(tokenizer, turns, generate=True)


def templated(
    tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], *, generate: bool = False
) -> str:
    """Return turns of "role" and "content" in the model's chat template, with the header of the
    answer behind them if one is to be generated.

    Raises:
        ValueError: the template refuses the turns, as some refuse a system turn or two user turns
            in sequence; has its reason.
    """
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
    except jinja2.TemplateError as error:
        roles = [turn["role"] for turn in turns]
        raise ValueError(
            f"the chat template refuses turns of the roles {roles}: {error}; leave out or join "
            "turns that the model does not know"
        ) from error
    return str(text)


def encode_prompts(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    max_len: int,
    *,
    buckets: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(tokens_BP, mask_BP)`, int32, padded on the left, of texts made by `chat_prompt`.

    P is the smallest of `buckets` (default: multiples of 32, then `max_len`) that holds the longest
    prompt, so that few shapes are compiled; pass `buckets=(max_len,)` for one shape. Raises
    ValueError for no prompts, an empty prompt, or one above `max_len` tokens (index and length).
    """
    if not prompts:
        raise ValueError("Wanted at least one prompt, got none.")
    rows = tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
    for index, row in enumerate(rows):
        if not 0 < len(row) <= max_len:
            raise ValueError(
                f"Wanted prompts of 1 to {max_len} tokens, got {len(row)} tokens in prompt {index} "
                f"({prompts[index][-80:]!r}). Shorten it or raise the prompt length limit."
            )
    longest = max(len(row) for row in rows)
    sizes = sorted(buckets) if buckets else [*range(32, max_len, 32), max_len]
    width = next((size for size in sizes if size >= longest), max_len)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    tokens_BP = np.full((len(rows), width), pad_id, np.int32)
    mask_BP = np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        tokens_BP[index, width - len(row) :] = row
        mask_BP[index, width - len(row) :] = 1
    return tokens_BP, mask_BP


def encode_responses(
    tokenizer: PreTrainedTokenizerFast,
    responses: Sequence[str],
    ended: Sequence[bool],
    width: int,
    eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(tokens_BR, mask_BR)`, int32, padded on the right to `width`.

    A response that `ended` gets `eos_id` behind its text. Raises ValueError for one that does not
    fit (index and length).
    """
    rows = [
        [*ids, eos_id] if whole else ids
        for ids, whole in zip(response_ids(tokenizer, responses), ended, strict=True)
    ]
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    tokens_BR = np.full((len(rows), width), pad_id, np.int32)
    mask_BR = np.zeros((len(rows), width), np.int32)
    for index, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(
                f"Wanted responses of at most {width} tokens, got {len(row)} in response {index} "
                f"({responses[index][-80:]!r}). Leave it out or raise the response length limit."
            )
        tokens_BR[index, : len(row)] = row
        mask_BR[index, : len(row)] = 1
    return tokens_BR, mask_BR


def response_ids(tokenizer: PreTrainedTokenizerFast, responses: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each response as it stands after its prompt, without an end token."""
    ids: list[list[int]] = tokenizer(list(responses), add_special_tokens=False, verbose=False)[  # pyright: ignore
        "input_ids"
    ]
    return ids


def decode_responses(
    tokenizer: PreTrainedTokenizerFast, tokens_BR: np.ndarray, mask_BR: np.ndarray
) -> list[str]:
    """Return the text of each response: real tokens only, special tokens skipped, else verbatim.

    `tokens_BR` and `mask_BR` are int arrays; tokens with mask 0 are padding and are left out.
    """
    tokens_BR, mask_BR = np.asarray(tokens_BR), np.asarray(mask_BR)
    if tokens_BR.shape != mask_BR.shape or tokens_BR.ndim != 2:
        raise ValueError(
            f"Wanted tokens_BR and mask_BR of one shape [B, R], got {tokens_BR.shape} and "
            f"{mask_BR.shape}."
        )
    return [
        str(
            tokenizer.decode(
                row[mask > 0].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        for row, mask in zip(tokens_BR, mask_BR, strict=True)
    ]


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer can give an id that the embedding table lacks."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"Wanted token ids below the model's vocabulary of {vocab_size}, got a tokenizer with "
            f"id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}). Use the tokenizer that "
            "belongs to the model, or resize the embedding first."
        )
