"""Tokenizers out of GGUF metadata against transformers' own ones of the families, and what is said
of a GGUF file whose tokenizer we cannot read."""

from __future__ import annotations

import json
import random

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.data.tokenizer import load_tokenizer, prompt_ids
from gapo_jax.models.hf.gguf_file import GGUFSource
from gapo_jax.train.restore import load_any
from gapo_jax.train.sources import load_generator

CORPUS = [
    "",
    "Hello, world! Hello again, world.",
    "it's we'll they've I'M don't O'Brien WE'LL you'd",
    "year 1984, 3.14159, 1,000,000, 2e-5, x2y 123456789 ½ Ⅷ ²",
    "  leading, trailing  \t tabs\n\nnew lines\r\n  \n x  12",
    "Größe, naïve café, e\u0301 \u212b Ελλάδα, Москва, العربية, हिन्दी, ไทย, 日本語、中文字符。",
    "🙂👩‍👩‍👧 \u200b\ufeff\xa0nbsp\u3000wide $%&/()=?!!! ...",
    "def f(x):\n    if x > 10:\n        return x ** 2  # squared",
    "<|im_start|>user\nHi<|im_end|>\n<tool>x<notaspecial>",
    "unreachable words",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _texts():
    rng = random.Random(0)
    alphabet = "abcXYZ'sSt \n\t\r.,;!?0123456789éß中🙂½ ² "
    return CORPUS + ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(200)]


@pytest.fixture(scope="module")
def vocabulary():
    """A byte-level vocabulary and its merges, trained on the corpus; its last word is one that the
    merges do not make."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS * 3, trainer)
    record = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in record["merges"]]
    assert "unreachable" not in record["vocab"]
    return record["vocab"] | {"unreachable": len(record["vocab"])}, merges


def _write(path, vocabulary, model="gpt2", pre=None):
    """A GGUF file with a vocabulary and no tensors."""
    vocab, merges = vocabulary
    tokens = [*sorted(vocab, key=vocab.get), *SPECIALS, "<tool>"]
    kinds = [gguf.TokenType.NORMAL] * len(vocab) + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([*kinds, gguf.TokenType.USER_DEFINED])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(len(vocab))
    writer.add_eos_token_id(len(vocab) + 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _with_specials(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def test_qwen2(tmp_path, vocabulary):
    vocab, merges = vocabulary
    theirs = Qwen2Tokenizer(
        vocab=vocab | {"<|endoftext|>": len(vocab)},
        merges=merges,
        clean_up_tokenization_spaces=False,
    )
    theirs = _with_specials(theirs)
    ours = load_tokenizer(_write(tmp_path / "m.gguf", vocabulary, pre="qwen2"))
    for text in _texts():
        ids = ours(text)["input_ids"]
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids), text
    # One digit a token, and letters with their accents in one character.
    assert len(ours("1234")["input_ids"]) == 4
    assert ours("e\u0301")["input_ids"] == ours("é")["input_ids"]


class Llama3(TikTokenConverter):
    """transformers' converter of Llama 3's file, given what it would read from it."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def extract_vocab_merges_from_model(self, tiktoken_url):
        return self.vocabulary


@pytest.mark.parametrize("pre", ["llama-bpe", "dbrx"])
def test_llama_3(tmp_path, vocabulary, pre):
    theirs = Llama3(vocabulary).converted()
    theirs.model.ignore_merges = pre == "llama-bpe"
    theirs.add_special_tokens(SPECIALS)
    theirs.add_tokens(["<tool>"])
    ours = load_tokenizer(_write(tmp_path / "m.gguf", vocabulary, pre=pre))
    for text in _texts():
        want = theirs.encode(text).ids
        assert ours(text, add_special_tokens=False)["input_ids"] == want, text
        assert ours.decode(want) == theirs.decode(want, skip_special_tokens=False), text
    whole = ours("unreachable", add_special_tokens=False)["input_ids"]
    assert (whole == [vocabulary[0]["unreachable"]]) == (pre == "llama-bpe")
    # llama.cpp puts the first token before a text of Llama 3 if the file says nothing about it.
    assert (ours("a")["input_ids"][0] == ours.bos_token_id) == (pre == "llama-bpe")


@pytest.fixture
def spm(tmp_path, monkeypatch):
    """A whole model in GGUF with a SentencePiece vocabulary; no weight of it may be read."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, value in {
        "block_count": 1,
        "context_length": 256,
        "embedding_length": 8,
        "feed_forward_length": 8,
        "head_count": 1,
        "head_count_kv": 1,
    }.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{i}" for i in range(99)])
    writer.add_eos_token_id(2)
    shapes = {"token_embd.weight": (99, 8), "output_norm.weight": (8,)}
    for name, shape in {"attn_norm": (8,), "ffn_norm": (8,)}.items():
        shapes[f"blk.0.{name}.weight"] = shape
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{name}.weight"] = (8, 8)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(GGUFSource, "read", lambda *_: pytest.fail("a weight was read"))
    return tmp_path / "m.gguf"


def test_a_tokenizer_that_we_cannot_read_is_said_before_the_weights(spm):
    wanted = r"'llama-bpe', 'qwen2', .*got 'llama' with 'default' in .*--tokenizer.*HF"
    with pytest.raises(ValueError, match=wanted):
        load_any(spm)
    with pytest.raises(ValueError, match=wanted):
        load_generator(str(spm), seed=0)


def test_a_tokenizer_can_be_given(spm, tmp_path, monkeypatch):
    character_tokenizer().save_pretrained(tmp_path / "words")
    with pytest.raises(pytest.fail.Exception, match="a weight was read"):
        load_any(spm, tokenizer=str(tmp_path / "words"))
    monkeypatch.undo()
    loaded = load_any(spm, tokenizer=str(tmp_path / "words"))
    assert loaded.tokenizer("ab")["input_ids"] == character_tokenizer()("ab")["input_ids"]
    assert loaded.dtype == "float32" and loaded.module.config.vocab_size == 99
    large = character_tokenizer()
    large.add_tokens(["<x>"])
    large.save_pretrained(tmp_path / "large")
    # An added token without an embedding does no harm until a text gives it.
    loaded = load_any(spm, tokenizer=str(tmp_path / "large"))
    assert prompt_ids(loaded.tokenizer, ["ab"])
    with pytest.raises(ValueError, match="99"):
        prompt_ids(loaded.tokenizer, ["a<x>b"])


def test_what_was_trained_keeps_its_tokenizer(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="Leave --tokenizer out"):
        load_any(tmp_path, tokenizer="x/y")
