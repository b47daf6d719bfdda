"""KTO (arXiv 2402.01306): learning from single responses marked good or bad."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from gapo_jax.losses.masked import masked_fill, masked_mean, weighted_mean
from gapo_jax.types import Metrics


def mismatched_rows(batch: int) -> list[int]:
    """Row whose response goes with prompt i in the KL estimate: i + 1, the last with the first.

    A rotation pairs no prompt with its own response; a reversal would, in an odd batch.

    Raises:
      ValueError: fewer than two rows: the response would meet its own prompt, and the reference
        point would be the reward itself.
    """
    if batch < 2:
        raise ValueError(
            f"KTO wants a batch of 2 rows or more, got {batch}: its KL term pairs each prompt with "
            "the response of another row; raise the batch size."
        )
    return [(row + 1) % batch for row in range(batch)]


def kto_loss(
    logprobs_B: Float[Array, "B"],
    ref_logprobs_B: Float[Array, "B"],
    mismatched_B: Float[Array, "B"],
    ref_mismatched_B: Float[Array, "B"],
    desirable_B: Shaped[Array, "B"],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights_B: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean of w_D (1 - s(beta (rho - z0))) and w_U (1 - s(beta (z0 - rho))) (Eq. 7-8).

    rho = log(pi / ref) of a row; z0 = max(0, mean rho of the mismatched rows), no gradient. The
    mean runs over the whole array: under jit on a mesh that is the global batch.

    Args:
      logprobs_B, ref_logprobs_B: sequence log-probs (sums) of each response under its prompt.
      mismatched_B, ref_mismatched_B: the same of `mismatched_rows`' pairs of the same batch.
      desirable_B: non-zero = good response.
      beta: strength of the tie to the reference, > 0.
      desirable_weight, undesirable_weight: keep w_D n_D / (w_U n_U) within 1 to 4/3.
      weights_B: 0 = padding, left out of the loss and of z0; all 1 by default.

    Returns:
      (loss, metrics), float32 scalars: `pref/loss`, `pref/kl` (z0), `pref/reward_chosen`,
      `pref/reward_rejected` (mean beta rho of each kind, 0 for a kind that is absent).

    Raises:
      ValueError: fewer than two rows, or beta <= 0.
    """
    mismatched_rows(logprobs_B.shape[0])
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}.")
    if weights_B is None:
        weights_B = jnp.ones(logprobs_B.shape, jnp.float32)
    weights_B = jax.lax.stop_gradient(weights_B.astype(jnp.float32))
    rho_B = masked_fill(logprobs_B, weights_B) - masked_fill(ref_logprobs_B, weights_B)
    drift_B = masked_fill(mismatched_B, weights_B) - masked_fill(ref_mismatched_B, weights_B)
    z0 = jax.lax.stop_gradient(jnp.maximum(weighted_mean(drift_B, weights_B), 0.0))
    good_B = desirable_B != 0
    margin_B = beta * jnp.where(good_B, rho_B - z0, z0 - rho_B)
    side_B = jnp.where(good_B, desirable_weight, undesirable_weight)
    loss = weighted_mean(side_B * jax.nn.sigmoid(-margin_B), weights_B)
    real_B = weights_B > 0
    metrics = {
        "pref/loss": loss,
        "pref/kl": z0,
        "pref/reward_chosen": masked_mean(beta * rho_B, real_B & good_B),
        "pref/reward_rejected": masked_mean(beta * rho_B, real_B & ~good_B),
    }
    return loss, jax.lax.stop_gradient(metrics)
