"""Optimisers: optax chains from an `OptimConfig`, and what of a network they leave alone."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax

from gapo_jax.config import Config, OptimConfig
from gapo_jax.types import Params


def learning_rate(optim: OptimConfig, total_steps: int) -> optax.Schedule:
    """Return the schedule: linear warm-up, then constant, linear or cosine to the final rate.

    `total_steps` counts the updates of the whole run, so the schedule goes on from round to round
    (the authors' release sizes it for one round, and the later ones run at the final rate).
    """
    peak, floor = optim.learning_rate, optim.learning_rate * optim.final_fraction
    rest = max(total_steps - optim.warmup_steps, 1)
    if optim.schedule == "linear":
        decay = optax.linear_schedule(peak, floor, rest)
    elif optim.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, rest, optim.final_fraction)
    else:
        decay = optax.constant_schedule(peak)
    if not optim.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, peak, optim.warmup_steps)
    return optax.join_schedules([warmup, decay], [optim.warmup_steps])


def warmup_then_rounds(peak: float, rounds: float, updates: int) -> optax.Schedule:
    """Return the discriminator's schedule: within the first tenth of the `updates` of its warm-up
    the rate climbs to `peak`, over the rest it falls linearly to `rounds`, which the rounds keep
    (without a warm-up they have it from their first update).
    """
    if not updates:
        return optax.constant_schedule(rounds)
    climb = max(1, updates // 10)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, climb),
            optax.linear_schedule(peak, rounds, max(1, updates - climb)),
        ],
        [climb],
    )


def make_optimizer(
    optim: OptimConfig, schedule: optax.Schedule, frozen: str | None = None
) -> optax.GradientTransformation:
    """Return clipping by the global norm, then AdamW or Adafactor.

    Weight decay leaves vectors alone (`decay_mask`). Parameters whose path ("a/b/c") the regular
    expression `frozen` finds have no update and no moments.
    """
    if optim.optimizer == "adafactor":
        # Without the paper's relative step, so that a learning rate means what it means for AdamW.
        scale = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    else:
        scale = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    chain = optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        scale,
        optax.add_decayed_weights(optim.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
    if frozen is None:
        return chain

    def labels(params: Params) -> Any:
        return jax.tree.map(
            lambda stands: "frozen" if stands else "trained", frozen_mask(params, frozen)
        )

    return optax.multi_transform({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def frozen_parameters(config: Config) -> str | None:
    """Return the regular expression of the discriminator's parameters that are not trained."""
    if config.discriminator.frozen_layers:
        return r"encoder/embed/"
    return r"encoder/embed/word/|decoder/embed/" if config.discriminator.freeze_embeddings else None


def frozen_mask(params: optax.Params, frozen: str) -> Any:
    """Return True for the parameters whose path the regular expression `frozen` finds."""
    pattern = re.compile(frozen)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: pattern.search(path_name(path)) is not None, params
    )


def freeze_rows(pattern: str, rows: int) -> optax.GradientTransformation:
    """Set the updates of the first `rows` rows to zero in the leaves whose path matches: the lowest
    layers of a stack. optax freezes whole leaves only, and weight decay would move these rows even
    without a gradient."""

    def update(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return jax.tree.map(
            lambda stands, leaf: leaf.at[:rows].set(0) if stands else leaf,
            frozen_mask(updates, pattern),
            updates,
        )

    return optax.stateless(update)


def stop_gradients(params: Params, frozen: str | None) -> Params:
    """Return the parameters with no gradient flowing to those whose path `frozen` finds."""
    if frozen is None:
        return params
    return jax.tree.map(
        lambda stands, leaf: jax.lax.stop_gradient(leaf) if stands else leaf,
        frozen_mask(params, frozen),
        params,
    )


def decay_mask(params: Params) -> Any:
    """Return True for the matrices: weight decay leaves norms and biases alone, and the vector that
    a scalar head ends with, though it is kept as a matrix of one column ("head/out/kernel")."""
    spared = r"norm|bias|scale|(^|/)head/out/"
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not re.search(spared, path_name(path)),
        params,
    )


def path_name(path: jax.tree_util.KeyPath) -> str:
    """Return a tree path as "a/b/c"."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
