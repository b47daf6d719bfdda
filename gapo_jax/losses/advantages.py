"""From scores to token rewards, and from rewards to advantages.

None of these are differentiated through: callers treat the results as constants of a rollout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real, ScalarLike, Shaped

from gapo_jax.losses import kl
from gapo_jax.losses.masked import masked_fill


def last_token_onehot(mask_BR: Int[Array, "B R"]) -> Float[Array, "B R"]:
    """Return float32 [B, R] with 1 at the last real token of each row, all 0 for an empty row.

    Found from the mask alone, so that padding on either side moves the mark with the token.
    """
    real_BR = (mask_BR != 0).astype(jnp.int32)
    later_BR = jnp.flip(jnp.cumsum(jnp.flip(real_BR, axis=1), axis=1), axis=1)
    return (real_BR * (later_BR == 1)).astype(jnp.float32)


def token_rewards(
    score_B: Real[Array, "B"],
    logprobs_BR: Float[Array, "B R"],
    ref_logprobs_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    kl_coef: ScalarLike,
    *,
    estimator: str = "k1",
    missing_eos_penalty: float | None = None,
    ended_B: Shaped[Array, "B"] | None = None,
) -> Float[Array, "B R"]:
    """Reward of each token: `-kl_coef * kl_t`, plus the sequence score on the last real token.

    GAPO (arXiv 2503.20194) as its code does it, section 2.1 of arXiv 1909.08593.

    Args:
      score_B: score of each response, any real dtype; kept in float32, never truncated.
      logprobs_BR: log-probs of the sampled tokens under the sampling policy.
      ref_logprobs_BR: the same under the reference.
      mask_BR: 1 for response tokens up to and including the end-of-sequence token.
      kl_coef: weight of the KL penalty, scalar, may be traced.
      estimator: "k1" (the one with the right gradient in a reward), "k2" or "k3".
      missing_eos_penalty: subtracted from the score of a row that `ended_B` says did not end.
      ended_B: non-zero where the response holds its end-of-sequence token; needed with the above.

    Returns:
      float32 [B, R], 0 at masked tokens. A row without a real token gets no score.

    Raises:
      ValueError: unknown estimator, or a penalty without `ended_B`.
    """
    score_B = score_B.astype(jnp.float32)
    if missing_eos_penalty is not None:
        if ended_B is None:
            raise ValueError(
                "missing_eos_penalty wants ended_B (1 where the response ended), got None; "
                "pass it, or set the penalty to None."
            )
        score_B = score_B - jnp.where(ended_B != 0, 0.0, jnp.float32(missing_eos_penalty))
    kl_BR = kl.estimate(
        estimator, masked_fill(logprobs_BR, mask_BR), masked_fill(ref_logprobs_BR, mask_BR)
    )
    # `where`, not a product: an infinite score must not turn the other tokens into NaN.
    scores_BR = jnp.where(last_token_onehot(mask_BR) > 0, score_B[:, None], 0.0)
    return scores_BR - jnp.float32(kl_coef) * kl_BR


def gae(
    rewards_BR: Float[Array, "B R"],
    values_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    gamma: ScalarLike,
    lam: ScalarLike,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Generalised advantage estimation (arXiv 1506.02438, Eq. 16) over the real tokens.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, where t + 1 is the
    next *real* token of the row and V past the last one is 0. Masked tokens are skipped, so the
    result is that of the row with them removed.

    Args:
      rewards_BR, values_BR: floating. What stands at masked tokens is never read.
      mask_BR: 1 = real token.
      gamma, lam: discount and trace decay, scalars.

    Returns:
      (advantages_BR, returns_BR), float32, 0 at masked tokens; returns = advantages + values,
      neither whitened.
    """
    rewards_BR, values_BR = masked_fill(rewards_BR, mask_BR), masked_fill(values_BR, mask_BR)

    def step(carry, column):
        next_value_B, next_advantage_B = carry
        reward_B, value_B, real_B = column
        delta_B = reward_B + gamma * next_value_B - value_B
        advantage_B = delta_B + gamma * lam * next_advantage_B
        carry = (
            jnp.where(real_B, value_B, next_value_B),
            jnp.where(real_B, advantage_B, next_advantage_B),
        )
        return carry, jnp.where(real_B, advantage_B, 0.0)

    zeros_B = jnp.zeros_like(rewards_BR[:, 0])
    columns = (rewards_BR.T, values_BR.T, (mask_BR != 0).T)
    _, advantages_RB = jax.lax.scan(step, (zeros_B, zeros_B), columns, reverse=True)
    advantages_BR = advantages_RB.T
    return advantages_BR, advantages_BR + values_BR


def _grouped(scores_B: Real[Array, "B"], group_size: int) -> Float[Array, "A G"]:
    batch = scores_B.shape[0]
    if group_size < 2 or batch % group_size:
        raise ValueError(
            f"Group advantages want at least 2 samples of each prompt and whole groups, got "
            f"{batch} rows in groups of {group_size}; sample every prompt 2 times or more."
        )
    return scores_B.astype(jnp.float32).reshape(-1, group_size)


def group_normalise(
    scores_B: Real[Array, "B"], group_size: int, *, eps: float = 1e-4, scale: bool = True
) -> Float[Array, "B"]:
    """Advantages of GRPO (arXiv 2402.03300): (r - mean) / (std + eps) within each group.

    Args:
      scores_B: scores; the rows of one group stand next to each other.
      group_size: samples of one prompt, G >= 2.
      eps: added to the (unbiased) standard deviation, so equal groups give 0 and no explosion.
      scale: divide by the standard deviation; False is Dr. GRPO (arXiv 2503.20783).

    Returns:
      float32 [B].

    Raises:
      ValueError: fewer than two samples a group, or rows that do not fill the groups.
    """
    scores_GG = _grouped(scores_B, group_size)
    centred_GG = scores_GG - scores_GG.mean(axis=1, keepdims=True)
    if scale:
        centred_GG = centred_GG / (scores_GG.std(axis=1, keepdims=True, ddof=1) + eps)
    return centred_GG.reshape(-1)


def leave_one_out(scores_B: Real[Array, "B"], group_size: int) -> Float[Array, "B"]:
    """Advantages of RLOO (arXiv 2402.14740): r_i minus the mean of the others of its group.

    The KL penalty belongs into `scores_B` before the baseline is taken.

    Args:
      scores_B: scores; the rows of one group stand next to each other.
      group_size: samples of one prompt, G >= 2.

    Returns:
      float32 [B]; each group sums to 0.

    Raises:
      ValueError: fewer than two samples a group, or rows that do not fill the groups.
    """
    scores_GG = _grouped(scores_B, group_size)
    centred_GG = scores_GG - scores_GG.mean(axis=1, keepdims=True)
    return (centred_GG * (group_size / (group_size - 1))).reshape(-1)
