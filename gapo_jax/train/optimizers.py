"""Optimisers: optax chains from an `OptimConfig`."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax

from gapo_jax.config import Config, OptimConfig


def learning_rate(optim: OptimConfig, total_steps: int) -> optax.Schedule:
    """Return the schedule: linear warm-up, then constant, linear or cosine to the final rate.

    `total_steps` counts the updates of the whole run, so that schedules survive across rounds
    (the reference release sizes them for one round and ends at the floor).
    """
    peak, floor = optim.learning_rate, optim.learning_rate * optim.final_fraction
    rest = max(total_steps - optim.warmup_steps, 1)
    decay = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, floor, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, optim.final_fraction),
    }[optim.schedule]()
    if not optim.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, peak, optim.warmup_steps)
    return optax.join_schedules([warmup, decay], [optim.warmup_steps])


def warmup_then_rounds(peak: float, rounds: float, updates: int) -> optax.Schedule:
    """Return the discriminator's rate: over the `updates` of its warm-up it climbs to `peak`
    within the first tenth and falls linearly to `rounds`, where it stays for the rounds."""
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
    """Return clip + AdamW or Adafactor. Weight decay skips vectors (norms, biases); `frozen` is a
    regular expression over parameter paths ("a/b/c") whose updates are zero and keep no moments."""
    scaled = {
        "adamw": lambda: optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps),
        # Without the paper's relative step, so that a learning rate means what it means for AdamW.
        "adafactor": lambda: optax.chain(
            optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
        ),
    }[optim.optimizer]()
    chain = optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        scaled,
        optax.add_decayed_weights(optim.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
    if frozen is None:
        return chain
    pattern = re.compile(frozen)

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if pattern.search(path_name(path)) else "trained", params
        )

    return optax.multi_transform({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def frozen_parameters(config: Config) -> str | None:
    """Return the regular expression of the discriminator's parameters that are not trained."""
    settings = config.discriminator
    if settings.frozen_layers:
        return r"encoder/embed/"
    return r"encoder/embed/word/|decoder/embed/" if settings.freeze_embeddings else None


def freeze_rows(pattern: str, rows: int) -> optax.GradientTransformation:
    """Zero the updates of the first `rows` rows of leaves whose path matches: of stacked layers,
    the lowest. Weight decay would move them even without a gradient."""

    def update(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                leaf.at[:rows].set(0) if re.search(pattern, path_name(path)) else leaf
            ),
            updates,
        )

    return optax.stateless(update)


def stop_gradients(params: Any, frozen: str | None) -> Any:
    """Return the parameters with no gradient flowing to those whose path matches `frozen`."""
    if frozen is None:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jax.lax.stop_gradient(leaf) if re.search(frozen, path_name(path)) else leaf
        ),
        params,
    )


def decay_mask(params: Any) -> Any:
    """Return True for the matrices: weight decay leaves norms, biases and heads' vectors alone."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not re.search(r"norm|bias|scale", path_name(path)),
        params,
    )


def path_name(path: Any) -> str:
    """Return a tree path as "a/b/c"."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
