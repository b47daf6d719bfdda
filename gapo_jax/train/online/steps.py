"""The pure steps of the online methods: update the policy, update the critic.

Each is `step(state, batch, ...) -> (state, metrics)`; `build.build_steps` compiles them, and
`forward.score_rollout` with them. Nothing here reads a clock, a file or a global random state.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gapo_jax.config import Config
from gapo_jax.losses import masked_mean, sft_loss, value_loss
from gapo_jax.train.forward import PolicySpec, critic_values, response_logprobs
from gapo_jax.train.microbatches import in_microbatches
from gapo_jax.train.online.objectives import policy_objective
from gapo_jax.train.state import TrainState
from gapo_jax.types import Experience, Metrics, Params, Rollout


class PolicyBatch(flax.struct.PyTreeNode):
    """A minibatch of the policy: rows of experience, the output of the frozen layers on them (None
    where nothing is frozen), and the weight of the KL in the loss."""

    experience: Experience
    frozen_hidden_BTD: jax.Array | None
    kl_coef: jax.Array | float = 0.0

    @property
    def mask_BT(self) -> jax.Array:
        """Which tokens are real."""
        return self.experience.mask_BT


class CriticBatch(flax.struct.PyTreeNode):
    """A minibatch of the critic: rows of experience, what its head reads, and what its own layers
    read, each None for a critic that does not."""

    experience: Experience
    features_BRD: jax.Array | None
    frozen_hidden_BTD: jax.Array | None

    @property
    def mask_BT(self) -> jax.Array:
        """Which tokens are real."""
        return self.experience.mask_BT


def as_rollout(experience: Experience) -> Rollout:
    """Return the rollout inside an experience (its log-probs are the old policy's)."""
    return Rollout(
        tokens_BT=experience.tokens_BT,
        mask_BT=experience.mask_BT,
        response_mask_BR=experience.response_mask_BR,
        logprobs_BR=experience.old_logprobs_BR,
    )


def policy_step(
    state: TrainState,
    batch: PolicyBatch,
    ref_params: Params,
    demonstrations: Rollout | None = None,
    *,
    spec: PolicySpec,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update of the generator by the run's estimator (`objectives.policy_objective`).

    The negative log-likelihood of `demonstrations` (at temperature 1) is added with
    `ppo.sft_coef`. `policy/padding` is the share of padding in the tokens that pass through the
    layers.
    """
    experience, microbatches = batch.experience, config.ppo.accumulate
    mask_BR = experience.response_mask_BR

    def loss_fn(trained: Params) -> tuple[jax.Array, Metrics]:
        def score(rows: tuple[Rollout, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
            scored = response_logprobs(spec, ref_params, trained, *rows, with_entropy=True)
            assert scored[1] is not None
            return scored[0], scored[1]

        logprobs_BR, entropy_BR = in_microbatches(
            score, (as_rollout(experience), batch.frozen_hidden_BTD), microbatches
        )
        loss, metrics = policy_objective(config, logprobs_BR, experience, batch.kl_coef)
        metrics["policy/entropy"] = masked_mean(entropy_BR, mask_BR)
        if demonstrations is not None:
            plain = dataclasses.replace(spec, temperature=1.0)
            likely = functools.partial(response_logprobs, plain, ref_params, trained)
            demonstrated_BR = in_microbatches(
                lambda rows: likely(rows)[0], demonstrations, microbatches
            )
            nll, sft_metrics = sft_loss(demonstrated_BR, demonstrations.response_mask_BR)
            loss = loss + config.ppo.sft_coef * nll
            metrics |= {"sft/loss": sft_metrics["sft/loss"], "policy/loss": loss}
        return loss, metrics

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics["policy/grad_norm"] = optax.tree.norm(gradients)
    metrics["policy/padding"] = 1 - jnp.mean(experience.mask_BT, dtype=jnp.float32)
    return state.apply_gradients(gradients, optimizer), metrics


def critic_step(
    state: TrainState,
    batch: CriticBatch,
    *,
    spec: PolicySpec,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One clipped value update of the critic against the GAE returns."""
    experience = batch.experience
    assert experience.values_BR is not None and experience.returns_BR is not None
    old_BR, returns_BR = experience.values_BR, experience.returns_BR

    def loss_fn(critic: Params) -> tuple[jax.Array, Metrics]:
        inputs = as_rollout(experience), batch.features_BRD, batch.frozen_hidden_BTD
        values_BR = in_microbatches(
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

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(gradients, optimizer), metrics
