"""Build byte-level BPE tokenizers from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that `tokenizer.ggml.*` describes (llama.cpp's gguf-py constants).

    Raises:
        ValueError: it is not byte-level BPE with a known pre-tokeniser.
    """
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
