"""Types that a discriminator's tokenizer cannot see are found, refused or dropped."""

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from gapo_jax import constraints
from gapo_jax.constraints.visibility import filler

CAPITALS = {
    "change_case:english_capital",
    "change_case:english_lowercase",
    "change_case:capital_word_frequency",
}
LINES = {
    "detectable_format:number_bullet_lists",
    "length_constraints:nth_paragraph_first_word",
}
ALL = constraints.types()


def word_tokenizer(lowercase):
    """A small vocabulary: every word and mark of the probes, split as BERT splits."""
    rng = np.random.default_rng(0)
    texts = [filler(100), "Write a few sentences about rivers and how people live beside them. ¶"]
    for kind in map(constraints.get, ALL):
        sampled = kind.sample(rng)
        assert sampled is not None
        for kwargs, good, bad in kind.probes:
            texts += [good, bad, kind.describe(type(sampled)(kind.id, kwargs), 0)]
    steps = [normalizers.Lowercase()] if lowercase else []
    normalizer = normalizers.Sequence(steps)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = {
        word: None
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, "[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    return tokenizer


def encoder(tokenizer, newline=True):
    def encode(prompt, response):
        if newline:
            response = response.replace("\n", " ¶ ")
        return tokenizer.encode(prompt).ids + tokenizer.encode(response).ids

    return encode


def test_a_cased_tokenizer_with_visible_newlines_sees_everything():
    encode = encoder(word_tokenizer(lowercase=False))
    report = constraints.check_visibility(ALL, encode, max_length=400)
    assert report.visible == ALL and not report.invisible and not report.lines()
    assert constraints.enforce(report) == ALL


def test_an_uncased_tokenizer_misses_capitals():
    encode = encoder(word_tokenizer(lowercase=True))
    report = constraints.check_visibility(ALL, encode, max_length=400)
    assert set(report.identical) == CAPITALS and not report.truncated
    with pytest.raises(ValueError, match="cannot see 3 .*(?s:.)*english_capital(?s:.)*drop"):
        constraints.enforce(report)
    with pytest.warns(UserWarning, match="capital_word_frequency"):
        kept = constraints.enforce(report, on_invisible="drop")
    assert set(kept) == set(ALL) - CAPITALS


def test_lost_newlines_hide_bullets_and_paragraphs():
    encode = encoder(word_tokenizer(lowercase=False), newline=False)
    report = constraints.check_visibility(ALL, encode, max_length=400)
    assert set(report.identical) == LINES


def test_truncation_hides_the_end():
    encode = encoder(word_tokenizer(lowercase=False))
    names = ["no_comma", "quotation", "postscript", "end_checker", "title"]
    ids = constraints.resolve(names)
    roomy = constraints.check_visibility(ids, encode, max_length=200)
    assert roomy.visible == ids
    tight = constraints.check_visibility(ids, encode, max_length=48)
    assert set(tight.truncated) == set(ids) and not tight.identical
    assert all("48 tokens" in line for line in tight.lines())
    # An encode that keeps the first tokens only is caught as well.
    cut = constraints.check_visibility(ids, lambda p, r: encode(p, r)[:48], max_length=48)
    assert set(cut.invisible) == set(ids)
    with pytest.raises(ValueError, match="nothing to train on"):
        constraints.enforce(tight, on_invisible="drop")


def test_an_encode_that_drops_the_middle_is_caught():
    encode = encoder(word_tokenizer(lowercase=False))

    def ends(prompt, response):
        ids = encode("", response)
        return encode(prompt, "") + (ids if len(ids) <= 16 else ids[:8] + ids[-8:])

    ids = constraints.resolve(["postscript", "existence", "end_checker", "quotation"])
    report = constraints.check_visibility(ids, ends, max_length=400)
    # What stands at an end stays visible; a word in the middle does not.
    assert set(report.visible) == set(constraints.resolve(["end_checker", "quotation"]))


def test_wrong_action():
    report = constraints.check_visibility((), lambda prompt, response: [0], max_length=8)
    with pytest.raises(ValueError, match="on_invisible: expected one of"):
        constraints.enforce(report, on_invisible="ignore")


def test_minilm(minilm):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(minilm))

    def visible(prompt, response):
        return tokenizer(prompt, response.replace("\n", " ¶ "))["input_ids"]

    report = constraints.check_visibility(ALL, visible, max_length=192)
    assert set(report.identical) == CAPITALS and not report.truncated
    plain = constraints.check_visibility(
        ALL, lambda prompt, response: tokenizer(prompt, response)["input_ids"], max_length=192
    )
    assert set(plain.identical) == CAPITALS | LINES
