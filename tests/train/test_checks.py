"""Choosing rows, and stopping a run that leaves its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gapo_jax.config import DiscriminatorConfig
from gapo_jax.train import checks
from gapo_jax.train.datasets.self_generated import Prompts
from gapo_jax.train.online.rewards import select_rows
from gapo_jax.train.online.rollout import without_spare
from gapo_jax.train.runtime import RunStopped, stop_requests
from gapo_jax.train.state import GAPOState, TrainState
from gapo_jax.types import Rollout


def test_the_best_and_the_worst_of_each_group_are_kept_in_order():
    rewards = jnp.array([0.1, 0.9, 0.5, 0.4, 2.0, 2.0, 2.0, 1.0])
    assert select_rows(rewards, 4, 2).tolist() == [0, 1, 6, 7]
    assert select_rows(rewards, 4, 0).tolist() == list(range(8))
    assert select_rows(rewards, 4, 4).tolist() == list(range(8))
    chosen = select_rows(jnp.asarray(np.random.default_rng(0).normal(size=96)), 8, 4)
    assert len(set(chosen.tolist())) == 48
    assert np.bincount(chosen // 8).tolist() == [4] * 12


def test_a_collapse_is_stopped_with_the_key_to_change():
    checks.check_kl(0.4, 0.5, "round 1", "lower it")
    with pytest.raises(RunStopped, match=r"0.600 a token in round 3.*kl_limit=0.5.*lower it") as e:
        checks.check_kl(0.6, 0.5, "round 3", "lower it")
    assert not e.value.start_is_good
    with pytest.raises(RunStopped, match="nan"):
        checks.check_kl(float("nan"), 0.5, "round 3", "lower it")


@pytest.mark.parametrize("name", ["disc/loss", "disc/grad_norm", "value/loss", "policy/grad_norm"])
def test_a_number_that_is_not_finite_stops_the_run_with_the_rate_to_lower(name):
    rates = checks.ONLINE_RATES
    checks.check_finite({"policy/loss": 0.1, "kl/ref": float("nan"), name: 1.0}, "round 1", rates)
    rate = rates[name.partition("/")[0]]
    for value in ("nan", "inf"):
        with pytest.raises(RunStopped, match=rf"{name} is {value} in round 2; lower {rate}"):
            checks.check_finite({"policy/loss": 0.1, name: float(value)}, "round 2", rates)
    if name.startswith("value"):  # not watched where nothing is said to lower
        checks.check_finite(
            {name: float("nan")}, "round 2", checks.warmup_rates(DiscriminatorConfig())
        )


def _state(**scales):
    """A state of three small networks; `scales` multiply their parameters."""
    networks = {}
    for name in ("policy", "critic", "discriminator"):
        params = {"w": jnp.full((3, 2), 0.5) * scales.get(name, 1.0)}
        networks[name] = TrainState.create(params, optax.adam(1e-3))
    rest = {"key": None, "round": 0, "kl_coef": 0.0, "reward_stats": jnp.zeros(3)}
    return GAPOState(**networks, **rest)


@pytest.mark.parametrize("name", ["policy", "critic", "discriminator"])
def test_networks_out_of_all_proportion_stop_the_run_before_they_are_saved(name):
    short = {"critic": "value", "discriminator": "disc"}.get(name, name)
    before, rates = checks.norms_of(_state()), checks.ONLINE_RATES
    assert before[name][0] == pytest.approx(0.5 * 6**0.5)
    checks.check_networks(before, _state(**{name: 9.9}), "round 2", rates)
    for scale, said in ((10.1, "grew from 1.22 to 12.4 in round 2"), (np.nan, "is nan after")):
        with pytest.raises(RunStopped, match=f"{name}'s parameters.*{said}.*{rates[short]}$"):
            checks.check_networks(before, _state(**{name: scale}), "round 2", rates)
    state = _state()
    network = getattr(state, name)
    worn = network.replace(opt_state=jax.tree.map(lambda x: x * np.inf, network.opt_state))
    with pytest.raises(RunStopped, match=f"the {name}'s moments is (nan|inf)"):
        checks.check_networks(before, state.replace(**{name: worn}), "round 2", rates)


def test_a_state_without_a_critic_is_checked():
    state = _state().replace(critic=None)
    checks.check_networks(checks.norms_of(state), state, "round 1", checks.OFFLINE_RATES)


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
    found = without_spare(prompts, rollout)
    assert found.tokens_BT.tolist() == [[2, 3, 4, 5, 6], [9, 10, 11, 12, 13]]
    assert found.mask_BT.shape == (2, 5)
    assert found.response_mask_BR is response_mask_BR
