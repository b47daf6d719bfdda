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
import jax.numpy as jnp
import optax

from gapo_jax.compilation import jit_step
from gapo_jax.config import Config
from gapo_jax.config.online import has_critic
from gapo_jax.losses import (
    bce_loss,
    bradley_terry_loss,
    class_metrics,
    gradient_penalty_loss,
    masked_mean,
    sft_loss,
    value_loss,
)
from gapo_jax.models import Discriminator
from gapo_jax.sharding import Placement
from gapo_jax.train.buckets import Frame
from gapo_jax.train.forward import (
    PolicySpec,
    RolloutLogprobs,
    critic_values,
    response_logprobs,
    score_rollout,
)
from gapo_jax.train.microbatches import in_parts
from gapo_jax.train.online.objectives import policy_objective
from gapo_jax.train.optimizers import frozen_parameters, stop_gradients
from gapo_jax.train.state import TrainState
from gapo_jax.types import ACCEPTED, Experience, Rollout

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
    """The compiled functions of a run; `critic` is None for a method without one."""

    score: Callable[..., RolloutLogprobs]
    policy: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    critic: Callable[..., tuple[TrainState, dict[str, jax.Array]]] | None
    disc_score: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
    disc_update: Callable[
        [TrainState, TextBatch, jax.Array], tuple[TrainState, dict[str, jax.Array]]
    ]


def as_rollout(experience: Experience) -> Rollout:
    """Return the rollout inside an experience (its log-probs are the old policy's)."""
    return Rollout(
        tokens_BT=experience.tokens_BT,
        mask_BT=experience.mask_BT,
        response_mask_BR=experience.response_mask_BR,
        logprobs_BR=experience.old_logprobs_BR,
    )


def policy_step(
    network: TrainState,
    ref_params: Params,
    experience: Experience,
    frozen_hidden_BTD: jax.Array | None,
    kl_coef: jax.Array | float = 0.0,
    examples: Rollout | None = None,
    frame: Frame | None = None,
    *,
    spec: PolicySpec,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of the generator by the run's estimator (`objectives.policy_objective`).
    `policy/padding` is the share of padding in the tokens that it passes through the layers, no
    more of a row than `frame` says.

    `examples` are accepted pairs whose negative log-likelihood (at temperature 1) is added with
    `ppo.sft_coef`.
    """
    if frame is not None:
        experience, frozen_hidden_BTD = frame.tight(
            (experience, frozen_hidden_BTD), experience.mask_BT
        )
    mask_BR, parts = experience.response_mask_BR, config.ppo.accumulate

    def loss_fn(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        def score(rows: tuple[Rollout, jax.Array | None]) -> tuple[jax.Array, jax.Array | None]:
            return response_logprobs(spec, ref_params, trained, *rows, with_entropy=True)[:2]

        logprobs_BR, entropy_BR = in_parts(
            score, (as_rollout(experience), frozen_hidden_BTD), parts
        )
        loss, metrics = policy_objective(config, logprobs_BR, experience, kl_coef)
        metrics["policy/entropy"] = masked_mean(entropy_BR, mask_BR)
        if examples is not None:
            plain = dataclasses.replace(spec, temperature=1.0)
            likely = functools.partial(response_logprobs, plain, ref_params, trained)
            logprobs_SR = in_parts(lambda rows: likely(rows)[0], examples, parts)
            likelihood, found = sft_loss(logprobs_SR, examples.response_mask_BR)
            loss = loss + config.ppo.sft_coef * likelihood
            metrics |= {"sft/loss": found["sft/loss"], "policy/loss": loss}
        return loss, metrics

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(network.params)
    metrics["policy/grad_norm"] = optax.tree.norm(gradients)
    metrics["policy/padding"] = 1 - jnp.mean(experience.mask_BT, dtype=jnp.float32)
    return network.apply_gradients(gradients, optimizer), metrics


def critic_step(
    network: TrainState,
    experience: Experience,
    features_BRD: jax.Array | None,
    frozen_hidden_BTD: jax.Array | None,
    frame: Frame | None = None,
    *,
    spec: PolicySpec,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One clipped value update of the critic against the GAE returns, of rows in `frame`."""
    if frame is not None:
        inputs = experience, features_BRD, frozen_hidden_BTD
        experience, features_BRD, frozen_hidden_BTD = frame.tight(inputs, experience.mask_BT)
    assert experience.values_BR is not None and experience.returns_BR is not None
    old_BR, returns_BR = experience.values_BR, experience.returns_BR

    def loss_fn(critic: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs = as_rollout(experience), features_BRD, frozen_hidden_BTD
        values_BR = in_parts(
            lambda rows: critic_values(spec, critic, *rows), inputs, config.ppo.accumulate
        )
        loss, metrics = value_loss(
            values_BR,
            old_BR,
            returns_BR,
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
    texts: tuple[jax.Array, jax.Array, jax.Array],
    frozen_layers: int,
    **options: Any,
) -> jax.Array:
    """Return logits [B] float32 of (tokens, mask, segment ids); the backward pass ends at the
    lowest trained layer."""
    if frozen_layers:
        options["frozen_layers"] = frozen_layers
    logits: Any = discriminator.apply({"params": params}, *texts, **options)
    return logits


def disc_update_step(
    network: TrainState,
    batch: TextBatch,
    key: jax.Array,
    *,
    discriminator: Discriminator,
    dropout: bool,
    frozen: str | None,
    frozen_layers: int = 0,
    loss: str = "bce",
    gradient_penalty: float = 0.0,
    accumulate: int = 1,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of the discriminator: binary cross-entropy (GAPO, Eq. 6) or Bradley-Terry.

    For "bradley_terry" the rows alternate: the better text of a pair, then the worse. With a
    `gradient_penalty` R1 on the accepted texts is added. Parameters whose path matches `frozen` and
    the lowest `frozen_layers` layers stand still, and no gradient is computed for them. With
    `accumulate` the texts pass through the network in so many parts (the penalty's pass does not).
    """
    key = jax.random.fold_in(key, network.step)
    options = {"deterministic": not dropout, "rngs": {"dropout": key}}

    def loss_fn(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        params = stop_gradients(params, frozen)
        logits_B = in_parts(
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

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(network.params)
    metrics["disc/grad_norm"] = optax.tree.norm(gradients)
    metrics["disc/padding"] = 1 - jnp.mean(batch.mask_BT, dtype=jnp.float32)
    return network.apply_gradients(gradients, optimizer), metrics


def discriminator_loss(
    loss: str, logits_B: jax.Array, batch: TextBatch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss of a batch and its metrics, those of the classes among them."""
    if loss == "bradley_terry":
        total, metrics = bradley_terry_loss(logits_B[::2], logits_B[1::2], batch.weights_B[::2])
        metrics["disc/accuracy"] = metrics["disc/pair_accuracy"]
        return total, metrics | class_metrics(logits_B, batch.classes_B, batch.weights_B)
    return bce_loss(logits_B, batch.targets_B, batch.weights_B, classes_B=batch.classes_B)


def disc_penalty(
    discriminator: Discriminator, params: Params, batch: TextBatch, frozen_layers: int
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


def disc_score(discriminator: Discriminator, params: Params, tokens_BT, mask_BT, type_ids_BT):
    """Return the discriminator's logits [B] float32, without dropout."""
    return discriminator.apply({"params": params}, tokens_BT, mask_BT, type_ids_BT)


def discriminator_placement(config: Config, place: Placement) -> Placement:
    """Return where the discriminator lives on the devices of a run. Its batches are much smaller
    than the policy's (8 texts in the paper): computed whole on every device, they would take as
    long on many devices as on one."""
    return place.for_rows(config.discriminator.batch_size)


def make_steps(
    spec: PolicySpec,
    discriminator: Discriminator,
    config: Config,
    optimizers: dict[str, optax.GradientTransformation],
) -> Steps:
    """Bind the static parts and jit every step once; `optimizers` by network name."""
    bound, place = {"spec": spec, "config": config}, spec.place
    policy = functools.partial(policy_step, **bound, optimizer=optimizers["policy"])
    critic = None
    if has_critic(config):
        value = functools.partial(critic_step, **bound, optimizer=optimizers["critic"])
        critic = jit_step(value, donate=0, place=place, keep="network", rows=(1, 2, 3))
    settings, judging = config.discriminator, discriminator_placement(config, place)
    update = functools.partial(
        disc_update_step,
        discriminator=discriminator,
        dropout=settings.dropout > 0,
        frozen=frozen_parameters(config),
        frozen_layers=settings.frozen_layers,
        loss=settings.loss,
        gradient_penalty=settings.gradient_penalty,
        accumulate=settings.accumulate,
        optimizer=optimizers["discriminator"],
    )
    return Steps(
        score=jit_step(functools.partial(score_rollout, spec), place=place, keep="rows", rows=(3,)),
        policy=jit_step(policy, donate=0, place=place, keep="network", rows=(2, 3, 5)),
        critic=critic,
        disc_score=jit_step(
            functools.partial(disc_score, discriminator),
            place=judging,
            rows=(1, 2, 3),
        ),
        disc_update=jit_step(
            update,
            donate=0,
            place=judging,
            keep="network",
            rows=(1,),
            whole=(2,),
        ),
    )
