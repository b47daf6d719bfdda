"""The pure steps of the discriminator: score a batch of texts, and learn from one.

`update` is `step(state, batch, key) -> (state, metrics)`; `build.build_steps` compiles both.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gapo_jax import rng
from gapo_jax.config import Config
from gapo_jax.losses import (
    bce_loss,
    bradley_terry_loss,
    class_metrics,
    gradient_penalty_loss,
)
from gapo_jax.models import Discriminator, RewardModel
from gapo_jax.rng import Stream
from gapo_jax.sharding import Placement
from gapo_jax.train.microbatches import in_microbatches
from gapo_jax.train.optimizers import stop_gradients
from gapo_jax.train.state import TrainState
from gapo_jax.types import ACCEPTED, Metrics, Params

TextReader = Discriminator | RewardModel


class TextBatch(flax.struct.PyTreeNode):
    """Texts as the discriminator reads them: ids, mask and segment ids int32 [B, T]; float32
    targets and weights [B]; class ids int32 [B] (0 rejected, 1 accepted, 2 generated)."""

    tokens_BT: jax.Array
    mask_BT: jax.Array
    type_ids_BT: jax.Array
    targets_B: jax.Array
    weights_B: jax.Array
    classes_B: jax.Array


def disc_score_step(
    params: Params,
    tokens_BT: Int[Array, "B T"],
    mask_BT: Int[Array, "B T"],
    type_ids_BT: Int[Array, "B T"],
    *,
    discriminator: TextReader,
) -> Float[Array, "B"]:
    """Return the discriminator's logits [B] float32, without dropout."""
    logits_B: Any = discriminator.apply({"params": params}, tokens_BT, mask_BT, type_ids_BT)
    return logits_B


def disc_logits(
    discriminator: TextReader,
    params: Params,
    texts: tuple[Int[Array, "B T"], Int[Array, "B T"], Int[Array, "B T"]],
    frozen_layers: int,
    **options: Any,
) -> Float[Array, "B"]:
    """Return logits [B] float32 of (tokens, mask, segment ids); the backward pass ends at the
    lowest trained layer."""
    if frozen_layers:  # build.py refuses them for a decoder, which does not take the argument
        options["frozen_layers"] = frozen_layers
    logits_B: Any = discriminator.apply({"params": params}, *texts, **options)
    return logits_B


def disc_update_step(
    state: TrainState,
    batch: TextBatch,
    key: jax.Array,
    *,
    discriminator: TextReader,
    dropout: bool,
    frozen: str | None,
    frozen_layers: int = 0,
    loss: str = "bce",
    gradient_penalty: float = 0.0,
    accumulate: int = 1,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update of the discriminator: binary cross-entropy (GAPO, Eq. 6) or Bradley-Terry.

    For "bradley_terry" the rows alternate: the better text of a pair, then the worse. With a
    `gradient_penalty` R1 on the accepted texts is added. Parameters whose path matches `frozen` and
    the lowest `frozen_layers` layers stand still, and no gradient is computed for them. With
    `accumulate` the texts pass through the network in so many microbatches (not for the penalty).
    `key` is the run's; what dropout draws is derived from it and `state.step`.
    """
    rngs = {"dropout": rng.key(key, Stream.DROPOUT, state.step)}
    options = {"deterministic": not dropout, "rngs": rngs}

    def loss_fn(params: Params) -> tuple[jax.Array, Metrics]:
        params = stop_gradients(params, frozen)
        logits_B = in_microbatches(
            lambda texts: disc_logits(discriminator, params, texts, frozen_layers, **options),
            (batch.tokens_BT, batch.mask_BT, batch.type_ids_BT),
            accumulate,
        )
        total, metrics = discriminator_loss(loss, logits_B, batch)
        metrics["disc/loss"] = total
        if gradient_penalty:
            slope = disc_penalty(discriminator, params, batch, frozen_layers)
            metrics["disc/gradient_penalty"] = slope
            total = total + gradient_penalty * slope
        return total, metrics

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics["disc/grad_norm"] = optax.tree.norm(gradients)
    metrics["disc/padding"] = 1 - jnp.mean(batch.mask_BT, dtype=jnp.float32)
    return state.apply_gradients(gradients, optimizer), metrics


def discriminator_loss(
    loss: str, logits_B: Float[Array, "B"], batch: TextBatch
) -> tuple[jax.Array, Metrics]:
    """Return the loss of a batch and its metrics, those of the classes among them."""
    if loss == "bradley_terry":
        total, metrics = bradley_terry_loss(logits_B[::2], logits_B[1::2], batch.weights_B[::2])
        metrics["disc/accuracy"] = metrics["disc/pair_accuracy"]
        targets = batch.classes_B, batch.weights_B, batch.targets_B
        return total, metrics | class_metrics(logits_B, *targets)
    return bce_loss(logits_B, batch.targets_B, batch.weights_B, classes_B=batch.classes_B)


def disc_penalty(
    discriminator: TextReader, params: Params, batch: TextBatch, frozen_layers: int
) -> jax.Array:
    """Return R1 / gamma, float32: half the mean squared gradient of the logits of the accepted
    texts by their embeddings (the sum over words, positions and segments, normalised). No dropout:
    the penalty is on the function that scores.

    Frozen layers pass the gradient down to the embeddings, but are not trained by it.
    """
    if frozen_layers:
        layers = jax.tree.map(
            lambda x: jnp.concatenate(
                [jax.lax.stop_gradient(x[:frozen_layers]), x[frozen_layers:]]
            ),
            params["encoder"]["layers"],
        )
        params = dict(params) | {"encoder": dict(params["encoder"]) | {"layers": layers}}

    def apply(*arguments: jax.Array, method: str) -> Any:
        return discriminator.apply({"params": params}, *arguments, method=method)

    def total(embedded_BTD: jax.Array) -> jax.Array:
        return jnp.sum(apply(embedded_BTD, batch.mask_BT, method="score_embedded"))

    embedded_BTD = apply(batch.tokens_BT, batch.mask_BT, batch.type_ids_BT, method="embed")
    accepted_B = batch.weights_B * (batch.classes_B == ACCEPTED)
    return gradient_penalty_loss(jax.grad(total)(embedded_BTD), batch.mask_BT, accepted_B)


def discriminator_placement(config: Config, place: Placement) -> Placement:
    """Return where the discriminator lives on the devices of a run. Its batches are much smaller
    than the policy's (8 texts in the paper): computed whole on every device, they would take as
    long on many devices as on one."""
    return place.for_rows(config.discriminator.batch_size)
