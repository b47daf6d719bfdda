"""Supervised and pairwise losses: SFT, the DPO family, SimPO and ORPO.

The pairwise losses compare a chosen side with a rejected one. With preferential responses these
are two responses to one prompt; with preferential prompts (GAPO, arXiv 2503.20194, section 3.2)
they are one response under the prompt that it obeys and under the prompt that it violates, each
side with its own mask. Only the log-probs of response tokens enter, so both kinds are well posed.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from gapo_jax.losses.masked import masked_fill, masked_mean, weighted_mean
from gapo_jax.types import Metrics

DPO_VARIANTS = ("sigmoid", "cdpo", "robust", "exo", "hinge", "ipo")


def sequence_logprobs(
    logprobs_BR: Float[Array, "B R"], mask_BR: Int[Array, "B R"], *, mean: bool = False
) -> Float[Array, "B"]:
    """Sum (or, with `mean`, the per-token mean) of the log-probs of each row, float32 [B].

    DPO and its kin take sums. SimPO and ORPO take means. For IPO it is a choice with consequences
    for beta: TRL (and the authors) use means, NeMo-Aligner sums.
    """
    if mean:
        return masked_mean(logprobs_BR, mask_BR, axis=1)
    return jnp.sum(masked_fill(logprobs_BR, mask_BR), axis=1)


def sft_loss(
    logprobs_BR: Float[Array, "B R"],
    mask_BR: Int[Array, "B R"],
    *,
    denominator: ScalarLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
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
    chosen_B: Float[Array, "B"],
    rejected_B: Float[Array, "B"],
    ref_chosen_B: Float[Array, "B"],
    ref_rejected_B: Float[Array, "B"],
    *,
    beta: float = 0.1,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
    weights_B: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Direct preference optimisation (arXiv 2305.18290, Eq. 7) and its variants.

    With Delta = log(pi / ref)(chosen) - log(pi / ref)(rejected), m = beta Delta, e =
    `label_smoothing`, ls = log-sigmoid:

    | variant | loss | source |
    |---|---|---|
    | sigmoid, cdpo | -(1 - e) ls(m) - e ls(-m) | DPO; cDPO where e > 0 |
    | robust | [-(1 - e) ls(m) + e ls(-m)] / (1 - 2e), can be negative | arXiv 2403.00409 |
    | exo | KL(Bernoulli(s(m)) to Bernoulli(1 - e)) | arXiv 2402.00856, Eq. 16 |
    | hinge | max(0, 1 - m) | SLiC, arXiv 2305.10425 |
    | ipo | (Delta - 1 / (2 beta))^2 | arXiv 2310.12036, Eq. 17 |

    Args:
      chosen_B, rejected_B: sequence log-probs under the policy, see `sequence_logprobs`; sums, but
        for "ipo", where means are usual.
      ref_chosen_B, ref_rejected_B: the same under the reference.
      beta: strength of the tie to the reference, > 0.
      variant: a row of the table.
      label_smoothing: probability that a label is wrong, in [0, 0.5). Never ignored in silence:
        "cdpo" and "exo" want it above 0, "hinge" and "ipo" refuse it.
      weights_B: weight of each pair, 0 = padding; all 1 by default.

    Returns:
      (loss, metrics), float32 scalars: `pref/loss`, `pref/accuracy`, `pref/margin` (beta Delta),
      `pref/reward_chosen`, `pref/reward_rejected` (beta log(pi / ref)).

    Raises:
      ValueError: unknown variant, or a beta or label smoothing that the variant cannot use.
    """
    _check_dpo(variant, beta, label_smoothing)
    weights_B = _weights(weights_B, chosen_B)
    good_B = masked_fill(chosen_B, weights_B) - masked_fill(ref_chosen_B, weights_B)
    bad_B = masked_fill(rejected_B, weights_B) - masked_fill(ref_rejected_B, weights_B)
    losses_B = _dpo_losses(good_B - bad_B, beta, variant, label_smoothing)
    return _pairwise(losses_B, beta * good_B, beta * bad_B, weights_B)


def simpo_loss(
    chosen_B: Float[Array, "B"],
    rejected_B: Float[Array, "B"],
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
    weights_B: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """-ls(beta (chosen - rejected) - gamma): SimPO (arXiv 2405.14734, Eq. 6), no reference.

    Args:
      chosen_B, rejected_B: *mean* token log-probs, `sequence_logprobs(..., mean=True)`.
      beta: 2 to 10 in the paper; the defaults here are of its range, not TRL's 0.1.
      gamma: target margin, absolute. The official code's option is gamma / beta, 0.25 to 0.55.
      label_smoothing: as in `dpo_loss`.
      weights_B: weight of each pair, 0 = padding; all 1 by default.

    Returns:
      (loss, metrics) as `dpo_loss`, the rewards being beta times the mean log-probs.

    Raises:
      ValueError: beta <= 0 or a label smoothing outside [0, 0.5).
    """
    _check_dpo("sigmoid", beta, label_smoothing)
    weights_B = _weights(weights_B, chosen_B)
    good_B = beta * masked_fill(chosen_B, weights_B)
    bad_B = beta * masked_fill(rejected_B, weights_B)
    margin_B = good_B - bad_B - gamma
    losses_B = _dpo_losses(margin_B, 1.0, "sigmoid", label_smoothing)
    return _pairwise(losses_B, good_B, bad_B, weights_B)


def log1mexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 - exp(x)) for x < 0 in float32, by the branch that keeps its digits.

    Values nearer to 0 than float32's spacing below 1 (x > -6e-8: probability 1) are taken for
    that spacing, so neither the value nor the gradient is ever infinite or NaN.
    """
    x = jnp.minimum(x.astype(jnp.float32), -float(jnp.finfo(jnp.float32).epsneg))
    near = x > -math.log(2.0)
    # Each branch sees only arguments that are safe for it: the unused one must not send NaN back.
    small = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    large = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, small, large)


def orpo_loss(
    chosen_BR: Float[Array, "B R"],
    rejected_BR: Float[Array, "B R"],
    chosen_mask_BR: Int[Array, "B R"],
    rejected_mask_BR: Int[Array, "B R"],
    *,
    beta: float = 0.1,
    weights_B: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """NLL(chosen) - beta ls(log odds(chosen) - log odds(rejected)): ORPO (2403.07691, Eq. 6-7).

    log odds = l - log(1 - exp(l)) of the mean token log-prob l, in float32. The NLL is of the
    response given its prompt, as in the paper (Eq. 2) and in our `sft_loss`. TRL's ORPOTrainer
    takes it over prompt and response, so its loss of the same pairs is another number.

    Args:
      chosen_BR, rejected_BR: token log-probs under the policy; there is no reference.
      chosen_mask_BR, rejected_mask_BR: 1 = response token.
      beta: weight of the odds-ratio term, > 0.
      weights_B: weight of each pair, 0 = padding; all 1 by default. The NLL is the mean over the
        chosen tokens of all rows whose weight is not 0.

    Returns:
      (loss, metrics), float32 scalars: as `dpo_loss` (margin = log odds ratio, rewards = beta
      times the mean log-probs), and `pref/nll`.

    Raises:
      ValueError: beta <= 0.
    """
    _check_dpo("sigmoid", beta, 0.0)
    weights_B = _weights(weights_B, chosen_BR[:, 0])
    good_B = sequence_logprobs(chosen_BR, chosen_mask_BR, mean=True)
    bad_B = sequence_logprobs(rejected_BR, rejected_mask_BR, mean=True)
    good_B, bad_B = masked_fill(good_B, weights_B), masked_fill(bad_B, weights_B)
    odds_B = (good_B - bad_B) - (log1mexp(good_B) - log1mexp(bad_B))
    nll = -masked_mean(chosen_BR, (chosen_mask_BR != 0) & (weights_B[:, None] > 0))
    loss, metrics = _pairwise(
        beta * jax.nn.softplus(-odds_B), beta * good_B, beta * bad_B, weights_B
    )
    margin = masked_mean(jax.lax.stop_gradient(odds_B), weights_B)
    loss = loss + nll
    extra = {"pref/loss": loss, "pref/margin": margin, "pref/nll": nll}
    return loss, jax.lax.stop_gradient(metrics | extra)


def _check_dpo(variant: str, beta: float, label_smoothing: float) -> None:
    if variant not in DPO_VARIANTS:
        raise ValueError(f"variant must be one of {DPO_VARIANTS}, got {variant!r}.")
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}.")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}.")
    if variant in ("cdpo", "exo") and label_smoothing == 0:
        raise ValueError(f"{variant!r} wants label_smoothing above 0, got 0; try 0.1 (exo: 0.001).")
    if variant in ("hinge", "ipo") and label_smoothing > 0:
        raise ValueError(f"{variant!r} has no label smoothing, got {label_smoothing}; set it to 0.")


def _dpo_losses(
    delta_B: Float[Array, "B"], beta: float, variant: str, e: float
) -> Float[Array, "B"]:
    margin_B = beta * delta_B
    right_B, wrong_B = jax.nn.softplus(-margin_B), jax.nn.softplus(margin_B)  # -ls(m), -ls(-m)
    if variant == "robust":
        return ((1 - e) * right_B - e * wrong_B) / (1 - 2 * e)
    if variant == "exo":
        win_B = jax.nn.sigmoid(margin_B)
        good_B = win_B * (-right_B - math.log1p(-e))
        return good_B + (1 - win_B) * (-wrong_B - math.log(e))
    if variant == "hinge":
        return jax.nn.relu(1 - margin_B)
    if variant == "ipo":
        return (delta_B - 1 / (2 * beta)) ** 2
    return (1 - e) * right_B + e * wrong_B


def _weights(weights_B: Float[Array, "B"] | None, like_B: Float[Array, "B"]) -> Float[Array, "B"]:
    if weights_B is None:
        return jnp.ones(like_B.shape, jnp.float32)
    return jax.lax.stop_gradient(weights_B.astype(jnp.float32))


def _pairwise(losses_B, good_B, bad_B, weights_B) -> tuple[Float[Array, ""], Metrics]:
    """Weighted mean of the losses, and the metrics that all pairwise losses share."""
    loss = weighted_mean(losses_B, weights_B)
    metrics = {
        "pref/loss": loss,
        "pref/accuracy": masked_mean((good_B > bad_B).astype(jnp.float32), weights_B),
        "pref/margin": masked_mean(good_B - bad_B, weights_B),
        "pref/reward_chosen": masked_mean(good_B, weights_B),
        "pref/reward_rejected": masked_mean(bad_B, weights_B),
    }
    return loss, jax.lax.stop_gradient(metrics)
