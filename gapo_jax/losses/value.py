"""The clipped value loss of PPO (OpenAI baselines, TRL, OpenRLHF)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from gapo_jax.losses.masked import masked_fill, masked_mean, masked_variance
from gapo_jax.types import Metrics


def explained_variance(
    values_BR: Float[Array, "B R"], returns_BR: Float[Array, "B R"], mask_BR: Int[Array, "B R"]
) -> Float[Array, ""]:
    """1 - Var(returns - values) / Var(returns) over real tokens, float32 scalar.

    1 is a perfect critic, 0 one no better than a constant. 0 when the returns do not vary.
    """
    returns_BR = masked_fill(returns_BR, mask_BR)
    error_BR = returns_BR - masked_fill(values_BR, mask_BR)
    total = masked_variance(returns_BR, mask_BR)
    left = masked_variance(error_BR, mask_BR)
    return jnp.where(total > 1e-12, 1.0 - left / jnp.where(total > 1e-12, total, 1.0), 0.0)


def value_loss(
    values_BR: Float[Array, "B R"],
    old_values_BR: Float[Array, "B R"],
    returns_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    *,
    clip: float | None = 0.2,
    denominator: ScalarLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """0.5 * mean of max((V - G)^2, (clip(V, V_old +- clip) - G)^2) over real tokens.

    Args:
      values_BR: values of the critic being trained; the gradient flows here alone.
      old_values_BR: values at rollout time.
      returns_BR: targets G, unwhitened (`gae`).
      mask_BR: 1 = real token.
      clip: range of change in units of the values, so the scale of the reward sets its strength;
        None for the plain squared error.
      denominator: count to divide by in place of this call's own tokens, see `masked_mean`.

    Returns:
      (loss, metrics), float32 scalars: `value/loss`, `value/explained_variance`,
      `value/clip_fraction`, `value/mean`, `value/error` (root mean square).

    Raises:
      ValueError: `clip` is not positive.
    """
    if clip is not None and clip <= 0:
        raise ValueError(f"Value clip must be positive, or None for no clip, got {clip}.")
    values_BR = masked_fill(values_BR, mask_BR)
    old_BR = jax.lax.stop_gradient(masked_fill(old_values_BR, mask_BR))
    returns_BR = jax.lax.stop_gradient(masked_fill(returns_BR, mask_BR))
    plain_BR = (values_BR - returns_BR) ** 2
    bounded_BR = plain_BR
    if clip is not None:
        bounded_BR = (jnp.clip(values_BR, old_BR - clip, old_BR + clip) - returns_BR) ** 2
    loss = 0.5 * masked_mean(jnp.maximum(plain_BR, bounded_BR), mask_BR, denominator=denominator)
    metrics = {
        "value/loss": loss,
        "value/explained_variance": explained_variance(values_BR, returns_BR, mask_BR),
        "value/clip_fraction": masked_mean((bounded_BR > plain_BR).astype(jnp.float32), mask_BR),
        "value/mean": masked_mean(values_BR, mask_BR),
        "value/error": jnp.sqrt(masked_mean(plain_BR, mask_BR)),
    }
    return loss, jax.lax.stop_gradient(metrics)
