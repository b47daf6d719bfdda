"""What a run trains and saves: three networks, their optimisers, and the counters of the loop."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gapo_jax.config import ModelConfig

Params = Any


class Network(flax.struct.PyTreeNode):
    """One trained network: its parameters, its optimiser's state and its count of updates."""

    params: Params
    opt_state: optax.OptState
    step: jax.Array

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation) -> Network:
        """Return a network at step 0."""
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def apply_gradients(
        self, gradients: Params, optimizer: optax.GradientTransformation
    ) -> Network:
        """Return the network after one update."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        return Network(optax.apply_updates(self.params, updates), opt_state, self.step + 1)


class RunState(flax.struct.PyTreeNode):
    """Everything that a checkpoint holds on the device side. `round` counts finished rounds;
    `reward_stats` is the running (count, mean, sum of squares) of raw rewards, float32 [3]."""

    policy: Network
    critic: Network
    discriminator: Network
    key: jax.Array
    round: jax.Array
    kl_coef: jax.Array
    reward_stats: jax.Array


def first_trained_layer(num_layers: int, model: ModelConfig) -> int:
    """Return the index of the lowest trained layer (0 when all are trained).

    Raises:
        ValueError: more layers are to be trained than the decoder has.
    """
    if model.trainable_layers > num_layers:
        raise ValueError(
            f"config.model.trainable_layers={model.trainable_layers}, but the generator has "
            f"{num_layers} layers; 0 trains all of them"
        )
    return num_layers - (model.trainable_layers or num_layers)


def split_trainable(base: Params, first: int, train_embeddings: bool) -> Params:
    """Return copies of the parameters that are trained: layers `first` and up, the final norm,
    and the embeddings (with the head, if it is not tied) when asked for."""
    trainable = {
        "layers": jax.tree.map(lambda leaf: jnp.array(leaf[first:], copy=True), base["layers"]),
        "final_norm": jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), base["final_norm"]),
    }
    if train_embeddings:
        for name in ("embed", "position", "lm_head"):
            if name in base:
                trainable[name] = jax.tree.map(lambda x: jnp.array(x, copy=True), base[name])
    return trainable


def merge_trainable(base: Params, trainable: Params, first: int) -> Params:
    """Return the full parameter tree with the trained parts in their places."""
    merged = dict(base) | {name: trainable[name] for name in trainable if name != "layers"}
    merged["layers"] = jax.tree.map(
        lambda low, high: jnp.concatenate([low[:first], high]) if first else high,
        base["layers"],
        trainable["layers"],
    )
    return merged


def relative_change(before: Params, after: Params) -> float:
    """Return |after - before| / |before| in the 2-norm over all parameters."""
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, after, before))
    return float(moved / jnp.maximum(optax.tree.norm(before), 1e-12))
