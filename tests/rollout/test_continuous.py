"""Continuous batching against the batch that decodes all rows at once, and stop strings."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import rng
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.models import Decoder
from gapo_jax.rng import Stream
from gapo_jax.rollout.generate import ended_rows, generate
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.rollout.stops import StopStrings

NEW, SAMPLES = 12, 3


@pytest.fixture(scope="module")
def windowed(model):
    """The decoder with a window of 6 tokens in one of its layers: a row must not see its ring."""
    decoder, params = model
    config = dataclasses.replace(decoder.config, windows=(6, 0))
    return Decoder(config), params


@pytest.fixture(scope="module")
def load():
    """Ten prompts [10, 7], three keys each, and limits of 1 to 12 tokens."""
    rng = np.random.default_rng(4)
    mask_AP = (np.arange(7) >= 7 - rng.integers(1, 8, (10, 1))).astype(np.int32)
    tokens_AP = rng.integers(3, 300, (10, 7)).astype(np.int32) * mask_AP
    keys_B = jax.random.split(jax.random.key(7), 10 * SAMPLES)
    return tokens_AP, mask_AP, keys_B, 0.9, rng.integers(1, NEW + 1, 10 * SAMPLES).astype(np.int32)


def sampler(decoder, **options):
    return make_sampler(decoder, max_new_tokens=NEW, pad_id=0, **{"eos_ids": (9,), **options})


@pytest.fixture(scope="module")
def together(windowed, load):
    return sampler(windowed[0])(windowed[1], *load)


@pytest.mark.parametrize(("slots", "chunk"), [(4, 3), (64, 5)])
def test_neither_slots_nor_neighbours_change_a_row(windowed, load, together, slots, chunk):
    decoder, params = windowed
    done = []
    sample = sampler(decoder, slots=slots, chunk=chunk)
    rollout = sample(params, *load, on_rows=done.append)
    assert len(set(together.response_mask_BR.sum(axis=1).tolist())) > 6
    for name in ("tokens_BT", "mask_BT", "response_mask_BR"):
        np.testing.assert_array_equal(getattr(rollout, name), getattr(together, name))
        assert getattr(rollout, name).dtype == np.int32
    np.testing.assert_allclose(rollout.logprobs_BR, together.logprobs_BR, atol=2e-5)
    assert done == sorted(done) and done[-1] == len(load[2])
    # Another order of the prompts: other slots and other neighbours.
    tokens_AP, mask_AP, keys_B, temperature, limits_B = load
    order_A = np.random.default_rng(0).permutation(len(tokens_AP))
    order_B = (order_A[:, None] * SAMPLES + np.arange(SAMPLES)).reshape(-1)
    moved = sample(
        params, tokens_AP[order_A], mask_AP[order_A], keys_B[order_B], temperature,
        limits_B[order_B],
    )  # fmt: skip
    np.testing.assert_array_equal(moved.tokens_BT, np.asarray(together.tokens_BT)[order_B])
    assert sample._advance._cache_size() <= 2  # all slots, and the few of the end


def test_one_slot_decodes_fewer_steps_than_a_batch_needs(windowed, load):
    """The point of it: no row waits for a longer one. Counted in calls, each of one token."""
    decoder, params = windowed
    sample = sampler(decoder, slots=8, chunk=1, eos_ids=())
    calls, advance = [], sample._advance

    def counted(slots, weights, running_S, temperature):
        calls.append(int(running_S.sum()))
        return advance(slots, weights, running_S, temperature)

    sample._advance = counted
    lengths_B = np.asarray(sample(params, *load).response_mask_BR).sum(axis=1)
    np.testing.assert_array_equal(lengths_B, load[-1])
    assert sum(calls) == lengths_B.sum()  # every token was drawn once, and none for nobody
    waiting = sum(max(lengths_B[start : start + 8]) for start in range(0, len(lengths_B), 8))
    assert len(calls) < 0.75 * waiting


def test_greedy_and_a_single_row(windowed, load):
    decoder, params = windowed
    tokens_AP, mask_AP, keys_B = load[:3]
    wanted = sampler(decoder)(params, tokens_AP[:1], mask_AP[:1], keys_B[:1], 0.0)
    found = sampler(decoder, slots=16)(params, tokens_AP[:1], mask_AP[:1], keys_B[:1], 0.0)
    np.testing.assert_array_equal(found.tokens_BT, wanted.tokens_BT)


def test_impossible_requests_say_what_was_wanted(windowed, load):
    decoder, params = windowed
    with pytest.raises(ValueError, match="slots >= 1 and chunk >= 1, got 2 and 0"):
        sampler(decoder, slots=2, chunk=0)
    tokens_AP, mask_AP, keys_B = load[:3]
    with pytest.raises(ValueError, match="multiple of the 10 prompts, got 7 keys"):
        sampler(decoder, slots=2)(params, tokens_AP, mask_AP, keys_B[:7], 1.0)


@pytest.fixture(scope="module")
def speaker(model):
    """A decoder over the characters of the tiny tokenizer."""
    tokenizer = character_tokenizer()
    config = dataclasses.replace(
        model[0].config, vocab_size=len(tokenizer), eos_ids=(tokenizer.eos_token_id,),
        pad_id=tokenizer.pad_token_id, max_positions=128,
    )  # fmt: skip
    ones_BT = jnp.ones((1, 2), jnp.int32)
    params = jax.jit(Decoder(config).init)(jax.random.key(1), ones_BT, ones_BT)["params"]
    return Decoder(config), params, tokenizer


@pytest.mark.parametrize("slots", [0, 2])
def test_text_is_cut_before_the_first_stop_string(speaker, slots):
    decoder, params, tokenizer = speaker
    config = decoder.config
    sample = make_sampler(
        decoder, max_new_tokens=NEW, eos_ids=config.eos_ids, pad_id=config.pad_id, slots=slots,
        chunk=4,
    )  # fmt: skip

    def ask(**options):
        return generate(
            sample, params, tokenizer, ["a", "bc", "d"], rng.row_keys(0, Stream.ROLLOUT, count=6),
            batch_size=4, width=64, temperature=1.0, **options,
        )  # fmt: skip

    free = ask()
    stops = (free.texts[0][3:5], free.texts[3][1:4], free.texts[4][-1])
    made = ask(stop=stops)
    mask_BR = made.rollout.response_mask_BR
    assert any(len(text) < len(whole) for text, whole in zip(made.texts, free.texts))
    for row, whole in enumerate(free.texts):
        places = [whole.find(stop) for stop in stops if stop in whole]
        assert made.texts[row] == whole[: min(places, default=len(whole))]
        free_R = free.rollout.tokens_BT[row, 64:][free.rollout.response_mask_BR[row] > 0]
        kept_R = made.rollout.tokens_BT[row, 64:][mask_BR[row] > 0]
        np.testing.assert_array_equal(kept_R, free_R[: len(kept_R)])
        if places:  # the last token kept completes the stop string
            text, before = (
                tokenizer.decode(ids, skip_special_tokens=True) for ids in (kept_R, kept_R[:-1])
            )
            assert any(stop in text for stop in stops)
            assert not any(stop in before for stop in stops)
    assert not made.rollout.logprobs_BR[mask_BR == 0].any()
    assert (made.rollout.tokens_BT[:, 64:][mask_BR == 0] == config.pad_id).all()
    np.testing.assert_array_equal(made.rollout.mask_BT[:, 64:], mask_BR)
    stopped = [any(stop in whole for stop in stops) for whole in free.texts]
    by_end = ended_rows(made.rollout, config.eos_ids)
    found = ended_rows(made.rollout, config.eos_ids, StopStrings(tokenizer, stops))
    np.testing.assert_array_equal(found, np.array(stopped) | by_end)


def test_stop_strings_must_have_characters(speaker):
    with pytest.raises(ValueError, match="none of them empty"):
        StopStrings(speaker[2], ("a", ""))
