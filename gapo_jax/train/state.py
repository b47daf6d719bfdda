"""What a run changes and saves: three networks, their optimisers, counters, the replay buffer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gapo_jax.config import Config, ModelConfig
from gapo_jax.models.lora import init_adapters, merge_adapters, put
from gapo_jax.records import JsonObject
from gapo_jax.train.discriminator.texts import ReplayBuffer
from gapo_jax.train.optimizers import path_name
from gapo_jax.types import Params

# The parts of a decoder below and above its layers.
ENDS = ("embed", "position", "lm_head")


class TrainState(flax.struct.PyTreeNode):
    """One trained network: parameters, the optimiser's state, the number of updates (int32)."""

    params: Params
    opt_state: optax.OptState
    step: jax.Array

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
        """Return the state before the first update."""
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def apply_gradients(
        self, gradients: Params, optimizer: optax.GradientTransformation
    ) -> TrainState:
        """Return the state after one update."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params: Any = optax.apply_updates(self.params, updates)
        return TrainState(params, opt_state, self.step + 1)


class GAPOState(flax.struct.PyTreeNode):
    """All that changes in a run: phases take it and return the next one.

    Attributes:
        policy: the trained parts of the generator.
        critic: None for a method without one.
        discriminator: frozen where the method does not train it.
        key: the run's random key, which never changes: all others are derived from it by `rng.key`.
        round: the number of finished rounds, int32.
        kl_coef: the weight of the KL to the reference, float32.
        reward_stats: running (count, mean, sum of squared deviations) of scores, float32 [3].
        disc_average: the moving average of the discriminator's parameters, which scores with
            `discriminator.score_with="ema"`; None without.
        replay: generated text of earlier rounds. No array, so no leaf of the tree: a checkpoint
            holds it beside the arrays.
        last_saved: the number of finished rounds of the newest checkpoint, None before the first.
    """

    policy: TrainState
    critic: TrainState | None
    discriminator: TrainState
    key: jax.Array
    round: jax.Array
    kl_coef: jax.Array
    reward_stats: jax.Array
    disc_average: Params | None = None
    replay: ReplayBuffer = flax.struct.field(pytree_node=False, default=())
    last_saved: int | None = flax.struct.field(pytree_node=False, default=None)


# The names that fields of `GAPOState` have in checkpoints of earlier versions.
FORMER_NAMES = {"disc_average": "judge"}


def copy_tree(tree: Params) -> Params:
    """Return a tree whose arrays share no memory with the given ones: donating the one leaves the
    other alone."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def first_trainable_layer(num_layers: int, model: ModelConfig) -> int:
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


def start_policy(ref_params: Params, first: int, config: Config, key: jax.Array) -> Params:
    """Return the parameters that a run trains, before the first update: `split_trainable`, or with
    `config.lora.rank` {"lora": adapters of the layers from `first` on} and nothing else.

    Raises:
        ValueError: `config.lora` or `config.model.freeze` names what the generator does not have.
    """
    lora = config.lora
    if not lora.rank:
        return split_trainable(
            ref_params, first, config.model.train_embeddings, config.model.freeze
        )
    layers = jax.tree.map(lambda leaf: leaf[first:], ref_params["layers"])
    return {
        "lora": init_adapters(key, layers, rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
    }


def split_trainable(
    ref_params: Params, first: int, train_embeddings: bool, freeze: str = ""
) -> Params:
    """Return copies of the parameters that are trained: layers `first` and up, the final norm,
    and the embeddings (with the head, if it is not tied) when asked for.

    What the regular expression `freeze` finds by its path ("layers/attn/q/kernel") is left out, so
    it has no gradient, no moments and no copy.

    Raises:
        ValueError: `freeze` finds nothing, or leaves nothing to train.
    """
    names = ["layers", "final_norm"] + [
        name for name in ENDS if train_embeddings and name in ref_params
    ]
    chosen = {name: ref_params[name] for name in names}
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(chosen)}
    kept = [path for path in leaves if not (freeze and re.search(freeze, path))]
    if not kept or (freeze and len(kept) == len(leaves)):
        raise ValueError(
            f"config.model.freeze={freeze!r} finds {'every one' if not kept else 'none'} of the "
            f"parameters that would be trained: {sorted(leaves)}. It is a regular expression that "
            "is searched in these paths."
        )
    trainable: dict[str, Any] = {}
    for path in kept:
        first_of = first if path.startswith("layers/") else 0
        put(trainable, path, jnp.array(leaves[path][first_of:], copy=True))
    return trainable


def merge_trainable(ref_params: Params, trainable: Params, first: int) -> Params:
    """Return the full parameter tree with the trained parts in their places, adapters added in."""
    if "lora" in trainable:
        return dict(ref_params) | {
            "layers": merge_adapters(ref_params["layers"], trainable["lora"])
        }
    layers = overlay(
        ref_params["layers"],
        trainable.get("layers", {}),
        lambda low, high: jnp.concatenate([low[:first], high]) if first else high,
    )
    rest = {name: part for name, part in trainable.items() if name != "layers"}
    return overlay(ref_params, rest) | {"layers": layers}


def overlay(
    old: Params,
    new: Params,
    choose: Callable[[jax.Array, jax.Array], jax.Array] = lambda old, new: new,
) -> JsonObject:
    """Return the tree `old` with `choose(old leaf, new leaf)` in place of the leaves of `new`."""
    result = dict(old)
    for name, value in new.items():
        if name not in old:
            result[name] = value
        elif isinstance(value, Mapping):
            result[name] = overlay(old[name], value, choose)
        else:
            result[name] = choose(old[name], value)
    return result


def relative_change(before: Params, after: Params) -> float:
    """Return |after - before| / |before| in the 2-norm over all parameters."""
    return float(_relative_change(before, after))


# One program: processes that run many small ones together could run them in different orders.
@jax.jit
def _relative_change(before: Params, after: Params) -> jax.Array:
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, after, before))
    return moved / jnp.maximum(optax.tree.norm(before), 1e-12)
