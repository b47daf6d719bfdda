"""What the policy minimises, by estimator: one scalar from the log-probs of a minibatch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gapo_jax.config import Config
from gapo_jax.losses import (
    importance_weights,
    kl_loss,
    ppo_loss,
    rpo_loss,
    sequence_logprobs,
)
from gapo_jax.methods import estimator, kl_in_loss
from gapo_jax.records import JsonObject
from gapo_jax.types import Experience, Metrics


def reduction(config: Config, experience: Experience) -> JsonObject:
    """Return `aggregation` and `denominator` of the token losses of a minibatch.

    GRPO and GSPO average rows of token means; DAPO all tokens of the batch that one update sees;
    Dr. GRPO divides by rows times `sampling.max_new_tokens`, whatever was really sampled. As in
    TRL, a row without a token to learn from (`grpo.mask_truncated`) counts as a row all the same:
    left out, it would raise the weight of the others. Rows that only fill the shape do not count.
    """
    chosen = estimator(config)
    if chosen == "rloo":
        return {"aggregation": "sequence", "denominator": None}
    if chosen != "grpo":
        return {"aggregation": config.ppo.aggregation, "denominator": None}
    variant = config.grpo.variant
    if variant == "dapo":
        return {"aggregation": "token", "denominator": None}
    rows: Any = experience.response_mask_BR.shape[0]
    if experience.counted_B is not None:
        rows = jnp.maximum(jnp.sum(experience.counted_B, dtype=jnp.float32), 1.0)
    if variant == "dr_grpo":
        return {"aggregation": "token", "denominator": rows * config.sampling.max_new_tokens}
    return {"aggregation": "sequence", "denominator": rows}


def ratio_level(config: Config) -> str:
    """Return what the probability ratio is taken of: a token, or (in two ways) a response."""
    chosen = estimator(config)
    if chosen == "rloo":
        return "product"
    return "sequence" if chosen == "grpo" and config.grpo.variant == "gspo" else "token"


def policy_objective(
    config: Config, logprobs_BR: jax.Array, experience: Experience, kl_coef: jax.Array | float
) -> tuple[jax.Array, Metrics]:
    """Return (loss, metrics) of a minibatch; float32 scalars, the loss as `policy/loss`.

    A clipped ratio times the advantage for all estimators but rpo, and `kl_coef` times the KL to
    the reference where it stands in the loss (grpo: k3; `ppo.group_baseline`: k2).

    Args:
        logprobs_BR: under the policy being trained, at the sampling temperature.
        experience: whole groups, their rows next to each other, if the estimator is rpo.
        kl_coef: the coefficient of this round.
    """
    if estimator(config) == "rpo":
        return _rpo(config, logprobs_BR, experience)
    mask_BR, reduced = experience.response_mask_BR, reduction(config, experience)
    weights_BR, tis_metrics = None, {}
    if experience.sampled_logprobs_BR is not None:
        weights_BR, tis_metrics = importance_weights(
            experience.old_logprobs_BR,
            experience.sampled_logprobs_BR,
            mask_BR,
            cap=config.sampling.tis_cap,
        )
    loss, metrics = ppo_loss(
        logprobs_BR,
        experience.old_logprobs_BR,
        experience.advantages_BR,
        mask_BR,
        clip_low=config.ppo.clip_low,
        clip_high=config.ppo.clip_high,
        ratio_level=ratio_level(config),
        weights_BR=weights_BR,
        **reduced,
    )
    metrics |= tis_metrics
    name = kl_in_loss(config)
    if name is not None:
        ref_BR = experience.ref_logprobs_BR
        drift = kl_loss(logprobs_BR, ref_BR, mask_BR, estimator=name, **reduced)
        loss = loss + kl_coef * drift
        metrics["kl/loss"] = drift
    return loss, metrics | {"policy/loss": loss}


def _rpo(
    config: Config, logprobs_BR: jax.Array, experience: Experience
) -> tuple[jax.Array, Metrics]:
    """RPO (arXiv 2502.00203) on the samples of the current policy, the rewards being explicit."""
    group, mask_BR = config.ppo.group_size, experience.response_mask_BR
    assert experience.rewards_B is not None
    policy_B, ref_B = (
        sequence_logprobs(x_BR, mask_BR) for x_BR in (logprobs_BR, experience.ref_logprobs_BR)
    )
    loss, metrics = rpo_loss(
        *(x_B.reshape(-1, group) for x_B in (policy_B, ref_B, experience.rewards_B)),
        beta=config.rpo.beta,
        eta=config.rpo.eta,
        distance=config.rpo.distance,
    )
    return loss, metrics | {"policy/loss": loss}
