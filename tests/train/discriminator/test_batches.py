"""What the discriminator learns from: the shares, labels and weights of Algorithm 1."""

import dataclasses

import numpy as np
import pytest

from gapo_jax.config import DiscriminatorConfig
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.train.discriminator import batches
from gapo_jax.train.discriminator import texts as replay
from gapo_jax.train.discriminator.texts import GeneratedText
from gapo_jax.types import (
    ACCEPTED,
    GENERATED,
    REJECTED,
    Constraint,
    PreferentialPair,
    PreferentialResponses,
)


@pytest.mark.parametrize(
    ("response", "strict", "accepted"),
    [
        ("The sea is wide and blue.\n\nP.S. Bring a hat.", (True, True), True),
        ("The sea is wide and blue.\n\nP.S. Bring a hat.", (True, False), False),
        ("P.S.\n\nP.S.\n\nP.S.\n\nP.S.", (True,), False),
    ],
)
def test_what_counts_as_a_good_answer(response, strict, accepted):
    verdict = Verdict("k", "p", response, ("x",) * len(strict), strict, strict)
    assert batches.is_accepted(DiscriminatorConfig(), verdict) is accepted


def _pairs(count):
    comma = (Constraint("punctuation:no_comma"),)
    return [
        PreferentialPair("t", f"r{i}", comma, comma, f"acc{i}", f"rej{i}", "modify", comma[0].id)
        for i in range(count)
    ]


def _texts(count, round_index=1):
    return [
        GeneratedText(f"p{i}", f"g{round_index}-{i}", i % 3 == 0, round_index) for i in range(count)
    ]


def _config(**changes):
    base = DiscriminatorConfig(batch_size=16, updates_per_round=5, label_policy="paper")
    return dataclasses.replace(base, **changes)


def _kinds(texts):
    return np.bincount([text.kind for text in texts], minlength=3)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_mix_holds_the_requested_share_of_generated_text(fraction):
    # The official release adds none at 0.5 (defect 17) and drops real negatives below it.
    texts = batches.round_texts(
        _config(generated_fraction=fraction, replay_fraction=0.0),
        _pairs(200),
        _texts(96),
        [],
        seed=0,
        round_index=3,
    )
    counts = _kinds(texts)
    assert len(texts) == 80
    assert counts[GENERATED] == round(80 * fraction)
    assert counts[ACCEPTED] == counts[REJECTED]


def test_a_batch_has_texts_of_like_length_and_the_mix_of_the_round():
    rng = np.random.default_rng(0)
    fresh = [GeneratedText("p" * int(rng.integers(10, 300)), "", i % 4 == 0, 1) for i in range(96)]
    pairs = [PreferentialResponses("p" * int(rng.integers(10, 300)), "g", "b") for _ in range(90)]
    config = _config(label_policy="verified", replay_fraction=0.0)
    texts = batches.round_texts(config, pairs, fresh, [], seed=0, round_index=0)
    sizes = np.array([len(text.prompt) for text in texts])
    longest = np.sort(sizes.reshape(-1, 16).max(axis=1))
    assert longest.mean() < 1.15 * np.sort(sizes).reshape(-1, 16).max(axis=1).mean()
    assert longest.mean() < 0.8 * sizes.max()
    whole = _kinds(texts)
    for start in range(0, len(texts), 16):
        assert np.abs(_kinds(texts[start : start + 16]) - whole / 5).max() < 1.5
    order = longest.tolist() != sizes.reshape(-1, 16).max(axis=1).tolist()
    assert order  # batches come in random order, not from short to long


def test_few_generated_texts_repeat_rather_than_shrink_the_share():
    texts = batches.round_texts(
        _config(generated_fraction=0.5), _pairs(50), _texts(3), [], seed=0, round_index=0
    )
    assert _kinds(texts)[GENERATED] == 40


def test_replay_takes_its_share_from_earlier_rounds():
    texts = batches.round_texts(
        _config(generated_fraction=0.5, replay_fraction=0.25),
        _pairs(50),
        _texts(60, 2),
        _texts(60, 1),
        seed=0,
        round_index=1,
    )
    generated = [text for text in texts if text.kind == GENERATED]
    assert sum(text.response.startswith("g1-") for text in generated) == 10
    assert sum(text.response.startswith("g2-") for text in generated) == 30


def test_each_round_trains_on_other_pairs_and_is_a_function_of_seed_and_round():
    # The official release computes a slice for each round and then ignores it (defect 19).
    def real(index):
        texts = batches.round_texts(
            _config(), _pairs(200), _texts(96), [], seed=7, round_index=index
        )
        return texts, {text.prompt for text in texts if text.kind == ACCEPTED}

    assert real(0) == real(0)
    assert not real(0)[1] & real(1)[1]


def test_preferential_responses_are_compared_under_one_prompt():
    """The other column of the paper's table 6: the same switch for the online methods."""
    pairs = [PreferentialResponses(f"p{i}", f"good{i}", f"bad{i}") for i in range(90)]
    for loss in ("bce", "bradley_terry"):
        config = _config(loss=loss, generated_fraction=0.0)
        texts = batches.round_texts(config, pairs, [], [], seed=0, round_index=0)
        assert _kinds(texts).tolist() == [40, 40, 0]
        for text in texts:
            assert text.target == float(text.response.startswith("good"))
        if loss == "bradley_terry":
            for better, worse in zip(texts[::2], texts[1::2], strict=True):
                assert better.prompt == worse.prompt and better.response != worse.response


def test_label_policies():
    texts = _texts(6)
    verified = [text.verified for text in texts]

    def targets(**changes):
        return [text.target for text in batches.label_generated(texts, _config(**changes))]

    assert targets(label_policy="paper") == [0.0] * 6
    assert targets(label_policy="soft", soft_label=0.3) == [0.3] * 6
    assert targets(label_policy="verified") == [float(flag) for flag in verified]
    assert targets(label_policy="verified", positive_label=0.9)[0] == 0.9
    # One-sided smoothing: real text that is accepted has the same label, other real text has 0.
    mixed = batches.round_texts(
        _config(positive_label=0.9), _pairs(90), texts, [], seed=0, round_index=0
    )
    assert {(t.kind, t.target) for t in mixed if t.kind != GENERATED} == {
        (ACCEPTED, 0.9), (REJECTED, 0.0),
    }  # fmt: skip
    dropped = batches.label_generated(texts, _config(label_policy="drop_verified"))
    assert [text.response for text in dropped] == [t.response for t in texts if not t.verified]


def test_when_every_generated_text_is_dropped_the_real_ones_take_the_room():
    fresh = [GeneratedText("p", f"g{i}", True, 1) for i in range(8)]
    texts = batches.round_texts(
        _config(label_policy="drop_verified"), _pairs(90), fresh, [], seed=0, round_index=0
    )
    assert _kinds(texts).tolist() == [40, 40, 0]


def test_balanced_weights_give_both_sides_equal_mass():
    targets = np.array([1.0, 0.0, 0.0, 0.0, 0.2, 0.9])
    weights = batches.class_weights(targets, balance=True)
    np.testing.assert_allclose(
        binary_mass := np.sum(weights), len(targets), rtol=1e-6, err_msg=str(binary_mass)
    )
    # Mass of the positive side = sum of weight shares that the targets claim.
    up = targets * len(targets) / (2 * targets.sum())
    np.testing.assert_allclose(up.sum(), len(targets) / 2, rtol=1e-6)
    np.testing.assert_allclose(weights[0] * 1.0, len(targets) / (2 * targets.sum()), rtol=1e-6)
    assert batches.class_weights([0.0, 0.0], balance=True).tolist() == [1.0, 1.0]
    assert batches.class_weights(targets, balance=False).tolist() == [1.0] * 6


def test_the_replay_buffer_has_no_duplicates_keeps_its_capacity_and_round_trips():
    buffer = replay.update_replay((), _texts(10), 100, seed=0, round_index=0)
    again = replay.update_replay(buffer, _texts(10), 100, seed=0, round_index=1)
    assert again == buffer
    full = replay.update_replay(buffer, _texts(30, 2), 15, seed=0, round_index=2)
    assert len(full) == 15
    assert {text.round for text in full} == {1, 2}
    assert replay.replay_from_json(replay.replay_to_json(full)) == full


def _comparisons(generated_fraction, fresh, **changes):
    config = _config(loss="bradley_terry", generated_fraction=generated_fraction, **changes)
    texts = batches.round_texts(config, _pairs(90), fresh, [], seed=0, round_index=0)
    assert len(texts) == 80
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_comparisons_put_the_better_text_first_and_hold_the_share_that_was_asked_for():
    pairs = _comparisons(0.5, _texts(96))
    generated = [pair for pair in pairs if GENERATED in (pair[0].kind, pair[1].kind)]
    assert len(generated) == 20
    for better, worse in generated:  # "paper": generated text is never the better one
        assert (better.kind, worse.kind) == (ACCEPTED, GENERATED)
    for better, worse in pairs:
        if (better, worse) not in generated:
            assert (better.kind, worse.kind) == (ACCEPTED, REJECTED)
            assert better.response == worse.response


def test_comparisons_prefer_the_two_kinds_of_one_prompt():
    fresh = [GeneratedText(f"p{i // 4}", f"g{i}", i % 4 == 0 and i < 8, 1) for i in range(16)]
    for better, worse in _comparisons(1.0, fresh, label_policy="verified"):
        assert better.target == 1.0 and worse.target == 0.0
        asked = worse.prompt if worse.kind == GENERATED else better.prompt
        if asked in ("p0", "p1"):  # prompts with a verified and an unverified answer
            assert better.prompt == worse.prompt == asked
        else:
            assert better.kind == ACCEPTED
