"""Rewards of a round: what becomes of the scores of several sources before anything is learned."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import Config, finalize
from gapo_jax.config.reward_sources import parse_sources
from gapo_jax.rewards.functions import FunctionScores
from gapo_jax.rollout.experience import critic_free_advantages
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.online import experience, rewards
from gapo_jax.train.online.experience import estimator_options
from gapo_jax.train.online.reward_sources import (
    RewardSources,
    Sampled,
    SourceScores,
    begin_scoring,
)
from gapo_jax.train.runtime import Processes, RunStopped
from gapo_jax.types import PromptRow


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_not_finite_stops_the_run_with_advice(monkeypatch, score):
    config = finalize(Config(method="gapo"))
    logits_B = np.zeros(8, np.float32)
    monkeypatch.setattr(rewards, "score_texts", lambda *inputs: logits_B)
    monkeypatch.setattr(rewards, "ended_responses", lambda *inputs: np.ones(8, bool))
    ctx = types.SimpleNamespace(
        config=config, clock=PhaseClock(), steps=None, updates_per_round=1,
        models=types.SimpleNamespace(disc_tokenizer=None),
        rewards=RewardSources(), processes=Processes(),
    )  # fmt: skip
    network = types.SimpleNamespace(params={})
    state = types.SimpleNamespace(
        discriminator=network, disc_average=None, reward_stats=jnp.zeros(3)
    )
    tokens = np.ones((8, 2), np.int32)
    arrays = types.SimpleNamespace(tokens_BT=tokens, response_mask_BR=tokens)
    rollout = types.SimpleNamespace(
        index=2, rows=[], texts=[], generated=[], arrays=arrays,
        rule_rewards_B=np.ones(8, np.float32),
    )  # fmt: skip
    found = rewards.compute_rewards(ctx, state, rollout)
    assert np.isfinite(found.rewards_B).all() and float(found.stats[0]) == 8
    logits_B[5] = score
    with pytest.raises(RunStopped, match="round 3.*response 5.*discriminator.round_learning_rate"):
        rewards.compute_rewards(ctx, state, rollout)


def test_gdpo_advantages_are_those_of_trl():
    """Through GRPO's estimator too: TRL's `normalize_then_sum` normalises by group only once."""
    rng = np.random.default_rng(0)
    scores = np.stack([rng.normal(size=12), rng.integers(0, 2, 12)], axis=1).astype(np.float32)
    config = Config(method="grpo")
    config.reward.sources = ("verifier", "a.py:f")
    config.reward.weights, config.ppo.samples_per_prompt = (1.0, 3.0), 4
    config.reward.combine, config.reward.standardise = "normalise_then_sum", "none"
    rewards_B = jnp.asarray(
        rewards.combine(config, SourceScores(("f", "verifier"), scores, {}, {}))
    )
    options = estimator_options(types.SimpleNamespace(config=config))
    zeros, mask = jnp.zeros((12, 2)), jnp.ones((12, 2), jnp.int32)
    advantages = critic_free_advantages(
        options["estimator"], rewards_B, zeros, zeros, mask, 0.0,
        **{name: options[name] for name in ("group_size", "scale")},
    )  # fmt: skip
    groups = scores.reshape(3, 4, 2)
    each = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    total = (each.reshape(12, 2) * [1, 3]).sum(1)
    want = (total - total.mean()) / (total.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(advantages[:, 0], want, rtol=1e-4, atol=1e-5)


def test_a_response_that_no_source_scores_is_not_learned_from(monkeypatch):
    seen = []
    zeros = jnp.zeros((2, 3))
    logprobs = types.SimpleNamespace(old_logprobs_BR=zeros, ref_logprobs_BR=zeros, values_BR=None)
    monkeypatch.setattr(experience, "take_rows", lambda arrays, rows: arrays)
    monkeypatch.setattr(experience, "score_policy", lambda *inputs: logprobs)
    monkeypatch.setattr(
        experience.estimators, "build_experience",
        lambda *inputs, **options: seen.append(inputs[6]) or (None, {}),
    )  # fmt: skip
    ctx = types.SimpleNamespace(
        config=Config(method="grpo"), clock=PhaseClock(), stop_if_asked=lambda *inputs: None
    )
    rollout = types.SimpleNamespace(
        index=0, counted_B=None, learn_B=np.array([True, True, False, True]),
        arrays=types.SimpleNamespace(response_mask_BR=jnp.ones((2, 3), jnp.int32)),
    )  # fmt: skip
    found = types.SimpleNamespace(
        chosen=np.array([0, 1, 2]), rewards_B=jnp.zeros(4),
        scored_B=np.array([True, False, True, True]),
    )  # fmt: skip
    experience.build_experience(ctx, types.SimpleNamespace(kl_coef=0.0), rollout, found)
    assert seen[0].tolist() == [True, False, False]


class _Function:
    """A reward function of this process."""

    def __init__(self, values):
        self.values = values

    def submit(self, call):
        assert len(call.completions) == len(self.values)

    def collect(self):
        failed = [value == "failed" for value in self.values]
        values = [np.nan if x in (None, "failed") else x for x in self.values]
        return FunctionScores(values, failed, ["broke"] if any(failed) else [], {"seen": 1.0})


class _Second(Processes):
    """A process beside the first one, which has the functions: it takes the first one's word."""

    def gather(self, stage, value=None):
        assert not value
        return [self.said, value]


def test_other_processes_take_the_word_of_the_first(caplog):
    config = Config(method="grpo")
    config.reward.sources = ("verifier", "a.py:f", "b.py:g")
    functions = {"f": _Function([0.5, None, -2.0]), "g": _Function(["failed", 3.0, 1.0])}
    rows = [PromptRow(str(i), "p", "p", ()) for i in range(3)]
    sampled = Sampled(rows, ["a", "b", "c"], [[1], [2], [3]])
    rules = {"verifier": np.array([1, np.nan, 0], np.float32)}

    class First(Processes):
        def gather(self, stage, value=None):
            _Second.said = json.loads(json.dumps(value))  # as between processes
            return [value]

    first = begin_scoring(config, RewardSources(functions), First(), sampled, 0, 2)(rules)
    second = begin_scoring(config, RewardSources(), _Second(), sampled, 0, 2)(rules)
    np.testing.assert_array_equal(first.scores_BK, [[1, 0.5, 0], [np.nan, np.nan, 3], [0, -2, 1]])
    np.testing.assert_array_equal(second.scores_BK, first.scores_BK)
    assert second.metrics == first.metrics
    assert first.metrics["reward/g/errors"] == first.metrics["reward/errors"] == 1
    assert first.metrics["reward/f/mean"] == pytest.approx(-0.75)
    assert first.metrics["reward/f/seen"] == 1 and first.metrics["reward/verifier/std"] > 0
    assert "source 'g' broke (1 of 3 responses" in caplog.text
    config.reward.strict = True
    with pytest.raises(RunStopped, match="source 'g' broke.*config.reward.strict"):
        begin_scoring(config, RewardSources(functions), First(), sampled, 0, 2)(rules)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ("verifyer",)}, "cannot be 'verifyer'; did you mean 'verifier'"),
        ({"sources": ("a.py",)}, "cannot be 'a.py'"),
        ({"sources": ("model:",)}, "'model:' without a model"),
        ({"sources": ("verifier", "verifier")}, "names 'verifier' twice"),
        ({"sources": ("verifier",), "weights": (1.0, 2.0)}, "one number for each"),
        ({"sources": ("verifier",), "squash": "sigmoid"}, "is for logits of the discriminator"),
        ({"sources": ("verifier",), "combine": "stratified"}, "and at least one more"),
        (
            {"sources": ("discriminator", "model:m"), "combine": "stratified"},
            "must name 'verifier'",
        ),
        (
            {"sources": ("verifier", "a.py:f"), "combine": "stratified", "weights": (2.0, 1.0)},
            "weight of 'verifier' must be 1, got 2.0",
        ),
        ({"sources": ("verifier",), "combine": "normalise_then_sum"}, "set standardise='none'"),
    ],
)
def test_sources_that_do_not_fit_are_refused(changes, message):
    config = Config(method="grpo")
    for name, value in changes.items():
        setattr(config.reward, name, value)
    with pytest.raises(ValueError, match=message):
        finalize(config)


def test_names_of_sources():
    texts = ("verifier", "model:org/Reward-7B", "a.py:f", "b.py:f", "m.n:verifier", "model:b/f")
    names = [source.name for source in parse_sources(texts)]
    assert names == ["verifier", "Reward-7B", "f", "f_2", "verifier_2", "f_3"]
    config = Config(method="ppo")
    config.reward.source, config.reward.verifier_weight = "mix", 0.25
    assert (config.reward.asked, config.reward.source_weights) == (
        ("discriminator", "verifier"), (0.75, 0.25),
    )  # fmt: skip
