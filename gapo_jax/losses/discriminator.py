"""Losses of the discriminator: binary cross-entropy (GAPO Eq. 6) and the Bradley-Terry form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from gapo_jax.losses.masked import masked_fill, masked_mean, weighted_mean
from gapo_jax.types import ACCEPTED, GENERATED, REJECTED, Metrics


def binary_cross_entropy(
    logits_B: Float[Array, "B"], targets_B: Real[Array, "B"]
) -> Float[Array, "B"]:
    """-[y log s(x) + (1 - y) log s(-x)] per sample, float32, stable for logits of any size."""
    logits_B, targets_B = logits_B.astype(jnp.float32), targets_B.astype(jnp.float32)
    # Not the form with max and abs: its gradient is wrong at 0, where a fresh head starts.
    return targets_B * jax.nn.softplus(-logits_B) + (1 - targets_B) * jax.nn.softplus(logits_B)


def class_metrics(
    logits_B: Float[Array, "B"],
    classes_B: Int[Array, "B"],
    weights_B: Float[Array, "B"] | None = None,
    targets_B: Float[Array, "B"] | None = None,
) -> Metrics:
    """How the discriminator treats each class of text, as float32 scalars.

    Args:
      logits_B: raw logits.
      classes_B: int, `types.ACCEPTED`, `types.REJECTED` or `types.GENERATED`.
      weights_B: rows of weight 0 are padding and do not count; other weights count alike.
      targets_B: probability that each text is accepted. Without them accepted text is to have a
        positive logit and all other text a negative one; but generated text that the verifiers
        accept may have the target 1 (`discriminator.label_policy`).

    Returns:
      `disc/acc_accepted`, `disc/acc_rejected` and `disc/acc_generated`: the share of logits with
      the sign that the target asks for, 0 having none;
      `disc/score_accepted`, `disc/score_rejected`, `disc/score_generated` (mean logits);
      `disc/score_gap` (accepted minus rejected); `disc/generated_fraction` (share of the rows);
      `disc/count_*` (rows). What concerns a class without a row is NaN: there is no such number.
    """
    real_B = jnp.ones_like(classes_B) if weights_B is None else (weights_B > 0)
    logits_B = jax.lax.stop_gradient(masked_fill(logits_B, real_B))
    wants_B = classes_B == ACCEPTED if targets_B is None else targets_B > 0.5
    right_B = jnp.where(wants_B, logits_B > 0, logits_B < 0).astype(jnp.float32)
    metrics = {}
    for name, index in (("accepted", ACCEPTED), ("rejected", REJECTED), ("generated", GENERATED)):
        rows_B = real_B * (classes_B == index)
        count = jnp.sum(rows_B, dtype=jnp.float32)
        for key, values_B in (("acc", right_B), ("score", logits_B)):
            mean = masked_mean(values_B, rows_B)
            metrics[f"disc/{key}_{name}"] = jnp.where(count > 0, mean, jnp.nan)
        metrics[f"disc/count_{name}"] = count
    metrics["disc/score_gap"] = metrics["disc/score_accepted"] - metrics["disc/score_rejected"]
    rows = jnp.maximum(jnp.sum(real_B, dtype=jnp.float32), 1.0)
    metrics["disc/generated_fraction"] = metrics["disc/count_generated"] / rows
    return metrics


def bce_loss(
    logits_B: Float[Array, "B"],
    targets_B: Float[Array, "B"],
    weights_B: Float[Array, "B"] | None = None,
    *,
    classes_B: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Binary cross-entropy with a target and a weight for each sample (GAPO, Eq. 6).

    Args:
      logits_B: raw logits; the gradient flows here.
      targets_B: probability that the text is accepted, in [0, 1]; soft labels are allowed.
      weights_B: non-negative weight of each sample, 0 = padding; all 1 by default. The loss is
        sum(w * bce) / sum(w).
      classes_B: class ids, for the metrics only.

    Returns:
      (loss, metrics), float32 scalars: `disc/loss`, `disc/accuracy` (sign of the logit against
      target > 0.5, samples of weight 0 left out) and, with `classes_B`, `class_metrics`.
    """
    if weights_B is None:
        weights_B = jnp.ones_like(logits_B, dtype=jnp.float32)
    weights_B = jax.lax.stop_gradient(weights_B.astype(jnp.float32))
    logits_B = masked_fill(logits_B, weights_B)
    targets_B = jax.lax.stop_gradient(masked_fill(targets_B, weights_B))
    loss = weighted_mean(binary_cross_entropy(logits_B, targets_B), weights_B)
    right_B = ((logits_B > 0) == (targets_B > 0.5)).astype(jnp.float32)
    metrics = {"disc/loss": loss, "disc/accuracy": masked_mean(right_B, weights_B)}
    if classes_B is not None:
        metrics |= class_metrics(logits_B, classes_B, weights_B, targets_B)
    return loss, jax.lax.stop_gradient(metrics)


def bradley_terry_loss(
    better_B: Float[Array, "B"],
    worse_B: Float[Array, "B"],
    weights_B: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """-log s(better - worse), weighted mean: only differences of logits matter.

    For the discriminator: D(P_acc, R) against D(P_rej, R), and D(P_acc, R) against
    D(P_acc, generated); one call with the pairs of both kinds and their weights.

    Args:
      better_B, worse_B: logits of the two sides of each pair.
      weights_B: non-negative weight of each pair, 0 = padding; all 1 by default.

    Returns:
      (loss, metrics), float32 scalars: `disc/loss`, `disc/pair_accuracy`, `disc/pair_margin`.
    """
    if weights_B is None:
        weights_B = jnp.ones_like(better_B, dtype=jnp.float32)
    weights_B = jax.lax.stop_gradient(weights_B.astype(jnp.float32))
    margin_B = masked_fill(better_B, weights_B) - masked_fill(worse_B, weights_B)
    loss = weighted_mean(jax.nn.softplus(-margin_B), weights_B)
    metrics = {
        "disc/loss": loss,
        "disc/pair_accuracy": masked_mean((margin_B > 0).astype(jnp.float32), weights_B),
        "disc/pair_margin": masked_mean(margin_B, weights_B),
    }
    return loss, jax.lax.stop_gradient(metrics)


def gradient_penalty_loss(
    gradients_BTD: Float[Array, "B T D"], mask_BT: Int[Array, "B T"], weights_B: Float[Array, "B"]
) -> Float[Array, ""]:
    """Zero-centred penalty 1/2 E[|grad D(x)|^2]: R1 (arXiv 1801.04406, Eq. 9) without its gamma.

    The paper's x is an image; text has no gradient by its tokens, so x are their embeddings.

    Args:
      gradients_BTD: gradient of each row's logit by the row's embeddings.
      mask_BT: 1 = real token; what stands at other places is not read.
      weights_B: non-negative weight of each row, 0 = left out (R1 takes real data alone).

    Returns:
      float32 scalar, 0 where no row has weight.
    """
    gradients_BTD = masked_fill(gradients_BTD, mask_BT[:, :, None])
    squares_B = jnp.sum(gradients_BTD**2, axis=(1, 2))
    return 0.5 * weighted_mean(squares_B, jax.lax.stop_gradient(weights_B.astype(jnp.float32)))
