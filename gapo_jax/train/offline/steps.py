"""The pure update of the offline methods: `offline_step(state, batch, ref_params)`.

Reference log-probs are computed in the step, not kept from an earlier pass: the frozen lower layers
are run once for both, so with most layers frozen the reference costs little; nothing needs to be
saved or restored; and KTO's mismatched rows, which depend on the batch, are no special case. SGPO
alone brings them along, its reference being a policy of the past.

Rows are scored at temperature 1: these methods are about likelihoods of given text, not about the
distribution that a sampler at some temperature draws from.
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

from gapo_jax import losses
from gapo_jax.compilation import jit_step
from gapo_jax.config import Config
from gapo_jax.losses import chunked_logprobs, masked_mean, sequence_logprobs
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
from gapo_jax.types import Rollout

Params = Any
Metrics = dict[str, jax.Array]
WITHOUT_REFERENCE = ("sft", "simpo", "orpo", "sgpo")


class OfflineBatch(flax.struct.PyTreeNode):
    """The rows of a batch; the K sides of an example stand next to each other (kto: all accepted
    rows, then all rejected ones).

    `other` has as many rows: KTO's mismatched ones, or Inverse-Q*'s under the other condition.
    `rewards_N` float32 are the explicit rewards of the rows, or for SGPO's first stage the rows'
    weights; `ref_N` float32 their sequence log-probs under a reference that is given. In all of
    these rollouts `logprobs_BR` is unused.
    """

    rows: Rollout
    other: Rollout | None = None
    rewards_N: jax.Array | None = None
    ref_N: jax.Array | None = None


def cut_batch(batch: OfflineBatch, width: int) -> OfflineBatch:
    """Return a batch whose rows are `width` columns wide."""
    rows, other = (
        part and cut_rows(part, part.mask_BT, width) for part in (batch.rows, batch.other)
    )
    return batch.replace(rows=rows, other=other)


def row_logprobs(
    spec: PolicySpec, ref_params: Params, trained: Params, with_reference: bool, rows: Rollout
) -> tuple[jax.Array, jax.Array | None]:
    """Return the token log-probs [N, R] of rows under policy and reference, over shared layers."""
    frozen_hidden_BTD = jax.lax.stop_gradient(
        frozen_hidden(spec, ref_params, rows.tokens_BT, rows.mask_BT)
    )
    policy_BR, _, _ = response_logprobs(spec, ref_params, trained, rows, frozen_hidden_BTD)
    if not with_reference:
        return policy_BR, None
    ref_BR, _, _ = response_logprobs(
        spec, ref_params, reference_part(spec, ref_params), rows, frozen_hidden_BTD
    )
    return policy_BR, jax.lax.stop_gradient(ref_BR)


def target_logprobs(
    spec: PolicySpec, ref_params: Params, strength: float, both: tuple[Rollout, Rollout]
) -> jax.Array:
    """Return log-probs [N, R] under pi* = ref(. | rows) (ref(. | rows) / ref(. | other))^strength;
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


def _by_example(rows_N: jax.Array, group: int) -> jax.Array:
    return rows_N.reshape(-1, group, *rows_N.shape[1:])


def pairwise_loss(
    config: Config, policy_BR: jax.Array, ref_N: jax.Array | None, batch: OfflineBatch
) -> tuple[jax.Array, Metrics]:
    """Return the loss of a method that compares the sides of an example, and its metrics.

    `ref_N` are the reference's sequence log-probs, reduced as the policy's are.
    """
    method = config.method
    group = config.rpo.responses if method == "rpo" else 2
    mask_BR = batch.rows.response_mask_BR
    mean = method == "simpo" or (method == "dpo" and config.dpo.reduce == "mean")
    policy_BG = _by_example(sequence_logprobs(policy_BR, mask_BR, mean=mean), group)
    tokens_BGR, mask_BGR = _by_example(policy_BR, group), _by_example(mask_BR, group)
    if method == "orpo":
        sides = (tokens_BGR[:, 0], tokens_BGR[:, 1], mask_BGR[:, 0], mask_BGR[:, 1])
        loss, metrics = losses.orpo_loss(*sides, beta=config.orpo.beta)
    elif method == "simpo":
        loss, metrics = losses.simpo_loss(
            policy_BG[:, 0], policy_BG[:, 1], **dataclasses.asdict(config.simpo)
        )
    else:
        assert ref_N is not None  # all others have a reference
        ref_BG = _by_example(ref_N, group)
        if method == "rpo":
            assert batch.rewards_N is not None
            loss, metrics = losses.rpo_loss(
                policy_BG,
                ref_BG,
                _by_example(batch.rewards_N, group),
                beta=config.rpo.beta,
                eta=config.rpo.eta,
                distance=config.rpo.distance,
            )
        else:
            options: dict[str, Any] = {"beta": config.sgpo.beta}
            if method == "dpo":
                options = dataclasses.asdict(config.dpo)
                del options["reduce"]
            sides = (policy_BG[:, 0], policy_BG[:, 1], ref_BG[:, 0], ref_BG[:, 1])
            loss, metrics = losses.dpo_loss(*sides, **options)
    nll, _ = losses.sft_loss(tokens_BGR[:, 0], mask_BGR[:, 0])
    # Both fall while the margin grows, in DPO at least: worth watching.
    metrics["pref/logprob_chosen"] = -nll
    metrics["pref/logprob_rejected"] = masked_mean(tokens_BGR[:, 1], mask_BGR[:, 1])
    return loss + config.offline.sft_weight * nll, metrics


def kto_rows_loss(
    config: Config,
    policy_BR: jax.Array,
    ref_BR: jax.Array,
    others: tuple[jax.Array, jax.Array],
    batch: OfflineBatch,
) -> tuple[jax.Array, Metrics]:
    """Return KTO's loss of rows whose first half is accepted and the rest rejected; `others` are
    the log-probs [N, R] of the mismatched rows under policy and reference."""
    assert batch.other is not None
    masks = batch.rows.response_mask_BR, batch.other.response_mask_BR
    policy_N, ref_N = (sequence_logprobs(x_BR, masks[0]) for x_BR in (policy_BR, ref_BR))
    other_N, other_ref_N = (sequence_logprobs(x_BR, masks[1]) for x_BR in others)
    count = policy_BR.shape[0]
    desirable_N = jnp.arange(count) < count // 2
    options: Any = dataclasses.asdict(config.kto)
    return losses.kto_loss(policy_N, ref_N, other_N, other_ref_N, desirable_N, **options)


def improver_loss(policy_BR: jax.Array, batch: OfflineBatch) -> tuple[jax.Array, Metrics]:
    """Return SGPO's first loss: -log pi(refinement | improve) - w log pi(answer | prompt), each the
    mean over the tokens of its kind; w is `sgpo.answer_weight`, given as the rows' weights."""
    assert batch.rewards_N is not None
    mask_BR = batch.rows.response_mask_BR
    weights_BG = _by_example(batch.rewards_N, 2)
    policy_BGR, mask_BGR = _by_example(policy_BR, 2), _by_example(mask_BR, 2)
    parts = [losses.sft_loss(policy_BGR[:, k], mask_BGR[:, k])[0] for k in (0, 1)]
    loss = parts[0] * weights_BG[0, 0] + parts[1] * weights_BG[0, 1]
    return loss, {"sft/loss": parts[1], "sgpo/improver_loss": parts[0]}


def offline_loss(
    trained: Params, ref_params: Params, batch: OfflineBatch, spec: PolicySpec, config: Config
) -> tuple[jax.Array, Metrics]:
    """Return (loss, metrics) of a batch under `config.method`; the gradient flows to `trained`."""
    method, parts = config.method, config.offline.accumulate
    with_reference = method not in WITHOUT_REFERENCE
    score = functools.partial(row_logprobs, spec, ref_params, trained, with_reference)
    policy_BR, ref_BR = in_microbatches(score, batch.rows, parts)
    mask_BR = batch.rows.response_mask_BR
    if method == "sft":
        return losses.sft_loss(policy_BR, mask_BR)
    if method == "sgpo" and batch.ref_N is None:
        return improver_loss(policy_BR, batch)
    if method == "kto":
        still = jax.lax.stop_gradient(trained)
        score = functools.partial(row_logprobs, spec, ref_params, still, with_reference)
        return kto_rows_loss(
            config, policy_BR, ref_BR, in_microbatches(score, batch.other, parts), batch
        )
    if method == "inverse_q":
        settings = config.inverse_q
        # The system prompt makes the other condition the better one.
        sign = -1.0 if settings.contrast == "system" else 1.0
        target = functools.partial(target_logprobs, spec, ref_params, sign * settings.strength)
        target_BR = in_microbatches(target, (batch.rows, batch.other), parts)
        loss, metrics = losses.inverse_q_loss(
            policy_BR, ref_BR, target_BR, mask_BR, beta=settings.beta, clip=settings.clip
        )
        if settings.contrast != "prompts":  # own samples: the log-ratio estimates the KL
            metrics["kl/ref"] = jax.lax.stop_gradient(masked_mean(policy_BR - ref_BR, mask_BR))
        return loss, metrics
    ref_N = batch.ref_N
    if with_reference:
        mean = method == "dpo" and config.dpo.reduce == "mean"
        ref_N = sequence_logprobs(ref_BR, mask_BR, mean=mean)
    return pairwise_loss(config, policy_BR, ref_N, batch)


def offline_step(
    state: TrainState,
    batch: OfflineBatch,
    ref_params: Params,
    *,
    spec: PolicySpec,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update of the generator by an offline method."""

    def loss_fn(trained: Params) -> tuple[jax.Array, Metrics]:
        loss, metrics = offline_loss(trained, ref_params, batch, spec, config)
        return loss, metrics | {"policy/loss": loss}

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics["policy/grad_norm"] = optax.tree.norm(gradients)
    metrics["policy/padding"] = 1 - jnp.mean(batch.rows.mask_BT, dtype=jnp.float32)
    return state.apply_gradients(gradients, optimizer), metrics


def make_offline_step(
    spec: PolicySpec, config: Config, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Any, Params], tuple[TrainState, Metrics]]:
    """Bind the static parts and jit; the state is donated. The step takes an `OfflineBatch`, or one
    in a bucket."""
    spec = dataclasses.replace(spec, temperature=1.0)
    step = functools.partial(offline_step, spec=spec, config=config, optimizer=optimizer)
    step = accept_buckets(step, cut_batch)
    return jit_step(step, donate=0, place=spec.place, keep="network", rows=(1,))
