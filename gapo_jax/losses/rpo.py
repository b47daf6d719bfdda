"""Reward-aware preference optimisation (RPO, arXiv 2502.00203), for two responses or more."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gapo_jax.losses.masked import masked_fill, masked_mean, weighted_mean
from gapo_jax.types import Metrics

DISTANCES = ("sq", "sqloo", "bwd_kl", "fwd_kl")


def rpo_loss(
    logprobs_BG: Float[Array, "B G"],
    ref_logprobs_BG: Float[Array, "B G"],
    rewards_BG: Float[Array, "B G"],
    *,
    beta: float,
    eta: float = 1.0,
    distance: str = "bwd_kl",
    weights_B: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Distance between the implicit rewards a = beta log(pi / ref) and the given b = eta r*.

    Rows are prompts, columns their G responses (order is free, ties inform too):

    | distance | loss of one prompt |
    |---|---|
    | sq | ((a1 - a2) - (b1 - b2))^2, for G = 2 |
    | sqloo | 1/(2G) sum_i (a_i' - b_i')^2, x_i' = x_i - mean of the other x; half of sq at G = 2 |
    | bwd_kl | KL(softmax(b) to softmax(a)) |
    | fwd_kl | KL(softmax(a) to softmax(b)) |

    For G = 2 these are NeMo-Aligner's `rpo_sq`, `rpo_bwd_kl`, `rpo_fwd_kl` (Bernoulli KLs of the
    sigmoids of the differences). The forms for G > 2 are the derivation of this project's notes,
    not code of the authors.

    Args:
      logprobs_BG: sequence log-probs (sums) under the policy.
      ref_logprobs_BG: the same under the reference.
      rewards_BG: explicit rewards r*, from verifiers or a discriminator.
      beta, eta: scales of the two rewards; only eta / beta moves the optimum.
      distance: a row of the table.
      weights_B: weight of each prompt, 0 = padding; all 1 by default.

    Returns:
      (loss, metrics), float32 scalars: `pref/loss`; `pref/accuracy`, share of response pairs with
      unequal rewards that a orders as b does; `pref/margin`, mean of a minus mean of the others
      at the response of highest reward.

    Raises:
      ValueError: unknown distance, fewer than two responses, "sq" with more than two, beta <= 0.
    """
    group = logprobs_BG.shape[1]
    _check(distance, group, beta)
    if weights_B is None:
        weights_B = jnp.ones(logprobs_BG.shape[0], jnp.float32)
    weights_B = jax.lax.stop_gradient(weights_B.astype(jnp.float32))
    real_BG = jnp.broadcast_to(weights_B[:, None], logprobs_BG.shape)
    rho_BG = masked_fill(logprobs_BG, real_BG) - masked_fill(ref_logprobs_BG, real_BG)
    a_BG = beta * rho_BG
    b_BG = jax.lax.stop_gradient(eta * masked_fill(rewards_BG, real_BG))
    if distance in ("sq", "sqloo"):
        gap_BG = _against_others(a_BG) - _against_others(b_BG)
        losses_B = 0.5 * jnp.mean(gap_BG**2, axis=1) * (2.0 if distance == "sq" else 1.0)
    else:
        log_a_BG, log_b_BG = jax.nn.log_softmax(a_BG), jax.nn.log_softmax(b_BG)
        if distance == "fwd_kl":
            log_a_BG, log_b_BG = log_b_BG, log_a_BG
        losses_B = jnp.sum(jnp.exp(log_b_BG) * (log_b_BG - log_a_BG), axis=1)
    loss = weighted_mean(losses_B, weights_B)
    a_BGG, b_BGG = (x_BG[:, :, None] - x_BG[:, None, :] for x_BG in (a_BG, b_BG))
    best_B = jnp.argmax(b_BG, axis=1)
    margin_B = jnp.take_along_axis(_against_others(a_BG), best_B[:, None], axis=1)[:, 0]
    metrics = {
        "pref/loss": loss,
        "pref/accuracy": masked_mean((a_BGG * b_BGG > 0).astype(jnp.float32), b_BGG != 0),
        "pref/margin": masked_mean(margin_B, weights_B),
    }
    return loss, jax.lax.stop_gradient(metrics)


def _against_others(x_BG: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """x_i minus the mean of the other columns."""
    group = x_BG.shape[1]
    return (x_BG - x_BG.mean(axis=1, keepdims=True)) * (group / (group - 1))


def _check(distance: str, group: int, beta: float) -> None:
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}.")
    if group < 2:
        raise ValueError(f"RPO wants 2 responses a prompt or more, got {group}.")
    if distance == "sq" and group != 2:
        raise ValueError(f"distance 'sq' is for 2 responses, got {group}; take 'sqloo'.")
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}.")
