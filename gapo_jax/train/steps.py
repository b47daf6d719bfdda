"""The pure steps of a run: score, update policy, update critic, score and update discriminator.

Each is `step(network, batch) -> (network, metrics)`, jitted once by `make_steps`; the network is
donated. Nothing here reads a clock, a file or a global random state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import optax

from gapo_jax.config import Config
from gapo_jax.losses import bce_loss, masked_mean, ppo_loss, value_loss
from gapo_jax.models import Discriminator
from gapo_jax.models.encoder import encode_above
from gapo_jax.train.forward import (
    GeneratorSpec,
    Scored,
    critic_values,
    response_logprobs,
    score_rollout,
)
from gapo_jax.train.optim import frozen_parameters, stop_gradients
from gapo_jax.train.state import Network
from gapo_jax.types import Experience, Rollout

Params = Any


class TextBatch(flax.struct.PyTreeNode):
    """Texts as the discriminator reads them: ids, mask and segment ids int32 [B, T]; float32
    targets and weights [B]; class ids int32 [B] (0 rejected, 1 accepted, 2 generated)."""

    tokens_BT: jax.Array
    mask_BT: jax.Array
    type_ids_BT: jax.Array
    targets_B: jax.Array
    weights_B: jax.Array
    classes_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled functions of a run."""

    score: Callable[[Params, Params, Params, Rollout], Scored]
    policy: Callable[..., tuple[Network, dict[str, jax.Array]]]
    critic: Callable[..., tuple[Network, dict[str, jax.Array]]]
    disc_score: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
    disc_update: Callable[[Network, TextBatch, jax.Array], tuple[Network, dict[str, jax.Array]]]


def as_rollout(experience: Experience) -> Rollout:
    """Return the rollout inside an experience (its log-probs are the old policy's)."""
    return Rollout(
        tokens_BT=experience.tokens_BT,
        mask_BT=experience.mask_BT,
        response_mask_BR=experience.response_mask_BR,
        logprobs_BR=experience.old_logprobs_BR,
    )


def policy_step(
    network: Network,
    base: Params,
    experience: Experience,
    lower_BTD: jax.Array | None,
    *,
    spec: GeneratorSpec,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[Network, dict[str, jax.Array]]:
    """One PPO update of the generator (clip; the KL term is already in the rewards)."""
    mask_BR = experience.response_mask_BR

    def loss_fn(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        logprobs_BR, entropy_BR, _ = response_logprobs(
            spec, base, trained, as_rollout(experience), lower_BTD, with_entropy=True
        )
        loss, metrics = ppo_loss(
            logprobs_BR,
            experience.old_logprobs_BR,
            experience.advantages_BR,
            mask_BR,
            clip_low=config.ppo.clip_low,
            clip_high=config.ppo.clip_high,
            aggregation=config.ppo.aggregation,
        )
        metrics["policy/loss"] = loss
        assert entropy_BR is not None  # asked for above
        metrics["policy/entropy"] = masked_mean(entropy_BR, mask_BR)
        return loss, metrics

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(network.params)
    metrics["policy/grad_norm"] = optax.tree.norm(gradients)
    return network.apply_gradients(gradients, optimizer), metrics


def critic_step(
    network: Network,
    experience: Experience,
    features_BRD: jax.Array | None,
    lower_BTD: jax.Array | None,
    *,
    spec: GeneratorSpec,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[Network, dict[str, jax.Array]]:
    """One clipped value update of the critic against the GAE returns."""

    def loss_fn(critic: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        rollout = as_rollout(experience)
        values_BR = critic_values(spec, critic, rollout, features_BRD, lower_BTD)
        loss, metrics = value_loss(
            values_BR,
            experience.values_BR,
            experience.returns_BR,
            experience.response_mask_BR,
            clip=config.ppo.value_clip,
        )
        metrics["value/loss"] = loss
        return loss, metrics

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(network.params)
    return network.apply_gradients(gradients, optimizer), metrics


def disc_logits(
    discriminator: Discriminator,
    params: Params,
    batch: TextBatch,
    frozen_layers: int,
    **options: Any,
) -> jax.Array:
    """Return logits [B] float32; the backward pass ends at the lowest trained layer."""
    texts = batch.tokens_BT, batch.mask_BT, batch.type_ids_BT
    if not frozen_layers:
        logits: Any = discriminator.apply({"params": params}, *texts, **options)
        return logits
    hidden_BTD = encode_above(
        discriminator.config, params["encoder"], frozen_layers, *texts, **options
    )
    judged: Any = discriminator.apply(
        {"params": {"head": params["head"]}}, hidden_BTD, batch.mask_BT, method="judge"
    )
    return judged


def disc_update_step(
    network: Network,
    batch: TextBatch,
    key: jax.Array,
    *,
    discriminator: Discriminator,
    dropout: bool,
    frozen: str | None,
    frozen_layers: int = 0,
    optimizer: optax.GradientTransformation,
) -> tuple[Network, dict[str, jax.Array]]:
    """One binary cross-entropy update of the discriminator (GAPO, Eq. 6).

    Parameters whose path matches `frozen` and the lowest `frozen_layers` layers stand still, and
    no gradient is computed for them.
    """
    key = jax.random.fold_in(key, network.step)

    def loss_fn(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        params = stop_gradients(params, frozen)
        logits_B = disc_logits(
            discriminator,
            params,
            batch,
            frozen_layers,
            deterministic=not dropout,
            rngs={"dropout": key},
        )
        loss, metrics = bce_loss(
            logits_B, batch.targets_B, batch.weights_B, classes_B=batch.classes_B
        )
        metrics["disc/loss"] = loss
        return loss, metrics

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(network.params)
    metrics["disc/grad_norm"] = optax.tree.norm(gradients)
    return network.apply_gradients(gradients, optimizer), metrics


def disc_score(discriminator: Discriminator, params: Params, tokens_BT, mask_BT, type_ids_BT):
    """Return the discriminator's logits [B] float32, without dropout."""
    return discriminator.apply({"params": params}, tokens_BT, mask_BT, type_ids_BT)


def make_steps(
    spec: GeneratorSpec,
    discriminator: Discriminator,
    config: Config,
    optimizers: dict[str, optax.GradientTransformation],
) -> Steps:
    """Bind the static parts and jit every step once; `optimizers` by network name."""
    bound = {"spec": spec, "config": config}
    policy = functools.partial(policy_step, **bound, optimizer=optimizers["policy"])
    critic = functools.partial(critic_step, **bound, optimizer=optimizers["critic"])
    update = functools.partial(
        disc_update_step,
        discriminator=discriminator,
        dropout=config.discriminator.dropout > 0,
        frozen=frozen_parameters(config),
        frozen_layers=config.discriminator.frozen_layers,
        optimizer=optimizers["discriminator"],
    )
    return Steps(
        score=jax.jit(functools.partial(score_rollout, spec)),
        policy=jax.jit(policy, donate_argnums=0),
        critic=jax.jit(critic, donate_argnums=0),
        disc_score=jax.jit(functools.partial(disc_score, discriminator)),
        disc_update=jax.jit(update, donate_argnums=0),
    )
