"""From what discriminator and verifiers say of responses to one standardised reward each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

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


def discriminator_scores(
    logits_B: Float[Array | np.ndarray, "B"], squash: str
) -> Float[np.ndarray, "B"]:
    """Return the discriminator's scores, float32 [B]: its logits, or with `squash="sigmoid"` its
    probabilities, which bounds what a single confident score can do."""
    scores_B = jnp.asarray(logits_B, jnp.float32)
    return np.asarray(jax.nn.sigmoid(scores_B) if squash == "sigmoid" else scores_B)


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
    `group_eps` is added to a group's deviation (`config.reward.group_eps`). A row without a score
    (NaN) is in no statistic and gets NaN.
    """
    scores_B = scores_B.astype(jnp.float32)
    stats_3 = merge_stats(stats_3, scores_B)
    if mode == "group" and bool(jnp.isnan(scores_B).any()):
        rewards_B = _group_normalise_scored(scores_B, group_size, group_eps)
    elif mode == "group":
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


def _group_normalise_scored(
    scores_B: Float[Array, "B"], group_size: int, eps: float
) -> Float[Array, "B"]:
    """`group_normalise` of the rows that have a score; NaN for the others."""
    scores_AG = scores_B.reshape(-1, group_size)
    scored_AG = ~jnp.isnan(scores_AG)
    count_A1 = jnp.maximum(scored_AG.sum(axis=1, keepdims=True), 1)
    mean_A1 = jnp.where(scored_AG, scores_AG, 0.0).sum(axis=1, keepdims=True) / count_A1
    squares_AG = jnp.where(scored_AG, (scores_AG - mean_A1) ** 2, 0.0)
    variance_A1 = squares_AG.sum(axis=1, keepdims=True) / jnp.maximum(count_A1 - 1, 1)
    return ((scores_AG - mean_A1) / (jnp.sqrt(variance_A1) + eps)).reshape(-1)


def fill_unscored(
    rewards_B: Float[Array, "B"], group_size: int
) -> tuple[Float[Array, "B"], Bool[np.ndarray, "B"]]:
    """Return rewards in which a row without one (NaN) has the mean of its prompt's other samples,
    or 0, and which rows had one, bool [B].

    Nothing is learned from such a row. With the mean in its place it does not move the baseline of
    the others, whichever estimator takes it.
    """
    scored_B = ~np.isnan(np.asarray(rewards_B))
    if scored_B.all():
        return rewards_B, scored_B
    rewards_AG = np.asarray(rewards_B).reshape(-1, group_size)
    scored_AG = scored_B.reshape(rewards_AG.shape)
    count_A1 = np.maximum(scored_AG.sum(axis=1, keepdims=True), 1)
    mean_A1 = np.where(scored_AG, rewards_AG, 0).sum(axis=1, keepdims=True) / count_A1
    return jnp.asarray(np.where(scored_AG, rewards_AG, mean_A1).reshape(-1)), scored_B
