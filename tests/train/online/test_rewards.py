"""Rewards of a round: scores that are not finite end the run before anything is learned of them."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import Config, finalize
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.online import rewards
from gapo_jax.train.online.reward_sources import RewardSources
from gapo_jax.train.runtime import Processes, RunStopped


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
