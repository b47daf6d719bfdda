"""Every offline method's step on eight devices against one: three updates, float32, four meshes.

`tests/multidevice/test_offline_methods.py` runs this file in a process of its own.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from small_steps import (
    MESHES,
    OPTIMIZER,
    ROWS,
    check_on,
    config_of,
    network,
    placement,
    policy_start,
    rollout,
    spec_of,
    weights,
)

from gapo_jax.methods import METHODS as REGISTRY
from gapo_jax.train.offline.steps import OfflineBatch, make_offline_step
from gapo_jax.train.state import TrainState

METHODS = tuple(
    name for name, m in REGISTRY.items() if m.loop == "offline" and m.trains == "policy"
)


def updates(method: str, sizes) -> tuple:
    config, place = config_of(method), placement(sizes)
    step = make_offline_step(spec_of(config, place), config, OPTIMIZER)
    rng = np.random.default_rng(5)
    base, policy = place.params(weights()[0]), network(place, policy_start(method))
    batch = OfflineBatch(
        rows=rollout(rng),
        mismatched=rollout(rng) if method == "kto" else None,
        condition=rollout(rng) if method == "inverse_q" else None,
        rewards_B=rng.normal(size=ROWS).astype(np.float32) if method == "rpo" else None,
        ref_B=rng.normal(size=ROWS).astype(np.float32) if method == "sgpo" else None,
    )
    found = []
    for _ in range(3):
        policy, metrics = step(policy, batch, base)
        found.append(metrics)
    return jax.device_get((policy, found))


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_learn_what_one_does(method: str, sizes: tuple[int, int, int]) -> None:
    check_on(sizes, updates, method)


def test_a_network_keeps_its_places_and_its_memory() -> None:
    """After an update every parameter lies where the table puts it, in the buffer it had."""
    config, place = config_of("sft"), placement((1, 4, 2))
    step = make_offline_step(spec_of(config, place), config, OPTIMIZER)
    policy = place.init(
        functools.partial(TrainState.create, optimizer=OPTIMIZER), policy_start("sft")
    )
    before = jax.tree.leaves(policy)
    batch = OfflineBatch(rows=rollout(np.random.default_rng(5)))
    after, metrics = step(policy, batch, place.params(weights()[0]))
    assert all(leaf.is_deleted() for leaf in before)
    for left, right in zip(before, jax.tree.leaves(after), strict=True):
        assert left.sharding.is_equivalent_to(right.sharding, left.ndim)
    assert all(value.is_fully_replicated for value in jax.tree.leaves(metrics))
    kernel = after.params["layers"]["attn"]["q"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 4, 8)}
