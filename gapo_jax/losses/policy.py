"""The clipped policy loss of PPO (arXiv 1707.06347, Eq. 7)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from gapo_jax.losses.masked import aggregate, masked_fill, masked_mean
from gapo_jax.types import Metrics

# exp(20) is far outside every clip range; beyond it the ratio would overflow and 0 * inf be NaN.
MAX_LOG_RATIO = 20.0
RATIO_LEVELS = ("token", "sequence", "product")


def _check(aggregation: str, ratio_level: str, clip_low: float, clip_high: float) -> None:
    if aggregation not in ("token", "sequence"):
        raise ValueError(f"aggregation must be 'token' or 'sequence', got {aggregation!r}.")
    if ratio_level not in RATIO_LEVELS:
        raise ValueError(f"ratio_level must be one of {RATIO_LEVELS}, got {ratio_level!r}.")
    if ratio_level != "token" and aggregation != "sequence":
        raise ValueError(f"ratio_level={ratio_level!r} wants aggregation='sequence', got 'token'.")
    if not (0 < clip_low and 0 < clip_high):
        raise ValueError(f"Clip range must be positive, got {clip_low} and {clip_high}.")


def ppo_loss(
    logprobs_BR: Float[Array, "B R"],
    old_logprobs_BR: Float[Array, "B R"],
    advantages_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: str = "token",
    ratio_level: str = "token",
    denominator: ScalarLike | None = None,
    weights_BR: Float[Array, "B R"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean of max(-A w, -A clip(w, 1 - clip_low, 1 + clip_high)), w = pi / pi_old per token.

    Args:
      logprobs_BR: log-probs under the policy being trained; the gradient flows here alone.
      old_logprobs_BR: log-probs under the policy that sampled, by the same forward pass.
      advantages_BR: advantages, usually whitened.
      mask_BR: 1 = response token that counts.
      clip_low, clip_high: the two sides of the clip range (DAPO raises the high one).
      aggregation: "token" = mean over all tokens of the batch; "sequence" = mean over rows of
        each row's token mean (OpenRLHF, GRPO), rows without a token left out.
      ratio_level: "token" = a ratio for each token; "sequence" = one for each row, the exponential
        of its mean log-ratio (GSPO, arXiv 2507.18071); "product" = one for each row, the ratio of
        the whole responses' probabilities (RLOO as TRL has it). The latter two want
        aggregation="sequence".
      denominator: count to divide by in place of this call's own tokens (or rows), see
        `masked_mean`. With aggregation="token" and rows * R it is the loss of Dr. GRPO.
      weights_BR: factors of the tokens' losses (`importance_weights`), without a gradient; None
        for 1.

    Returns:
      (loss, metrics), float32 scalars: `policy/loss`; `policy/clip_fraction`, share of tokens where
      the clip decides; `policy/approx_kl`, the k3 estimate of KL(old || new);
      `policy/ratio_max`, `policy/ratio_mean`.

    Raises:
      ValueError: unknown aggregation or level, levels that do not fit (tokens would weigh a ratio
        of rows by length), or a clip range that is not positive.
    """
    _check(aggregation, ratio_level, clip_low, clip_high)
    advantages_BR = jax.lax.stop_gradient(masked_fill(advantages_BR, mask_BR))
    old_BR = jax.lax.stop_gradient(masked_fill(old_logprobs_BR, mask_BR))
    log_ratio_BR = masked_fill(logprobs_BR, mask_BR) - old_BR
    if ratio_level != "token":
        row_B = (
            masked_mean(log_ratio_BR, mask_BR, axis=1)
            if ratio_level == "sequence"
            else jnp.sum(log_ratio_BR, axis=1)
        )
        log_ratio_BR = masked_fill(jnp.broadcast_to(row_B[:, None], mask_BR.shape), mask_BR)
    log_ratio_BR = jnp.clip(log_ratio_BR, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BR = jnp.exp(log_ratio_BR)
    clipped_BR = jnp.clip(ratio_BR, 1.0 - clip_low, 1.0 + clip_high)
    plain_BR = -advantages_BR * ratio_BR
    bounded_BR = -advantages_BR * clipped_BR
    losses_BR = jnp.maximum(plain_BR, bounded_BR)
    if weights_BR is not None:
        losses_BR = losses_BR * jax.lax.stop_gradient(weights_BR)
    loss = aggregate(losses_BR, mask_BR, aggregation, denominator)
    metrics = {
        "policy/loss": loss,
        "policy/clip_fraction": masked_mean((bounded_BR > plain_BR).astype(jnp.float32), mask_BR),
        "policy/approx_kl": masked_mean(jnp.expm1(log_ratio_BR) - log_ratio_BR, mask_BR),
        "policy/ratio_max": jnp.max(masked_fill(ratio_BR, mask_BR)),
        "policy/ratio_mean": masked_mean(ratio_BR, mask_BR),
    }
    return loss, jax.lax.stop_gradient(metrics)


def importance_weights(
    old_logprobs_BR: Float[Array, "B R"],
    sampled_logprobs_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    *,
    cap: float,
) -> tuple[Float[Array, "B R"], Metrics]:
    """Weigh tokens that another policy has drawn: min(pi_old / pi_sampled, cap).

    The sampler can differ from the policy by precision or kernels. This truncated importance
    weight, as TRL and verl have it (Yao et al. 2025, "Your efficient RL framework secretly brings
    you off-policy RL training"), corrects the expectation and bounds the variance.

    Args:
      old_logprobs_BR: log-probs by the training forward, before the update.
      sampled_logprobs_BR: log-probs by the sampler.
      mask_BR: 1 = response token that counts.
      cap: the largest weight.

    Returns:
      (weights, 1 where the mask is 0; metrics): `tis/clipped`, the share of tokens at the cap, and
      `tis/weight_mean`.

    Raises:
      ValueError: the cap is not positive.
    """
    if not cap > 0:
        raise ValueError(f"The cap must be positive, got {cap}.")
    gap_BR = masked_fill(old_logprobs_BR, mask_BR) - masked_fill(sampled_logprobs_BR, mask_BR)
    ratio_BR = jnp.exp(jnp.clip(gap_BR, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    weights_BR = jax.lax.stop_gradient(jnp.minimum(ratio_BR, cap))
    return weights_BR, {
        "tis/clipped": masked_mean((ratio_BR > cap).astype(jnp.float32), mask_BR),
        "tis/weight_mean": masked_mean(weights_BR, mask_BR),
    }
