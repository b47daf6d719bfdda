"""The pure update of the offline methods: `offline_step(state, batch, ref_params)`.

Reference log-probs are computed in the step, not kept from an earlier pass: the frozen lower layers
are run once for both, so with most layers frozen the reference costs little; nothing needs to be
saved or restored; and KTO's mismatched rows, which depend on the batch, are no special case. SGPO
alone brings them along, its reference being an earlier policy.

Rows are scored at temperature 1: these methods are about likelihoods of given text, not about the
distribution that a sampler at some temperature draws from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gapo_jax.compilation import jit_step
from gapo_jax.config import Config
from gapo_jax.losses import chunked_logprobs
from gapo_jax.losses.offline import RowLogprobs
from gapo_jax.methods import method_of, offline_loss, sides_of
from gapo_jax.models import unembedding
from gapo_jax.train.buckets import accept_buckets, cut_rows
from gapo_jax.train.forward import (
    PolicySpec,
    frozen_hidden,
    reference_part,
    response_hidden,
    response_logprobs,
)
from gapo_jax.train.microbatches import in_microbatches
from gapo_jax.train.state import TrainState
from gapo_jax.types import Metrics, Params, Rollout


class OfflineBatch(flax.struct.PyTreeNode):
    """The rows of a batch, and what some methods need beside them.

    The sides of an example stand next to each other, but for KTO, whose accepted rows all come
    before the rejected ones. `logprobs_BR` of the rollouts is unused.

    Attributes:
        rows: what to learn from.
        mismatched: as many rows, each prompt with the response of another example (KTO).
        condition: the same responses under the other condition (Inverse-Q*).
        rewards_B: float32, the explicit rewards of the rows; for SGPO's first stage their weights.
        ref_B: float32, their sequence log-probs under a reference that the batch brings along.
        desirable_B: int32, which rows are good ones (KTO); None where these are the first half.
    """

    rows: Rollout
    mismatched: Rollout | None = None
    condition: Rollout | None = None
    rewards_B: jax.Array | None = None
    ref_B: jax.Array | None = None
    desirable_B: jax.Array | None = None

    @property
    def mask_BT(self) -> jax.Array:
        """Which tokens of the rows to learn from are real."""
        return self.rows.mask_BT


def cut_batch(batch: OfflineBatch, width: int) -> OfflineBatch:
    """Return a batch whose rows are `width` columns wide."""
    rollouts = {name: getattr(batch, name) for name in ("rows", "mismatched", "condition")}
    return batch.replace(
        **{name: part and cut_rows(part, part.mask_BT, width) for name, part in rollouts.items()}
    )


def row_logprobs(
    spec: PolicySpec, ref_params: Params, trained: Params, with_reference: bool, rows: Rollout
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Return the token log-probs of rows under policy and reference, over shared layers, and where
    the policy's likeliest token is the one that stands there."""
    frozen_hidden_BTD = jax.lax.stop_gradient(
        frozen_hidden(spec, ref_params, rows.tokens_BT, rows.mask_BT)
    )
    policy_BR, correct_BR, _ = response_logprobs(
        spec, ref_params, trained, rows, frozen_hidden_BTD, with_accuracy=True
    )
    assert correct_BR is not None
    if not with_reference:
        return policy_BR, None, correct_BR
    ref_BR, _, _ = response_logprobs(
        spec, ref_params, reference_part(spec, ref_params), rows, frozen_hidden_BTD
    )
    return policy_BR, jax.lax.stop_gradient(ref_BR), correct_BR


def target_logprobs(
    spec: PolicySpec, ref_params: Params, strength: float, both: tuple[Rollout, Rollout]
) -> jax.Array:
    """Return log-probs [B, R] under pi* = ref(. | rows) (ref(. | rows) / ref(. | other))^strength;
    `both` are (rows, other), the same responses after two prompts.

    Logits are linear in the final hidden state, so the contrast of the logits is the logits of the
    contrasted hidden states; the log-softmax over them renormalises, in float32.
    """
    reference = reference_part(spec, ref_params)
    own_BRD, other_BRD = (
        response_hidden(spec, ref_params, reference, part).astype(jnp.float32) for part in both
    )
    logprobs_BR, _ = chunked_logprobs(
        own_BRD + strength * (own_BRD - other_BRD),
        unembedding(ref_params).astype(jnp.float32),
        both[0].tokens_BT[:, -both[0].response_mask_BR.shape[1] :],
        temperature=spec.temperature,
        chunk_tokens=spec.chunk,
        tied=spec.config.tie_embeddings,
    )
    return jax.lax.stop_gradient(logprobs_BR)


def score_batch(
    trained: Params, ref_params: Params, batch: OfflineBatch, spec: PolicySpec, config: Config
) -> RowLogprobs:
    """Return the log-probs that the method's loss may ask for. Only `policy_BR` has a gradient, to
    `trained`."""
    method, microbatches = method_of(config), config.offline.accumulate

    def scored(params: Params, rows: Rollout) -> RowLogprobs:
        score = functools.partial(row_logprobs, spec, ref_params, params, method.reference)
        policy_BR, ref_BR, correct_BR = in_microbatches(score, rows, microbatches)
        return RowLogprobs(policy_BR, rows.response_mask_BR, ref_BR, correct_BR=correct_BR)

    rows = scored(trained, batch.rows)
    mismatched = target_BR = None
    if batch.mismatched is not None:
        mismatched = scored(jax.lax.stop_gradient(trained), batch.mismatched)
    if batch.condition is not None:
        strength = method.section_of(config).signed_strength
        target = functools.partial(target_logprobs, spec, ref_params, strength)
        target_BR = in_microbatches(target, (batch.rows, batch.condition), microbatches)
    return rows._replace(
        rewards_B=batch.rewards_B,
        ref_B=batch.ref_B,
        desirable_B=batch.desirable_B,
        target_BR=target_BR,
        mismatched=mismatched,
        sides=sides_of(config),
    )


def offline_step(
    state: TrainState,
    batch: OfflineBatch,
    ref_params: Params,
    *,
    spec: PolicySpec,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update of the generator by the loss that the registry names for the method."""
    method_loss = offline_loss(config)

    def loss_fn(trained: Params) -> tuple[jax.Array, Metrics]:
        loss, metrics = method_loss(score_batch(trained, ref_params, batch, spec, config))
        return loss, metrics | {"policy/loss": loss}

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics["policy/grad_norm"] = optax.tree.norm(gradients)
    metrics["policy/padding"] = 1 - jnp.mean(batch.rows.mask_BT, dtype=jnp.float32)
    return state.apply_gradients(gradients, optimizer), metrics


class RowSums(NamedTuple):
    """What a pass over rows says of each of them: sums over its trained tokens, float32 [B]."""

    policy_B: jax.Array
    ref_B: jax.Array
    correct_B: jax.Array
    tokens_B: jax.Array


def sum_rows(
    trained: Params, ref_params: Params, rows: Rollout, *, spec: PolicySpec, reference: bool
) -> RowSums:
    """Return the log-probs of rows under policy and reference (0 where the method has none), how
    many of their tokens are the likeliest ones, and how many there are."""
    policy_BR, ref_BR, correct_BR = row_logprobs(spec, ref_params, trained, reference, rows)
    ref_BR = jnp.zeros_like(policy_BR) if ref_BR is None else ref_BR
    parts = policy_BR, ref_BR, correct_BR, rows.response_mask_BR.astype(jnp.float32)
    return RowSums(*(jnp.sum(part_BR, axis=1) for part_BR in parts))


def make_sum_rows(spec: PolicySpec, config: Config) -> Callable[[Params, Params, Rollout], RowSums]:
    """Bind the static parts of `sum_rows` and jit it."""
    plain = dataclasses.replace(spec, temperature=1.0)
    step = functools.partial(sum_rows, spec=plain, reference=method_of(config).reference)
    return jit_step(step, place=spec.place, rows=(2,))


def make_offline_step(
    spec: PolicySpec, config: Config, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Any, Params], tuple[TrainState, Metrics]]:
    """Bind the static parts and jit; the state is donated. The step takes an `OfflineBatch`, or one
    in a bucket."""
    spec = dataclasses.replace(spec, temperature=1.0)
    step = functools.partial(offline_step, spec=spec, config=config, optimizer=optimizer)
    step = accept_buckets(step, cut_batch)
    return jit_step(step, donate=0, place=spec.place, keep="network", rows=(1,))
