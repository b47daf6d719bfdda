"""The discriminator's input: one format for gold and generated text, nothing visible lost."""

import numpy as np
import pytest

from gapo_jax.constraints import check_visibility, resolve
from gapo_jax.data.discriminator_text import (
    CUT,
    NEWLINE,
    discriminator_text,
    encode_discriminator,
    encode_texts,
    line_break,
    pair_ids,
)
from gapo_jax.data.tiny_tokenizer import character_tokenizer, wordpiece_tokenizer
from gapo_jax.data.tokenizer import decode_responses, load_tokenizer

GOLD = [
    "Tea is warm.",
    "<<On Tea>>\n\n* warm\n* calm, sweet\n\nP.S. Try it.",
    '"Quoted all over."',
    "Two lines\nwith   gaps, commas; and 'marks' (all) - kept!",
]


def _as_generated(tokenizer, texts, width=160):
    """Encode gold answers as the sampler would return them: right-padded, closed by EOS."""
    tokens_BR = np.full((len(texts), width), tokenizer.pad_token_id, np.int32)
    mask_BR = np.zeros_like(tokens_BR)
    for row, text in enumerate(texts):
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        tokens_BR[row, : len(ids)], mask_BR[row, : len(ids)] = ids, 1
    return decode_responses(tokenizer, tokens_BR, mask_BR)


def _assert_same_input(generator, discriminator):
    prompts = ["Write about tea. Use a title."] * len(GOLD)
    generated = _as_generated(generator, GOLD)
    for prompt, gold, ours in zip(prompts, GOLD, generated, strict=True):
        texts = [discriminator_text(prompt, text) for text in (gold, ours)]
        assert texts[0][1].encode() == texts[1][1].encode()
        assert texts[0] == texts[1]
    gold = encode_discriminator(discriminator, prompts, GOLD, 512)
    ours = encode_discriminator(discriminator, prompts, generated, 512)
    for one, two in zip(gold, ours, strict=True):
        np.testing.assert_array_equal(one, two)


def test_gold_through_the_sampler_path_is_identical_tiny():
    _assert_same_input(character_tokenizer(), wordpiece_tokenizer())


def test_gold_through_the_sampler_path_is_identical_real(smollm2, minilm):
    _assert_same_input(load_tokenizer(smollm2), load_tokenizer(minilm))


@pytest.mark.parametrize("end", ["", " ", "\n", "\n\n  ", "\r\n"])
def test_white_space_at_the_ends_does_not_reach_it(end):
    assert discriminator_text("Task." + end, "Text." + end) == ("Task.", "Text.")
    assert discriminator_text("Task.", end + "Text. \nMore.") == ("Task.", f"Text. {NEWLINE} More.")


def _visible(tokenizer):
    """Return a function that gives the tokens of a response as the discriminator sees them."""
    return lambda text: tokenizer.convert_ids_to_tokens(pair_ids(tokenizer, "p", text, 400)[0])


def test_line_breaks_and_marks_survive_the_tokenizer():
    tokens = _visible(wordpiece_tokenizer())("<<a>>\n* b\n\n- c")
    assert tokens.count(NEWLINE) == 3
    assert [token for token in tokens if token in "<>*-"] == ["<", "<", ">", ">", "*", "-"]
    assert "[UNK]" not in tokens


def test_line_breaks_and_marks_survive_minilm(minilm):
    tokenizer = load_tokenizer(minilm)
    tokens = _visible(tokenizer)("<<a>>\n* b\n\n- c\n******\nd")
    assert tokens.count(NEWLINE) == 5 and tokens.count("*") == 7
    assert "[UNK]" not in tokens
    assert tokenizer.convert_tokens_to_ids(CUT) != tokenizer.unk_token_id


def test_layout_masks_and_segments():
    tokenizer = wordpiece_tokenizer()
    tokens_BT, mask_BT, type_ids_BT = encode_discriminator(
        tokenizer, ["a b", "c"], ["d", "e f g"], 16, pad_to=12
    )
    assert tokens_BT.shape == (2, 12) and tokens_BT.dtype == np.int32
    assert mask_BT.dtype == type_ids_BT.dtype == np.int32
    row = tokenizer.convert_ids_to_tokens(tokens_BT[0])
    assert row[:7] == ["[CLS]", "a", "b", "[SEP]", "d", "[SEP]", "[PAD]"]
    np.testing.assert_array_equal(mask_BT.sum(axis=1), [6, 7])
    np.testing.assert_array_equal(type_ids_BT[0, :7], [0, 0, 0, 0, 1, 1, 0])


def test_it_is_the_tokenizers_own_pair_encoding(minilm):
    tokenizer = load_tokenizer(minilm)
    first, second = discriminator_text("Write a note.\nNo commas.", GOLD[1])
    wanted = tokenizer(first, second)
    tokens_BT, _, type_ids_BT = encode_discriminator(
        tokenizer, ["Write a note.\nNo commas."], [GOLD[1]], 256
    )
    assert tokens_BT[0].tolist() == wanted["input_ids"]
    assert type_ids_BT[0].tolist() == wanted["token_type_ids"]


def test_truncation_keeps_both_ends_of_prompt_and_response():
    tokenizer = wordpiece_tokenizer()
    prompt = "t " * 10 + "x " * 60 + "k"
    response = "h " * 5 + "y " * 80 + "z"
    for max_length in (15, 24, 40, 100):
        encoded = encode_texts(tokenizer, [prompt], [response], max_length)
        assert encoded.truncated_B.tolist() == [True]
        assert encoded.mask_BT.sum() == max_length
        tokens = tokenizer.convert_ids_to_tokens(encoded.tokens_BT[0])
        middle = tokens.index("[SEP]")
        first, second = tokens[1:middle], tokens[middle + 1 : -1]
        assert first[0] == "t" and first[-1] == "k"
        assert second[0] == "h" and second[-1] == "z" and CUT in second
    whole = encode_texts(tokenizer, ["t k"], [response], 100)
    assert whole.truncated_B.tolist() == [False]


def test_a_short_prompt_is_never_cut_for_a_long_response():
    tokenizer = wordpiece_tokenizer()
    encoded = encode_texts(tokenizer, ["a b c d"], ["y " * 90], 20)
    assert tokenizer.convert_ids_to_tokens(encoded.tokens_BT[0])[:6] == [
        "[CLS]", "a", "b", "c", "d", "[SEP]",
    ]  # fmt: skip


def test_errors_say_what_to_change():
    tokenizer = wordpiece_tokenizer()
    with pytest.raises(ValueError, match="1 of 2 rows exceed 16.*row 1.*max_length"):
        encode_discriminator(tokenizer, ["a", "a"], ["b", "b " * 30], 16, on_truncation="raise")
    with pytest.raises(ValueError, match="pad_to"):
        encode_discriminator(tokenizer, ["a"], ["b " * 9], 16, pad_to=8)
    with pytest.raises(ValueError, match="2 prompts and 1 responses"):
        encode_discriminator(tokenizer, ["a", "b"], ["c"], 16)
    with pytest.raises(ValueError, match="nothing to encode"):
        encode_discriminator(tokenizer, [], [], 16)
    with pytest.raises(ValueError, match="at least 7"):
        encode_discriminator(tokenizer, ["a"], ["b"], 6)


def test_pad_to_takes_buckets():
    tokenizer = wordpiece_tokenizer()
    widths = [
        encode_discriminator(tokenizer, ["a"], ["b " * n], 64, pad_to=(32, 8, 16))[0].shape[1]
        for n in (1, 5, 13)
    ]
    assert widths == [8, 16, 32]


def test_byte_level_texts_are_the_tokenizers_own_pair_encoding(byte_level):
    prompt, response = "Write a note.\nNo commas.", GOLD[1]
    tokens_BT, mask_BT, type_ids_BT = encode_discriminator(byte_level, [prompt], [response], 256)
    wanted = byte_level(prompt, response)["input_ids"]
    assert wanted[0] == 0 and wanted.count(2) == 3 and wanted[-1] == 2
    assert tokens_BT[0].tolist() == wanted
    assert mask_BT.all() and not type_ids_BT.any()


def test_byte_level_tokenizers_keep_line_breaks_and_are_cut_by_a_token(byte_level):
    assert line_break(byte_level) == "\n" and line_break(wordpiece_tokenizer()) == f" {NEWLINE} "
    encoded = encode_texts(byte_level, ["task"], ["h\n" + "y" * 80 + "z"], 24)
    assert encoded.truncated_B[0] and encoded.mask_BT.sum() == 24
    row = encoded.tokens_BT[0].tolist()
    text = byte_level.decode(row)
    assert text.startswith("<s>task</s></s>h\n") and text.endswith("z</s>")
    assert row.count(byte_level(CUT, add_special_tokens=False)["input_ids"][-1]) == 1
    assert byte_level.unk_token_id not in row


def test_a_cased_byte_level_tokenizer_sees_line_breaks_marks_and_capitals(byte_level):
    def encode(prompt, response):
        return pair_ids(byte_level, prompt, response, 1500)[0]

    names = ("number_bullet_lists", "number_paragraphs", "title", "english_capital", "quotation")
    report = check_visibility(resolve(names), encode, max_length=1500)
    assert report.invisible == () and len(report.visible) == 5


def test_a_tokenizer_without_frame_is_refused():
    with pytest.raises(ValueError, match="cls_token and a sep_token"):
        encode_texts(character_tokenizer(), ["a"], ["b"], 32)
