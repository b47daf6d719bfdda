"""The GGUF tokenizer against transformers' own reading of the file; prompts in, responses out."""

from __future__ import annotations

import json
import random
import unicodedata

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gapo_jax import constraints
from gapo_jax.data.tasks import tasks
from gapo_jax.data.tiny_tokenizer import (
    character_tokenizer,
    known_words,
    word_tokenizer,
    wordpiece_tokenizer,
)
from gapo_jax.data.tokenizer import (
    chat_prompt,
    check_vocabulary,
    decode_responses,
    encode_prompts,
    load_tokenizer,
)

CORPUS = [
    "",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\nnewlines\r\n\n\nand more",
    "it's we'll they've I'M don't O'Brien",
    "Größe, naïve café, Åse, Ελλάδα, Москва, العربية, עברית, हिन्दी, ไทย",
    "日本語の文章。中文字符，韩国어 한국어",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200b zero width \ufeff",
    "year 1984, 3.14159, 1,000,000, 2e-5, x2y",
    "def f(x):\n    if x > 10:\n        return x ** 2  # squared\n\treturn None",
    "for(int i=0;i<n;++i){a[i]+=b[i]*c;}",
    "https://example.org/a?b=c&d=%20#frag user@mail.net",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|im_end|><file_sep>x <notaspecial> <|im_end",
    "ALLCAPSWORD snake_case camelCase ... !!! ??? --- ***",
    "\x00\x01 control \x7f \x85 \xa0nbsp\u3000wide",
]


def _random_texts(count: int) -> list[str]:
    """Strings over a mixed alphabet; no blank runs before digits (see the test below)."""
    alphabet = "abcXYZ'\n\t.,;:!?-_/\\()[]{}<>|#éßжд中🙂 "
    rng = random.Random(0)
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def ours(smollm2) -> PreTrainedTokenizerFast:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def theirs(smollm2):
    return AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


def test_ids_and_text_match_transformers(ours, theirs):
    for text in CORPUS + _random_texts(300):
        ids = ours(text)["input_ids"]
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids), text
        skipped = ours.decode(ids, skip_special_tokens=True)
        assert skipped == theirs.decode(ids, skip_special_tokens=True), text
    assert ours.get_vocab() == theirs.get_vocab()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)


def test_digits_follow_the_smollm_pre_tokenizer(ours, theirs):
    """llama.cpp's `smollm` isolates every \\p{N} first, then applies the GPT-2 pattern.

    transformers' GGUF reader applies the pattern alone, so a blank goes to the digit behind it:
    the two differ on "x  1" and on " Ⅷ". Their tokenizer on pieces cut at digits is the oracle.
    """
    rng = random.Random(1)
    texts = ["x  12 3", "Ⅷ ½ ² a²b  ½", "\t\t7\n\n 8", "   1,000   2,000"]
    texts += ["".join(rng.choices("ab 0123 ²\n", k=30)) for _ in range(50)]
    for text in texts:
        pieces = "".join(_cut(character) for character in text).split("\0")
        want = [i for piece in pieces if piece for i in theirs(piece)["input_ids"]]
        assert ours(text)["input_ids"] == want, text
    vocab = ours.get_vocab()
    assert ours("x  12")["input_ids"] == [vocab[token] for token in ("x", "ĠĠ", "1", "2")]


def _cut(character: str) -> str:
    """Put a mark before and behind a numeric character."""
    return f"\0{character}\0" if unicodedata.category(character)[0] == "N" else character


def test_every_text_survives_the_round_trip(ours):
    for text in CORPUS + _random_texts(100):
        assert ours.decode(ours(text)["input_ids"]) == text


def test_chat_prompt_is_the_template_of_the_model(ours, theirs):
    turn = {"role": "user", "content": "Name a river."}
    for system in (None, "", "Be brief."):
        turns = ([] if system is None else [{"role": "system", "content": system}]) + [turn]
        want = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert chat_prompt(ours, "Name a river.", system) == want
    assert "named SmolLM" in chat_prompt(ours, "x") and "SmolLM" not in chat_prompt(ours, "x", "")
    ids = theirs.apply_chat_template([turn], add_generation_prompt=True)["input_ids"]
    tokens_BP, mask_BP = encode_prompts(ours, [chat_prompt(ours, "Name a river.")], 64)
    assert tokens_BP[0][mask_BP[0] > 0].tolist() == ids


def test_bos_comes_in_once():
    tokenizer = character_tokenizer()
    once = [tokenizer.bos_token_id]
    templated = chat_prompt(tokenizer, "ab")
    assert templated.startswith("<s>")
    tokens_BP, mask_BP = encode_prompts(tokenizer, [templated], 32)
    assert (tokens_BP == once).sum() == 1
    # A tokenizer that adds BOS by itself and has no template: BOS is there, and once.
    tokenizer.chat_template = None
    tokenizer.add_bos_token = True
    assert tokenizer("ab")["input_ids"][0] == tokenizer.bos_token_id
    tokens_BP, mask_BP = encode_prompts(tokenizer, [chat_prompt(tokenizer, "ab")], 32)
    assert (tokens_BP == once).sum() == 1 and mask_BP.sum() == 3
    with pytest.raises(ValueError, match="chat template for the system text"):
        chat_prompt(tokenizer, "ab", system="x")


def test_encode_pads_on_the_left_to_a_bucket_and_decode_inverts_it():
    tokenizer = character_tokenizer()
    texts = ["short", "a much longer text of more than thirty-two characters", "mid-sized"]
    tokens_BP, mask_BP = encode_prompts(tokenizer, texts, 100)
    assert tokens_BP.shape == mask_BP.shape == (3, 64)
    assert tokens_BP.dtype == mask_BP.dtype == np.int32
    assert (np.diff(mask_BP, axis=1) >= 0).all()
    assert mask_BP.sum(axis=1).tolist() == [len(text) for text in texts]
    assert (tokens_BP[mask_BP == 0] == tokenizer.pad_token_id).all()
    assert decode_responses(tokenizer, tokens_BP, mask_BP) == texts
    assert encode_prompts(tokenizer, texts, 100, buckets=(100,))[0].shape == (3, 100)
    assert encode_prompts(tokenizer, texts, 100, buckets=(80, 56))[0].shape == (3, 56)


def test_decode_skips_special_tokens_and_padding():
    tokenizer = character_tokenizer()
    ids = tokenizer("ok", add_special_tokens=False)["input_ids"]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    tokens_BR = np.array([[*ids, end, pad], [*ids, ids[0], ids[0]]])
    mask_BR = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert decode_responses(tokenizer, tokens_BR, mask_BR) == ["ok", "ok"]
    with pytest.raises(ValueError, match="one shape"):
        decode_responses(tokenizer, tokens_BR, mask_BR[:, :2])


def test_encode_refuses_what_does_not_fit():
    tokenizer = character_tokenizer()
    with pytest.raises(ValueError, match="got 9 tokens in prompt 1"):
        encode_prompts(tokenizer, ["short", "too  long"], 8)
    with pytest.raises(ValueError, match="got 0 tokens in prompt 0"):
        encode_prompts(tokenizer, [""], 8)
    with pytest.raises(ValueError, match="at least one prompt"):
        encode_prompts(tokenizer, [], 8)


def test_vocabulary_larger_than_the_embedding_is_refused():
    tokenizer = character_tokenizer()
    check_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(ValueError, match="resize the embedding"):
        check_vocabulary(tokenizer, len(tokenizer) - 1)


def test_minilm_tokenizer_neither_pads_nor_truncates_unasked(minilm):
    tokenizer = load_tokenizer(minilm)
    ids = tokenizer("word " * 300)["input_ids"]
    assert len(ids) == 302
    assert len(tokenizer.backend_tokenizer.encode("word " * 300).ids) == 302
    assert len(tokenizer.backend_tokenizer.encode("word").ids) == 3


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="fetch_weights.py"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="without tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"NOPE")
    with pytest.raises(ValueError, match="first bytes b'GGUF'"):
        load_tokenizer(tmp_path / "x.gguf")


def test_words_of_prompts_are_whole_and_shapes_obey_their_constraints():
    tokenizer = word_tokenizer()
    prompt = next(iter(tasks("train"))).text + "\nDo not use any commas; add 3 titles."
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == prompt
    assert len(ids) < 0.5 * len(prompt)
    shaped = {
        "title": " <<tea>> ",
        "number_placeholders": " [tea] ",
        "number_highlighted_sections": " *tea* ",
        "postscript": " P.S. tea ",
    }
    kwargs = {"number_placeholders": {"num_placeholders": 1}}
    kwargs |= {"number_highlighted_sections": {"num_highlights": 1}}
    kwargs |= {"postscript": {"postscript_marker": "P.S."}}
    for name, piece in shaped.items():
        ids = constraints.resolve([name])
        assert len(tokenizer(piece, add_special_tokens=False)["input_ids"]) == 1
        for text, obeyed in ((piece, True), (" tea ", False)):
            found = constraints.check(text + "water", ids, [kwargs.get(name, {})])
            assert found == [obeyed], name
    judge = wordpiece_tokenizer(known_words())
    pieces = judge.tokenize("Write a short note about tea, <<tea>> bread.")
    assert "short" in pieces and "bread" in pieces
    assert not any(piece.startswith("##") for piece in pieces)


def test_code_of_a_tokenizer_is_neither_run_nor_asked_for(tmp_path, monkeypatch):
    character_tokenizer().save_pretrained(tmp_path)
    marker = tmp_path / "run"
    code = f"open({str(marker)!r}, 'w')\nclass T: pass\n"
    (tmp_path / "tokenization_own.py").write_text(code)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "T",
        "auto_map": {"AutoTokenizer": [None, "tokenization_own.T"]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "tokenization_own.T"}})
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    tokenizer = load_tokenizer(tmp_path)  # its tokenizer.json says all
    assert tokenizer("ab")["input_ids"] == character_tokenizer()("ab")["input_ids"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', "\0" * 9])
def test_a_garbled_tokenizer_is_named_in_one_line(tmp_path, text):
    character_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="tokenizer in .*cannot be read") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
