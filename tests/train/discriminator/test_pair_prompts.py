"""Prompts that rollouts and pairs share (Algorithm 1, lines 10 to 12): what a prompt gives away."""

import collections

import numpy as np
import pytest

from gapo_jax import constraints
from gapo_jax.config import Config
from gapo_jax.data.curriculum import cycles_of
from gapo_jax.data.preferential import build_pairs
from gapo_jax.data.prompts import make_prompts
from gapo_jax.data.sources import accepted_prompts
from gapo_jax.data.tasks import tasks
from gapo_jax.train.datasets.self_generated import Pairs
from gapo_jax.train.discriminator.batches import round_texts
from gapo_jax.train.discriminator.pair_prompts import prompt_auc, prompts_of_round
from gapo_jax.train.discriminator.texts import GeneratedText, update_replay
from gapo_jax.types import ACCEPTED, GENERATED, REJECTED, Constraint, PreferentialPair

TYPES = constraints.resolve(("no_comma", "postscript", "title", "number_words"))
ROUNDS = 6


@pytest.fixture(scope="module")
def pairs():
    """Pairs in cycles, as the quickstart makes them, of responses that satisfy this and that."""
    rng, rows = np.random.default_rng(0), []
    for task in tasks("train")[:40]:
        for _ in range(8):
            text = " ".join(rng.choice(["sea", "wind", "red", "blue"], int(rng.integers(5, 30))))
            text = text.replace(" ", ", ", int(rng.integers(2)))
            text = ("<<Sea>>\n\n" if rng.random() < 0.5 else "") + text
            rows.append((task, text + ("\n\nP.S. Yes" if rng.random() < 0.5 else "")))
    made = build_pairs(rows, type_ids=TYPES, num_pairs=200, rng=rng, edited_fraction=0.0)
    return Pairs(made, [], made)


def _config(**changes):
    config = Config(method="gapo", rounds=ROUNDS)
    for name, value in ({"generated_prompts": "pairs"} | changes).items():
        setattr(config.discriminator, name, value)
    return config


def _mixes(config, pairs, own):
    """The texts of each round's update; of a prompt's eight samples two are verified."""
    pool, replay = accepted_prompts(pairs.train, "pair"), ()
    for index in range(ROUNDS):
        if config.discriminator.generated_prompts == "pairs":
            rows = prompts_of_round(config, pool, pairs, index)
        else:
            rows = own[12 * index : 12 * (index + 1)]
        fresh = [GeneratedText(row.prompt, f"g{index} {k}", k < 2, 1) for row in rows
                 for k in range(8)]  # fmt: skip
        yield (
            rows,
            round_texts(
                config.discriminator, pairs.compared, fresh, replay, seed=0, round_index=index
            ),
        )
        replay = update_replay(replay, fresh, 2000, seed=0, round_index=index)


def _auc(texts):
    return prompt_auc([t.prompt for t in texts], [t.kind == GENERATED for t in texts])


@pytest.mark.parametrize("loss", ["bce", "bradley_terry"])
@pytest.mark.parametrize("labels", ["paper", "verified", "drop_verified"])
def test_a_prompt_says_where_its_text_comes_from_unless_the_prompts_are_shared(pairs, loss, labels):
    own = make_prompts(tasks("train"), TYPES, 72, np.random.default_rng(1), "train", 2)
    config = _config(loss=loss, label_policy=labels)
    shared = [_auc(texts) for _, texts in _mixes(config, pairs, own)]
    assert all(0.45 <= value <= 0.55 for value in shared), shared
    config.discriminator.generated_prompts = "rollouts"
    separate = [_auc(texts) for _, texts in _mixes(config, pairs, own)]
    assert all(value > 0.7 for value in separate), separate


def test_generated_text_is_of_the_accepted_prompts_of_the_pairs_that_are_learned_from(pairs):
    config = _config(label_policy="paper", replay_fraction=0.0)
    truth = {kind: set() for kind in (ACCEPTED, REJECTED)}
    for pair in pairs.train:
        truth[ACCEPTED].add((pair.prompt_accepted, pair.response))
        truth[REJECTED].add((pair.prompt_rejected, pair.response))
    seen = []
    for rows, texts in _mixes(config, pairs, []):
        asked = [row.prompt for row in rows]
        assert len(set(asked)) == 12
        seen += asked
        kinds = collections.Counter(text.kind for text in texts)
        assert kinds == {GENERATED: 96, ACCEPTED: 32, REJECTED: 32}
        for text in texts:
            assert text.prompt in asked
            assert text.kind == GENERATED or (text.prompt, text.response) in truth[text.kind]
            assert text.target == float(text.kind == ACCEPTED)
        # 64 real texts to 12 prompts of equally many samples.
        real = collections.Counter(text.prompt for text in texts if text.kind != GENERATED)
        assert set(real.values()) == {5, 6}
        # A cycle's prompts are answered together, but for those at the ends of the slice.
        cycles = dict(zip((p.prompt_accepted for p in pairs.train), cycles_of(pairs.train)))
        inside = collections.Counter(cycles[prompt] for prompt in asked)
        whole = collections.Counter(cycles.values())
        assert sum(inside[cycle] < whole[cycle] for cycle in inside) <= 2
    # The prompts' constraints come with them, for the verifiers.
    by_prompt = {pair.prompt_accepted: pair for pair in pairs.train}
    for rows, _ in _mixes(config, pairs, []):
        for row in rows:
            pair = by_prompt[row.prompt]
            assert (row.task, row.constraints) == (pair.task, pair.accepted)
    assert len(set(seen)) == 72, "an epoch has every prompt once"


def test_prompts_of_a_round_depend_on_seed_round_and_attempt_alone(pairs):
    pool, config = accepted_prompts(pairs.train, "pair"), _config()

    def keys(index, attempt=0):
        return [row.key for row in prompts_of_round(config, pool, pairs, index, attempt)]

    assert keys(2) == keys(2) and keys(2) != keys(2, 1) and not set(keys(2)) & set(keys(3))
    config.seed = 1
    other = keys(2)
    config.seed = 0
    assert other != keys(2)


def test_a_curriculum_holds_for_the_prompts_too(pairs):
    config = _config()
    config.data.curriculum, config.data.curriculum_start = 0.5, 0.2
    pool = accepted_prompts(pairs.train, "pair")
    easy = {pair.prompt_accepted for pair in pairs.compared[:40]}
    assert {row.prompt for row in prompts_of_round(config, pool, pairs, 0)} <= easy
    assert not {row.prompt for row in prompts_of_round(config, pool, pairs, 5)} <= easy


def test_pairs_without_cycles_bring_their_own_rejected_side():
    """A prompt that no other pair rejects: Algorithm 1 as it is printed."""
    rule = (Constraint("punctuation:no_comma"),)
    pairs = [
        PreferentialPair(f"t{i}", f"r{i}", rule, rule, f"acc {i}", f"rej {i}", "modify", rule[0].id)
        for i in range(30)
    ]
    config = _config(label_policy="paper")
    for rows, texts in _mixes(config, Pairs(pairs, [], pairs), []):
        numbers = {row.prompt.split()[1] for row in rows}
        assert {t.prompt.split()[1] for t in texts if t.kind == REJECTED} >= numbers
        for text in texts:
            side = "rej" if text.kind == REJECTED else "acc"
            assert text.prompt.startswith(side)


def test_the_area_under_the_curve_by_hand():
    same = ["a b"] * 4 + ["c d"] * 4
    assert prompt_auc(same, [True, True, False, False] * 2) == 0.5
    assert prompt_auc(same, [True] * 4 + [False] * 4) == 1.0
    # Words tell, although every prompt is a new one.
    prompts = [f"write {i}" for i in range(6)] + [f"tell {i}" for i in range(6)]
    assert prompt_auc(prompts, [True] * 6 + [False] * 6) == 1.0
    # One generated and one real text each: nothing is known of a prompt but what is alike in both.
    assert prompt_auc(["a", "b", "c", "a", "b", "c"], [True] * 3 + [False] * 3) == 0.5
    # Three of four generated texts under `a`, one of four real ones: 3/4 * 3/4 + 2 * 3/16 / 2.
    uneven = prompt_auc(["a"] * 6 + ["b"] * 2 + ["a"] * 2 + ["b"] * 6, [True] * 8 + [False] * 8)
    assert uneven == 0.75
    assert np.isnan(prompt_auc(["a", "b"], [True, True]))


@pytest.mark.parametrize("loss", ["bce", "bradley_terry"])
def test_demonstrations_stand_against_what_was_sampled_for_the_same_prompt(pairs, loss):
    # Generated 0, the data's own response to the same prompt 1 (GAD, arXiv 2511.10643).
    config = _config(loss=loss, label_policy="demonstration", replay_fraction=0.0)
    own = collections.defaultdict(set)
    for pair in pairs.train:
        own[pair.prompt_accepted].add(pair.response)
    for rows, texts in _mixes(config, pairs, []):
        asked = collections.Counter(row.prompt for row in rows)
        real = [text for text in texts if text.kind != GENERATED]
        assert {text.kind for text in real} == {ACCEPTED}
        for text in texts:
            assert text.prompt in asked and text.target == float(text.kind == ACCEPTED)
            assert text.kind == GENERATED or text.response in own[text.prompt]
        counts = collections.Counter(text.prompt for text in real)
        if loss == "bce":  # .4 of 5 x 32 texts, spread evenly over 12 prompts
            assert len(real) == 64 and set(counts.values()) == {5, 6}
        else:
            assert len(real) == len(texts) // 2 == 80
            for better, worse in zip(texts[::2], texts[1::2], strict=True):
                assert better.prompt == worse.prompt
                assert (better.kind, worse.kind) == (ACCEPTED, GENERATED)


def test_demonstrations_need_prompts_that_have_them():
    config = _config(label_policy="demonstration", generated_prompts="rollouts")
    with pytest.raises(ValueError, match="generated_prompts='pairs'"):
        config.discriminator.check()
