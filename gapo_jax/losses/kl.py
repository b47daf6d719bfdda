"""Estimators of KL(pi || ref) from samples of pi, and the adaptive coefficient.

All take log-probs of the sampled tokens, any shape, and return float32 of that shape. With
d = log pi - log ref (http://joschu.net/blog/kl-approx.html):

| name | value | note |
|---|---|---|
| k1 | d | unbiased value, can be negative; the one to put into a reward |
| k2 | d^2 / 2 | biased value, right gradient on policy |
| k3 | exp(-d) - 1 + d | unbiased value, never negative, heavy tail where pi << ref |
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from gapo_jax.losses.masked import aggregate, masked_fill

Logprobs = Float[Array, "*shape"]


def k1(logprobs: Logprobs, ref_logprobs: Logprobs) -> Logprobs:
    """log pi - log ref."""
    return logprobs.astype(jnp.float32) - ref_logprobs.astype(jnp.float32)


def k2(logprobs: Logprobs, ref_logprobs: Logprobs) -> Logprobs:
    """(log pi - log ref)^2 / 2."""
    return 0.5 * k1(logprobs, ref_logprobs) ** 2


def k3(logprobs: Logprobs, ref_logprobs: Logprobs) -> Logprobs:
    """ref / pi - 1 - log(ref / pi)."""
    difference = k1(logprobs, ref_logprobs)
    return jnp.expm1(-difference) + difference


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def estimate(name: str, logprobs: Logprobs, ref_logprobs: Logprobs) -> Logprobs:
    """Per-token KL by the estimator called `name` ("k1", "k2" or "k3").

    Raises:
      ValueError: the name is none of these.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"KL estimator must be one of {sorted(ESTIMATORS)}, got {name!r}.")
    return ESTIMATORS[name](logprobs, ref_logprobs)


def kl_loss(
    logprobs_BR: Float[Array, "B R"],
    ref_logprobs_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    *,
    estimator: str = "k3",
    aggregation: str = "token",
    denominator: ScalarLike | None = None,
) -> Float[Array, ""]:
    """KL to the reference as a term of the loss, float32 scalar, reduced as the policy loss is.

    GRPO (arXiv 2402.03300, Eq. 4) takes k3, whose gradient is that of the forward KL; k2 has the
    gradient of the reverse KL on policy; k1 has none in expectation and is refused. It carries no
    importance ratio: the sequence ratio of GSPO must not be spread over a token penalty.

    Args:
      logprobs_BR: under the policy being trained; the gradient flows here alone.
      ref_logprobs_BR: under the reference.
      mask_BR: 1 = response token that counts.
      estimator: "k2" or "k3".
      aggregation, denominator: as `ppo_loss`.

    Raises:
      ValueError: "k1", or an unknown estimator or aggregation.
    """
    if estimator == "k1":
        raise ValueError("k1 in a loss has an expected gradient of 0; take 'k2' or 'k3'.")
    ref_BR = jax.lax.stop_gradient(masked_fill(ref_logprobs_BR, mask_BR))
    kl_BR = estimate(estimator, masked_fill(logprobs_BR, mask_BR), ref_BR)
    return aggregate(kl_BR, mask_BR, aggregation, denominator)


def adaptive_kl_coef(
    kl_coef: ScalarLike,
    observed_kl: ScalarLike,
    *,
    target: float,
    num_samples: ScalarLike,
    horizon: float = 10_000,
) -> Float[Array, ""]:
    """Return the KL coefficient for the next rollout (arXiv 1909.08593, section 2.2).

    `coef * (1 + clip(observed / target - 1, -0.2, 0.2) * num_samples / horizon)`.

    Args:
      kl_coef: current coefficient, scalar.
      observed_kl: KL of the latest rollout, in the units of `target` (nats a token, or a sequence).
      target: KL to steer towards, > 0.
      num_samples: sequences in the latest rollout.
      horizon: number of sequences over which a full correction takes place.

    Returns:
      float32 scalar.

    Raises:
      ValueError: `target` or `horizon` is not positive.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(
            f"Adaptive KL wants target > 0 and horizon > 0, got {target} and {horizon}; "
            "use a fixed coefficient for no target."
        )
    error = jnp.clip(jnp.float32(observed_kl) / target - 1.0, -0.2, 0.2)
    return jnp.float32(kl_coef) * (1.0 + error * jnp.float32(num_samples) / horizon)
