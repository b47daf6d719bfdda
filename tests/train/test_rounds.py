"""Choosing rows, gating the discriminator, and stopping a run that leaves its bounds."""

import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import Config
from gapo_jax.train import rounds
from gapo_jax.train.datasets.self_generated import Prompts
from gapo_jax.train.forward import RolloutLogprobs
from gapo_jax.train.runtime import RunStopped, stop_requests
from gapo_jax.types import Rollout


def test_the_best_and_the_worst_of_each_group_are_kept_in_order():
    rewards = jnp.array([0.1, 0.9, 0.5, 0.4, 2.0, 2.0, 2.0, 1.0])
    assert rounds.select_rows(rewards, 4, 2).tolist() == [0, 1, 6, 7]
    assert rounds.select_rows(rewards, 4, 0).tolist() == list(range(8))
    assert rounds.select_rows(rewards, 4, 4).tolist() == list(range(8))
    chosen = rounds.select_rows(jnp.asarray(np.random.default_rng(0).normal(size=96)), 8, 4)
    assert len(set(chosen.tolist())) == 48
    assert np.bincount(chosen // 8).tolist() == [4] * 12


def _scored(kl):
    zeros = jnp.zeros((2, 3))
    return RolloutLogprobs(
        frozen_hidden_BTD=None,
        features_BRD=None,
        old_logprobs_BR=zeros + kl,
        ref_logprobs_BR=zeros,
        values_BR=zeros,
    )


def test_a_collapse_is_stopped_with_the_key_to_change():
    config = Config()
    mask = jnp.array([[1, 1, 0], [1, 0, 0]])
    rounds.check_kl(config, _scored(0.4), mask, 0)
    with pytest.raises(RunStopped, match=r"0.600 a token in round 3.*kl_limit=0.5"):
        rounds.check_kl(config, _scored(0.6), mask, 2)
    with pytest.raises(RunStopped, match="nan"):
        rounds.check_kl(config, _scored(float("nan")), mask, 2)


def test_a_loss_that_is_not_finite_stops_the_run():
    rounds.check_finite({"policy/loss": 0.1, "kl/ref": float("nan")}, 0)
    with pytest.raises(RunStopped, match=r"disc/loss is nan in round 2.*round_learning_rate"):
        rounds.check_finite({"disc/loss": float("nan")}, 1)


def test_signals_become_requests_and_the_handlers_come_back():
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop and stop.signal_name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_columns_that_only_heldout_prompts_need_are_neither_scored_nor_learned_from():
    prompts = Prompts((), [], {}, [], width=5, train_width=3)
    tokens_BT, response_mask_BR = np.arange(14).reshape(2, 7), np.ones((2, 2), np.int32)
    rollout = Rollout(tokens_BT, tokens_BT > 1, response_mask_BR, response_mask_BR * 0.5)
    found = rounds.without_spare(prompts, rollout)
    assert found.tokens_BT.tolist() == [[2, 3, 4, 5, 6], [9, 10, 11, 12, 13]]
    assert found.mask_BT.shape == (2, 5)
    assert found.response_mask_BR is response_mask_BR
