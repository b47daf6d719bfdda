"""Steps of every method, small enough to compile on many meshes: networks, batches, comparison.

The updates are plain SGD, so that parameters compare as the gradients do (Adam divides by the size
of a gradient, and turns the rounding of one near zero into a whole step).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gapo_jax import sharding
from gapo_jax.config import Config
from gapo_jax.models import Decoder, DecoderConfig, Discriminator, EncoderConfig
from gapo_jax.train.forward import PolicySpec, init_critic
from gapo_jax.train.state import TrainState, start_policy
from gapo_jax.types import Rollout

DECODER = DecoderConfig(
    vocab_size=64, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=32,
    max_positions=32, tie_embeddings=False,
)  # fmt: skip
ENCODER = EncoderConfig(
    vocab_size=64, num_layers=2, d_model=16, num_heads=2, d_ff=32, max_positions=16
)
JUDGE = Discriminator(ENCODER, hidden_dim=8)
ROWS, PROMPT, RESPONSE = 16, 6, 5
OPTIMIZER = optax.sgd(0.1)
MESHES = ((8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2))


def placement(sizes: tuple[int, int, int] | None) -> sharding.Placement:
    if sizes is None:
        return sharding.Placement(sharding.make_mesh(devices=jax.devices()[:1]))
    return sharding.Placement(sharding.make_mesh(*sizes))


def rollout(rng: np.random.Generator) -> Rollout:
    real = np.ones((ROWS, PROMPT + RESPONSE), np.int32)
    for row in range(ROWS):
        real[row, : rng.integers(0, 4)] = 0
        real[row, PROMPT + rng.integers(2, RESPONSE + 1) :] = 0
    return Rollout(
        tokens_BT=rng.integers(0, 64, real.shape).astype(np.int32),
        mask_BT=real,
        response_mask_BR=real[:, PROMPT:],
        logprobs_BR=np.zeros((ROWS, RESPONSE), np.float32),
    )


def config_of(method: str) -> Config:
    """Return a configuration; among the methods there are all kinds of trained parameters."""
    config = Config(method=method)
    config.ppo.samples_per_prompt = config.rpo.responses = 2
    config.lora.rank = 2 if method == "dpo" else 0
    config.model.train_embeddings = method == "sft"
    # The lower of the two layers stands still, and is computed for all networks together.
    config.model.trainable_layers = 1 if method in ("ppo", "dpo", "kto") else 0
    return config


def spec_of(config: Config, place: sharding.Placement) -> PolicySpec:
    first = 1 if config.model.trainable_layers else 0
    return PolicySpec(DECODER, first, 0.8, 16, "decoder", 8, place=place)


@functools.cache
def weights():
    """Return the parameters of generator and discriminator, numpy."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    base, judge = (
        jax.jit(module.init)(jax.random.key(i), tokens, jnp.ones_like(tokens))["params"]
        for i, module in enumerate((Decoder(DECODER), JUDGE))
    )
    # The default scale is so small that all distributions are nearly uniform.
    return jax.tree.map(lambda x: np.asarray(x * 4 if x.ndim > 1 else x), (base, judge))


@functools.cache
def policy_start(method: str):
    """Return the trained parameters that a method starts from, numpy."""
    config = config_of(method)
    first = spec_of(config, placement(None)).first_trainable_layer
    return jax.device_get(start_policy(weights()[0], first, config, jax.random.key(2)))


@functools.cache
def critic_start():
    """Return PPO's critic, numpy."""
    spec = spec_of(config_of("ppo"), placement(None))
    return jax.device_get(init_critic(spec, weights()[0], jax.random.key(4)))


def network(place: sharding.Placement, params) -> TrainState:
    """Return a new network in its place. `Placement.init`, as a run makes it, would compile one
    more program for every kind and mesh."""
    return place.params(TrainState.create(jax.tree.map(jnp.array, params), OPTIMIZER))


def same(one, many) -> None:
    """Both (networks, metrics) are equal to 1e-5."""
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(many), strict=True
    ):
        np.testing.assert_allclose(
            right, left, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )


def check_on(sizes: tuple[int, int, int], updates: Callable, kind: str) -> None:
    """`updates(kind, mesh sizes)`, (network, metrics of each update, more), is the same on a mesh
    as on one device; and it learns."""
    one = _on_one_device(updates, kind)
    for metrics in one[1]:
        assert max(v for k, v in metrics.items() if k.endswith("grad_norm")) > 1e-3
    same(one, updates(kind, sizes))


@functools.cache
def _on_one_device(updates: Callable, kind: str):
    return updates(kind, None)
