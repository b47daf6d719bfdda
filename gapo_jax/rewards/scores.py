"""From what discriminator and verifiers say of responses to one standardised reward each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from gapo_jax.losses import group_normalise, masked_fill, masked_mean


def merge_stats(stats_3: Float[Array, "3"], values_B: Shaped[Array, "B"]) -> Float[Array, "3"]:
    """Merge new values into running (count, mean, sum of squared deviations), float32 [3].

    Chan, Golub and LeVeque's parallel update of mean and variance. Values that are not finite are
    left out: one of them would be in the mean of every later round.
    """
    finite_B = jnp.isfinite(values_B)
    count, mean, squares = stats_3
    new_count = jnp.sum(finite_B, dtype=jnp.float32)
    new_mean = masked_mean(values_B, finite_B)
    spread = jnp.sum(masked_fill(masked_fill(values_B, finite_B) - new_mean, finite_B) ** 2)
    total = count + new_count
    share = new_count / jnp.maximum(total, 1.0)
    delta = new_mean - mean
    return jnp.stack([total, mean + delta * share, squares + spread + delta**2 * count * share])


def fault_of_scores(scores_B: Float[Array | np.ndarray, "B"]) -> str | None:
    """Return why a run must not learn from the discriminator's scores, and what to do about it;
    None where all are finite."""
    numbers_B = np.asarray(scores_B, np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers_B))
    if not len(bad):
        return None
    shown = ", ".join(f"{numbers_B[i]} of response {i}" for i in bad[:3])
    return (
        f"{len(bad)} of the discriminator's {len(numbers_B)} scores are not finite ({shown}"
        f"{', ...' if len(bad) > 3 else ''}): no reward can be made of them. Lower "
        "config.discriminator.round_learning_rate (or optim.learning_rate, in the first round), or "
        "set config.model.dtype='float32' if it is not"
    )


def response_scores(
    logits_B: Float[Array | np.ndarray, "B"] | None,
    rules_B: Float[Array | np.ndarray, "B"],
    *,
    source: str,
    squash: str,
    verifier_weight: float,
) -> Float[Array, "B"]:
    """Return the score of each response, float32 [B], before any standardisation.

    Args:
        logits_B: the discriminator's, None where `source` does not ask it.
        rules_B: the rule reward, in [0, 1].
        source: `discriminator`, `verifier`, or `mix`: (1 - w) probability + w rule reward.
        squash: `sigmoid` turns logits into probabilities, which bounds what a single confident
            score can do.
        verifier_weight: w.
    """
    rules_B = jnp.asarray(rules_B, jnp.float32)
    if source == "verifier" or logits_B is None:
        return rules_B
    scores_B = jnp.asarray(logits_B, jnp.float32)
    if squash == "sigmoid":
        scores_B = jax.nn.sigmoid(scores_B)
    if source == "discriminator":
        return scores_B
    return (1.0 - verifier_weight) * scores_B + verifier_weight * rules_B


def overlong_penalty(
    lengths_B: Int[Array | np.ndarray, "B"], limit: int, soft: int
) -> Float[Array, "B"]:
    """Return what comes off the score of long responses, float32 [B] in [-1, 0]: nothing up to
    `limit - soft` tokens, then linearly more, 1 at the limit (DAPO, arXiv 2503.14476, Eq. 13)."""
    return jnp.clip((limit - soft - jnp.asarray(lengths_B, jnp.float32)) / soft, -1.0, 0.0)


def standardise_rewards(
    scores_B: Float[Array, "B"],
    stats_3: Float[Array, "3"],
    *,
    mode: str,
    group_size: int,
    clip: float,
    group_eps: float = 0.05,
) -> tuple[Float[Array, "B"], Float[Array, "3"]]:
    """Turn scores into rewards, float32 [B], and update the running statistics.

    `mode` is `running` (over all rounds so far, this one included), `batch` (this round), `group`
    (the samples of one prompt, which stand next to each other) or `none` (clipped only).
    `group_eps` is added to a group's deviation (`config.reward.group_eps`).
    """
    scores_B = scores_B.astype(jnp.float32)
    stats_3 = merge_stats(stats_3, scores_B)
    if mode == "group":
        rewards_B = group_normalise(scores_B, group_size, eps=group_eps)
    elif mode == "none":
        rewards_B = scores_B
    else:
        count, mean, squares = (
            stats_3 if mode == "running" else merge_stats(jnp.zeros(3, jnp.float32), scores_B)
        )
        deviation = jnp.sqrt(squares / jnp.maximum(count - 1.0, 1.0))
        rewards_B = (scores_B - mean) / (deviation + 1e-6)
    return jnp.clip(rewards_B, -clip, clip), stats_3
