"""The random streams of a run: no two uses share one, and none is that of another seed's run."""

from __future__ import annotations

import itertools
import types
from typing import Any

import jax
import numpy as np
import recorded_run

from gapo_jax import rng
from gapo_jax.config import Config
from gapo_jax.data.batching import batch_at
from gapo_jax.rng import Stream
from gapo_jax.sharding import ONE_DEVICE
from gapo_jax.train.discriminator.warmup import warmup_order
from gapo_jax.train.online.update import minibatches

SEEDS = range(4)


def _bits(keys) -> list[bytes]:
    data = np.asarray(jax.random.key_data(keys))
    return [key.tobytes() for key in data.reshape(-1, data.shape[-1])]


def _orders(name: Stream, seed: int) -> list[tuple[int, ...]]:
    """Return the orders of two epochs of two rounds of 48 rows, in minibatches of 16."""
    config = Config(method="ppo", seed=seed)
    config.ppo.minibatch_size, config.ppo.epochs, config.ppo.critic_epochs = 16, 2, 2
    models = types.SimpleNamespace(spec=types.SimpleNamespace(place=ONE_DEVICE))
    ctx: Any = types.SimpleNamespace(config=config, models=models, widths=())
    experience: Any = types.SimpleNamespace(tokens_BT=np.zeros((48, 8)))
    rows = [batch for index in range(2) for batch, _ in minibatches(ctx, experience, index, name)]
    return [tuple(np.concatenate(rows[i : i + 3]).tolist()) for i in range(0, 12, 3)]


def test_the_orders_of_critic_and_policy_are_those_of_no_other_seed() -> None:
    """Once seed 1's critic walked through its rows in the order of seed 0's policy."""
    names = Stream.CRITIC_ORDER, Stream.POLICY_ORDER
    orders = [order for name in names for seed in SEEDS for order in _orders(name, seed)]
    assert all(sorted(order) == list(range(48)) for order in orders)
    assert len(set(orders)) == len(orders) == 2 * 4 * 2 * 2


def test_orders_that_learn_from_few_and_from_all_rows_are_independent() -> None:
    """A curriculum adds rows: the order of the first 20 is not the start of that of 40."""
    few, many = (
        batch_at(0, Stream.OFFLINE_ORDER, step=0, n=n, batch_size=n).tolist() for n in (20, 40)
    )
    assert few != [row for row in many if row < 20]
    pair = types.SimpleNamespace(sides=[("p", "r")])
    pairs: Any = [pair] * 40
    epochs = [warmup_order(pairs, 2, seed, epoch) for seed in SEEDS for epoch in range(2)]
    assert len({str(epoch) for epoch in epochs}) == 8


def test_no_row_of_another_attempt_draws_what_a_row_has_drawn(tmp_path, monkeypatch) -> None:
    """Keys of all attempts of two rounds differ, and none is a token's key of another row, as the
    second attempt's once were."""
    config = recorded_run.make_config(
        method="grpo", reward__source="verifier", reward__standardise="none",
        grpo__variant="dapo", grpo__dynamic_sampling=True, grpo__max_resamples=3,
        sampling__batch_size=16, rounds=2,
    )  # fmt: skip
    # No group has a signal, so each round takes all of its attempts.
    monkeypatch.setattr(
        "gapo_jax.train.online.rollout.informative", lambda rules_B, group: rules_B[::group] > 2
    )
    record = recorded_run.play(config, tmp_path, monkeypatch)
    rows = [row for name, fields in record.events if name == "sample" for row in fields["rows"]]
    assert len(rows) == 2 * 4 * 16
    data = np.array([row["key"] for row in rows], np.uint32)
    keys_B = jax.random.wrap_key_data(data)

    def children(key):
        numbers = np.arange(recorded_run.NEW_TOKENS, dtype=np.uint32)
        tokens = jax.vmap(lambda number: rng.key(key, Stream.TOKEN, number))(numbers)
        return tokens, jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)

    every = _bits(keys_B)
    for part in jax.jit(jax.vmap(children))(keys_B):
        every += _bits(part)
    assert len(set(every)) == len(every) == len(rows) * (1 + 2 * recorded_run.NEW_TOKENS)
    prompts = [
        [row["prompt"] for row in rows[start : start + 16 : 4]] for start in range(0, 128, 16)
    ]
    assert all(one != other for one, other in itertools.combinations(prompts, 2))
