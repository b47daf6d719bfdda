"""The sampler against transformers' generate, the training forward, and the exact distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from gapo_jax.models import save_hf
from gapo_jax.rollout.draws import draw_tokens, restrict
from gapo_jax.rollout.sampler import make_sampler, restriction_warning

NEW = 12


def keys(count, seed=7):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope="module")
def plain(model):
    """A sampler that never ends early."""
    return make_sampler(model[0], max_new_tokens=NEW, eos_ids=(), pad_id=0)


def responses(rollout):
    return np.asarray(rollout.tokens_BT[:, -rollout.response_mask_BR.shape[1] :])


def test_greedy_text_equals_transformers_generate(model, prompts, plain, tmp_path):
    decoder, params = model
    tokens_BP, mask_BP = prompts
    save_hf(decoder, params, tmp_path)
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected_BT = reference.generate(
        torch.from_numpy(tokens_BP).long(), attention_mask=torch.from_numpy(mask_BP).long(),
        max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0,
    ).numpy()  # fmt: skip
    rollout = plain(params, tokens_BP, mask_BP, keys(4), 0.0)
    np.testing.assert_array_equal(rollout.tokens_BT, expected_BT)
    assert len(np.unique(responses(rollout))) > NEW  # not one token for ever


def test_a_row_depends_on_its_own_key_and_prompt_alone(model, prompts, plain):
    _, params = model
    tokens_BP, mask_BP = prompts
    keys_B = keys(4)
    together = responses(plain(params, tokens_BP, mask_BP, keys_B, 0.9))
    order = np.array([2, 0, 3, 1])
    shuffled = responses(plain(params, tokens_BP[order], mask_BP[order], keys_B[order], 0.9))
    np.testing.assert_array_equal(shuffled, together[order])
    for row in range(4):
        one = slice(row, row + 1)
        alone = responses(plain(params, tokens_BP[one], mask_BP[one], keys_B[one], 0.9))
        np.testing.assert_array_equal(alone, together[one])
    wide = [np.pad(array_BP, ((0, 0), (3, 0))) for array_BP in prompts]
    np.testing.assert_array_equal(responses(plain(params, *wide, keys_B, 0.9)), together)
    other = responses(plain(params, tokens_BP, mask_BP, keys(4, seed=8), 0.9))
    assert (other != together).any(axis=1).all()


def test_samples_that_share_a_prefill_equal_repeated_prompts(model, prompts, plain):
    _, params = model
    tokens_AP, mask_AP = prompts
    keys_B = keys(12)
    shared = plain(params, tokens_AP, mask_AP, keys_B, 0.8)
    repeated_BP = [np.repeat(array_AP, 3, axis=0) for array_AP in prompts]
    repeated = plain(params, *repeated_BP, keys_B, 0.8)
    np.testing.assert_array_equal(shared.tokens_BT, repeated.tokens_BT)
    np.testing.assert_array_equal(shared.mask_BT, repeated.mask_BT)
    np.testing.assert_allclose(shared.logprobs_BR, repeated.logprobs_BR, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_logprobs_equal_those_of_the_training_forward(model, prompts, plain, temperature):
    decoder, params = model
    tokens_BP, mask_BP = prompts
    rollout = plain(params, tokens_BP, mask_BP, keys(4), temperature)
    logits_BTV = jax.jit(decoder.apply)({"params": params}, rollout.tokens_BT, rollout.mask_BT)
    logprobs_BRV = jax.nn.log_softmax(logits_BTV[:, 6:-1] / (temperature or 1.0))
    expected_BR = np.take_along_axis(
        np.asarray(logprobs_BRV), responses(rollout)[..., None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(rollout.logprobs_BR, expected_BR, rtol=2e-5)


def test_rows_end_with_their_first_end_token(model, prompts, plain):
    decoder, params = model
    tokens_BP, mask_BP = prompts
    free = responses(plain(params, tokens_BP, mask_BP, keys(4), 1.0))
    # Take as ends what rows 0 and 1 would say at steps 3 and 5.
    eos_ids = (int(free[0, 3]), int(free[1, 5]))
    sample = make_sampler(decoder, max_new_tokens=NEW, eos_ids=eos_ids, pad_id=0)
    rollout = sample(params, tokens_BP, mask_BP, keys(4), 1.0)
    is_eos_BR = np.isin(free, eos_ids)
    before_BR = np.cumsum(is_eos_BR, axis=1) - is_eos_BR
    expected_mask_BR = (before_BR == 0).astype(np.int32)
    assert expected_mask_BR[0].sum() <= 4 and expected_mask_BR.sum() > NEW
    np.testing.assert_array_equal(rollout.response_mask_BR, expected_mask_BR)
    np.testing.assert_array_equal(responses(rollout), free * expected_mask_BR)
    np.testing.assert_array_equal(rollout.mask_BT, np.hstack([mask_BP, expected_mask_BR]))
    np.testing.assert_array_equal(np.asarray(rollout.logprobs_BR)[expected_mask_BR == 0], 0.0)
    assert (np.asarray(rollout.logprobs_BR)[expected_mask_BR == 1] < 0).all()
    assert rollout.tokens_BT.dtype == rollout.response_mask_BR.dtype == jnp.int32


def test_new_prompts_keys_and_temperatures_compile_nothing(model, prompts):
    decoder, params = model
    tokens_BP, mask_BP = prompts
    sample = make_sampler(decoder, max_new_tokens=2, eos_ids=(2,), pad_id=0)
    for seed, temperature in ((0, 0.7), (1, 1.0), (2, 0.0)):
        sample(
            params,
            np.roll(tokens_BP, seed, 0),
            np.roll(mask_BP, seed, 0),
            keys(4, seed),
            temperature,
        )
    assert sample._cache_size() == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature):
    # 700 tokens: three blocks, the last one padded. 40,000 draws, chi-square over 40 groups.
    vocab, count = 700, 40_000
    logits_V = np.random.default_rng(1).normal(scale=2.0, size=vocab).astype(np.float32)
    logits_V[5] = -np.inf
    probs_V = np.exp(logits_V.astype(np.float64) / temperature)
    probs_V /= probs_V.sum()
    logits_BV = jnp.broadcast_to(logits_V, (count, vocab))
    draw = jax.jit(lambda logits, keys: draw_tokens(logits / temperature, keys, jnp.int32(3)))
    tokens_B, logprobs_B = draw(logits_BV, keys(count))
    counts_V = np.bincount(tokens_B, minlength=vocab)
    assert counts_V.shape == (vocab,) and counts_V[5] == 0
    order = np.argsort(-probs_V)
    groups = np.minimum(
        np.searchsorted(np.cumsum(probs_V[order]), np.arange(1, 40) / 40), vocab - 1
    )
    observed = np.add.reduceat(counts_V[order], np.unique(np.r_[0, groups]))
    expected = np.add.reduceat(probs_V[order], np.unique(np.r_[0, groups])) * count
    chi_square = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)
    np.testing.assert_allclose(logprobs_B, np.log(probs_V[tokens_B]), atol=1e-4)


def test_restricted_draws_stay_inside_and_keep_full_logprobs():
    logits_BV = jnp.asarray(np.random.default_rng(2).normal(size=(64, 600)), jnp.float32)
    full_BV = jax.nn.log_softmax(logits_BV)
    tokens_B, logprobs_B = jax.jit(draw_tokens, static_argnames=("top_k",))(
        logits_BV, keys(64), jnp.int32(0), top_k=3
    )
    ranks_B = (logits_BV > jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=1)).sum(axis=1)
    assert set(np.asarray(ranks_B)) == {0, 1, 2}
    np.testing.assert_allclose(logprobs_B, full_BV[np.arange(64), tokens_B], atol=1e-5)
    tokens_B, _ = jax.jit(draw_tokens, static_argnames=("top_p",))(
        logits_BV, keys(64), jnp.int32(0), top_p=1e-6
    )
    np.testing.assert_array_equal(tokens_B, logits_BV.argmax(axis=1))


def test_restrict_keeps_the_smallest_nucleus():
    logits_BV = jnp.log(jnp.array([[0.1, 0.5, 0.05, 0.35], [0.25, 0.25, 0.4, 0.1]]))
    kept = np.isfinite(restrict(logits_BV, 0, 0.6))
    np.testing.assert_array_equal(kept, [[0, 1, 0, 1], [1, 1, 1, 0]])  # the tie stays in
    kept = np.isfinite(restrict(logits_BV, 3, 0.84))
    np.testing.assert_array_equal(kept, [[0, 1, 0, 1], [1, 1, 1, 0]])


def test_min_p_equals_a_plain_version():
    logits_BV = np.random.default_rng(5).normal(scale=2.0, size=(8, 600)).astype(np.float32)
    probs_BV = np.exp(logits_BV.astype(np.float64))
    probs_BV /= probs_BV.sum(axis=1, keepdims=True)
    expected_BV = probs_BV >= 0.05 * probs_BV.max(axis=1, keepdims=True)
    assert 1 < expected_BV.sum(axis=1).min() and expected_BV.sum(axis=1).max() < 600
    kept_BV = np.isfinite(restrict(jnp.asarray(logits_BV), min_p=0.05))
    np.testing.assert_array_equal(kept_BV, expected_BV)
    draw = jax.jit(draw_tokens, static_argnames=("min_p",))
    tokens_B, _ = draw(jnp.asarray(logits_BV), keys(8), jnp.int32(0), min_p=0.05)
    assert expected_BV[np.arange(8), tokens_B].all()


def end_of_repetition(tokens, period, times):
    """The length at which a row first ends in `times` copies of at most `period` tokens."""
    for length in range(1, len(tokens) + 1):
        for width in range(1, period + 1):
            tail = tokens[max(0, length - width * times) : length]
            if len(tail) == width * times and tail == tail[:width] * times:
                return length
    return len(tokens)


@pytest.mark.parametrize("slots", [0, 3])
def test_repetition_ends_a_row(model, prompts, slots):
    decoder, params = model
    options = {"max_new_tokens": 24, "eos_ids": (), "pad_id": 0, "top_k": 2, "slots": slots}
    free = responses(make_sampler(decoder, **options)(params, *prompts, keys(8), 0.8)).tolist()
    sample = make_sampler(decoder, **options, repetition_period=3, repetition_times=2)
    lengths = np.asarray(sample(params, *prompts, keys(8), 0.8).response_mask_BR).sum(axis=1)
    expected = [end_of_repetition(tokens, 3, 2) for tokens in free]
    np.testing.assert_array_equal(lengths, expected)
    assert 1 < min(expected) < 24 and len(set(expected)) > 2


def test_impossible_requests_say_what_was_wanted(model, prompts, plain):
    decoder, params = model
    with pytest.raises(ValueError, match="max_new_tokens >= 1"):
        make_sampler(decoder, max_new_tokens=0, eos_ids=(), pad_id=0)
    with pytest.raises(ValueError, match="multiple of the 4 prompts, got 6 keys"):
        plain(params, *prompts, keys(6), 1.0)
    long_BP = np.ones((1, 60), np.int32)
    with pytest.raises(ValueError, match="max_positions = 64"):
        plain(params, long_BP, long_BP, keys(1), 1.0)


def test_a_run_that_learns_from_restricted_samples_is_warned():
    assert restriction_warning(0, 1.0, 0.0) is None
    message = restriction_warning(50, 0.9, 0.0)
    assert message is not None
    assert "config.sampling.top_k=50, config.sampling.top_p=0.9:" in message
    assert "set top_k=0, top_p=1.0 to train" in message and "min_p" not in message


def test_log_probs_of_restricted_samples_are_those_of_the_full_distribution():
    """Which is what the warning is about: the two best of four tokens, drawn with 3/4 and 1/4, have
    log-probs of 0.6 and 0.2."""
    logits_BV = jnp.tile(jnp.log(jnp.array([0.6, 0.2, 0.1, 0.1])), (64, 1))
    keys_B = jax.random.split(jax.random.key(0), 64)
    tokens_B, logprobs_B = draw_tokens(logits_BV, keys_B, jnp.int32(0), top_k=2)
    assert set(np.asarray(tokens_B)) == {0, 1}
    np.testing.assert_allclose(np.exp(logprobs_B), np.where(tokens_B == 0, 0.6, 0.2), rtol=1e-5)
