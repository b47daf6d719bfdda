"""Means and whitening over real tokens: the one place where losses reduce."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike, Shaped


def masked_fill(
    x: Shaped[Array, "*#shape"], mask: Shaped[Array, "*#shape"]
) -> Float[Array, "*#shape"]:
    """Return `x` as float32 with zeros wherever `mask` is 0.

    Applied to the inputs of a loss, before any other arithmetic, it keeps what stands in padding
    (NaN and inf included) out of the value and out of the gradient.

    Args:
      x: any shape, floating.
      mask: same shape as `x` (or broadcastable to it), non-zero = real.
    """
    return jnp.where(mask != 0, x.astype(jnp.float32), 0.0)


def masked_mean(
    x: Shaped[Array, "*shape"],
    mask: Shaped[Array, "*shape"],
    *,
    axis: int | None = None,
    denominator: ScalarLike | None = None,
) -> Float[Array, "..."]:
    """Mean of `x` over the places where `mask` is not 0; 0 where there is no such place.

    Args:
      x: any shape, floating.
      mask: same shape as `x`, non-zero = counted.
      axis: axis to reduce, all axes by default.
      denominator: divide by this number in place of the count of `mask`. For gradient
        accumulation: the count over the whole batch, so that the sum over micro-batches equals
        the loss of the whole batch.

    Returns:
      float32, scalar or `x` without `axis`.
    """
    if denominator is None:
        denominator = jnp.maximum(jnp.sum(mask != 0, axis=axis, dtype=jnp.float32), 1.0)
    return jnp.sum(masked_fill(x, mask), axis=axis) / denominator


def aggregate(
    losses_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    aggregation: str,
    denominator: ScalarLike | None = None,
) -> Float[Array, ""]:
    """Reduce token losses to a float32 scalar.

    Args:
      losses_BR: loss of each token.
      mask_BR: 1 = token that counts.
      aggregation: "token" = mean over all tokens of the batch; "sequence" = mean over rows of each
        row's token mean, rows without a token left out.
      denominator: count to divide by in place of this call's own tokens (or rows), see
        `masked_mean`.

    Raises:
      ValueError: unknown aggregation.
    """
    if aggregation == "token":
        return masked_mean(losses_BR, mask_BR, denominator=denominator)
    if aggregation != "sequence":
        raise ValueError(f"aggregation must be 'token' or 'sequence', got {aggregation!r}.")
    losses_B = masked_mean(losses_BR, mask_BR, axis=1)
    return masked_mean(losses_B, jnp.any(mask_BR != 0, axis=1), denominator=denominator)


def weighted_mean(x: Float[Array, "*shape"], weights: Shaped[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of `x` with non-negative `weights` of its shape, float32; 0 if all weights are 0."""
    weights = weights.astype(jnp.float32)
    total = jnp.sum(weights)
    return jnp.sum(masked_fill(x, weights) * weights) / jnp.where(total > 0, total, 1.0)


def masked_variance(
    x: Float[Array, "*shape"], mask: Shaped[Array, "*shape"], *, unbiased: bool = True
) -> Float[Array, ""]:
    """Variance of `x` over `mask`, float32 scalar; 0 if fewer than two places are real.

    `unbiased` divides by n - 1, as TRL's `masked_var` does.
    """
    count = jnp.sum(mask != 0, dtype=jnp.float32)
    centred = masked_fill(masked_fill(x, mask) - masked_mean(x, mask), mask)
    total = jnp.sum(centred**2)
    return total / jnp.maximum(count - 1.0 if unbiased else count, 1.0)


def whiten(
    x: Float[Array, "*shape"],
    mask: Shaped[Array, "*shape"],
    shift_mean: bool = True,
    *,
    eps: float = 1e-8,
) -> Float[Array, "*shape"]:
    """Scale `x` to unit variance over the real places, and to zero mean if `shift_mean`.

    TRL's `masked_whiten`: `(x - mean) * rsqrt(var + eps)`, with the unbiased variance over all
    real places of the array; without `shift_mean` the mean is added back (reward whitening).

    Returns:
      float32, same shape as `x`, 0 at masked places.
    """
    mean = masked_mean(x, mask)
    scaled = (masked_fill(x, mask) - mean) * jax.lax.rsqrt(masked_variance(x, mask) + eps)
    return masked_fill(scaled if shift_mean else scaled + mean, mask)
