"""Fixtures that several test folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from gapo_jax.data.weights import locate


def _cached(name: str) -> Path:
    try:
        return locate(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The cached SmolLM2-135M-Instruct .gguf file; skips with the reason if it is not there."""
    return _cached("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The cached all-MiniLM-L6-v2 folder; skips with the reason if it is not there."""
    return _cached("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def byte_level():
    """A cased byte-level tokenizer that frames texts as RoBERTa's does, without segments."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(specials + alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": token for name, token in zip(("cls", "pad", "sep", "unk"), specials)},
    )
