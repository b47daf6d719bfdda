"""Supervised and pairwise losses: SFT (token NLL) and DPO with label smoothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gapo_jax.losses.masked import masked_fill, masked_mean, weighted_mean


def sequence_logprobs(logprobs_BR: jax.Array, mask_BR: jax.Array, *, mean: bool = False):
    """Sum (or, with `mean`, the per-token mean) of the log-probs of each row, float32 [B]."""
    if mean:
        return masked_mean(logprobs_BR, mask_BR, axis=1)
    return jnp.sum(masked_fill(logprobs_BR, mask_BR), axis=1)


def sft_loss(
    logprobs_BR: jax.Array,
    mask_BR: jax.Array,
    *,
    denominator: jax.Array | float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Negative log-likelihood, mean over all real tokens of the batch.

    Args:
      logprobs_BR: log-probs of the target tokens.
      mask_BR: 1 = token to learn from (response tokens, end-of-sequence included).
      denominator: count to divide by in place of this call's own tokens, see `masked_mean`.

    Returns:
      (loss, metrics), float32 scalars: `sft/loss`, `sft/tokens`.
    """
    loss = -masked_mean(logprobs_BR, mask_BR, denominator=denominator)
    metrics = {"sft/loss": loss, "sft/tokens": jnp.sum(mask_BR != 0, dtype=jnp.float32)}
    return loss, jax.lax.stop_gradient(metrics)


def dpo_loss(
    chosen_B: jax.Array,
    rejected_B: jax.Array,
    ref_chosen_B: jax.Array,
    ref_rejected_B: jax.Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    weights_B: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-(1 - e) log s(beta Delta) - e log s(-beta Delta) (DPO, arXiv 2305.18290, Eq. 7).

    Delta = log(pi / ref)(chosen) - log(pi / ref)(rejected), e = `label_smoothing` (cDPO). With
    preferential responses the two sides are two responses to one prompt; with preferential
    prompts one response under two prompts, each with its own mask.

    Args:
      chosen_B, rejected_B: sequence log-probs under the policy, see `sequence_logprobs`.
      ref_chosen_B, ref_rejected_B: the same under the reference.
      beta: strength of the tie to the reference.
      label_smoothing: probability that a label is wrong, in [0, 0.5).
      weights_B: weight of each pair, 0 = padding; all 1 by default.

    Returns:
      (loss, metrics), float32 scalars: `pref/loss`, `pref/accuracy`, `pref/margin` (beta Delta),
      `pref/reward_chosen`, `pref/reward_rejected` (beta log(pi / ref)).

    Raises:
      ValueError: `label_smoothing` outside [0, 0.5).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}.")
    if weights_B is None:
        weights_B = jnp.ones_like(chosen_B, dtype=jnp.float32)
    weights_B = jax.lax.stop_gradient(weights_B.astype(jnp.float32))
    good_B = beta * (masked_fill(chosen_B, weights_B) - masked_fill(ref_chosen_B, weights_B))
    bad_B = beta * (masked_fill(rejected_B, weights_B) - masked_fill(ref_rejected_B, weights_B))
    margin_B = good_B - bad_B
    losses_B = (1 - label_smoothing) * jax.nn.softplus(-margin_B)
    losses_B += label_smoothing * jax.nn.softplus(margin_B)
    loss = weighted_mean(losses_B, weights_B)
    metrics = {
        "pref/loss": loss,
        "pref/accuracy": masked_mean((margin_B > 0).astype(jnp.float32), weights_B),
        "pref/margin": masked_mean(margin_B, weights_B),
        "pref/reward_chosen": masked_mean(good_B, weights_B),
        "pref/reward_rejected": masked_mean(bad_B, weights_B),
    }
    return loss, jax.lax.stop_gradient(metrics)
