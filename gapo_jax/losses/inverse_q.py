"""Token-level reward imitation in the manner of Inverse-Q* (arXiv 2408.14874).

What is sourced (the abstract and introduction): no reward model, value model or preference labels;
a conditionally optimal policy pi* is estimated from the model's own responses, and its log-ratio to
the reference gives each token a reward, which the policy imitates ("From r to Q*", arXiv
2404.12358, read the other way round). The paper publishes neither pseudo-code nor settings, so the
loss below is this project's reconstruction and should not be called the paper's algorithm.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gapo_jax.losses.masked import masked_fill, masked_mean
from gapo_jax.types import Metrics


def inverse_q_loss(
    logprobs_BR: Float[Array, "B R"],
    ref_logprobs_BR: Float[Array, "B R"],
    target_logprobs_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    *,
    beta: float = 1.0,
    clip: float = 5.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean over tokens of 1/2 (beta log(pi / ref) - r)^2, r = clip(beta log(pi* / ref), +-clip).

    Under soft optimality with the reference, beta log(pi* / ref) = Q* - V* is the advantage of pi*
    at the token, so r is a shaped reward; where nothing is clipped the fixed point is pi = pi*. A
    reconstruction, see the module.

    Args:
      logprobs_BR: log-probs of the tokens under the policy; the gradient flows here alone.
      ref_logprobs_BR: the same under the frozen reference.
      target_logprobs_BR: the same under the estimate of pi*, normalised over the vocabulary.
      mask_BR: 1 = response token.
      beta: scale of the rewards, > 0.
      clip: largest absolute reward of a token, > 0.

    Returns:
      (loss, metrics), float32 scalars: `invq/loss`; `invq/reward` (mean r), `invq/clip_fraction`
      (share of tokens whose reward is clipped), `invq/gap` (mean |beta log(pi / ref) - r|).

    Raises:
      ValueError: beta or clip that is not positive.
    """
    if beta <= 0 or clip <= 0:
        raise ValueError(f"beta and clip must be above 0, got {beta} and {clip}.")
    ref_BR = masked_fill(ref_logprobs_BR, mask_BR)
    raw_BR = beta * (masked_fill(target_logprobs_BR, mask_BR) - ref_BR)
    reward_BR = jax.lax.stop_gradient(jnp.clip(raw_BR, -clip, clip))
    ref_BR = jax.lax.stop_gradient(ref_BR)
    error_BR = beta * (masked_fill(logprobs_BR, mask_BR) - ref_BR) - reward_BR
    loss = masked_mean(0.5 * error_BR**2, mask_BR)
    metrics = {
        "invq/loss": loss,
        "invq/reward": masked_mean(reward_BR, mask_BR),
        "invq/clip_fraction": masked_mean((jnp.abs(raw_BR) > clip).astype(jnp.float32), mask_BR),
        "invq/gap": masked_mean(jnp.abs(error_BR), mask_BR),
    }
    return loss, jax.lax.stop_gradient(metrics)
