"""The losses that the registry of methods names for the offline methods, all of one signature.

`loss(rows, *, ...)` takes what an update knows of its batch, `RowLogprobs`, and by keyword those
options of its method that it needs; it returns a float32 scalar and float32 metrics. With a keyword
`sft_weight` it is a pairwise loss: it adds so much of the chosen side's negative log-likelihood.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from gapo_jax.losses import inverse_q, kto, preference, rpo
from gapo_jax.losses.masked import masked_mean
from gapo_jax.losses.preference import sequence_logprobs
from gapo_jax.types import Metrics

Result = tuple[Float[Array, ""], Metrics]


class RowLogprobs(NamedTuple):
    """Token log-probs of the rows of a batch, and what else a loss may ask for; float32.

    The `sides` of an example stand next to each other, the chosen one first; for KTO all accepted
    rows come before all rejected ones.

    Attributes:
        policy_BR: under the policy that is trained.
        mask_BR: 1 = response token.
        ref_BR: under the reference, of a method that has one.
        rewards_B: the explicit rewards of the rows, or the weights of their likelihoods.
        ref_B: the rows' sums under a reference that the batch brings along.
        target_BR: under the policy that is to be imitated.
        mismatched: the log-probs of each prompt beside the response of another, without gradient.
        sides: the number of sides of an example.
        desirable_B: which rows KTO takes for good ones; None where these are the first half.
        correct_BR: 1 where the likeliest token of the policy is the one that stands there.
    """

    policy_BR: Float[Array, "B R"]
    mask_BR: Int[Array, "B R"]
    ref_BR: Float[Array, "B R"] | None = None
    rewards_B: Float[Array, "B"] | None = None
    ref_B: Float[Array, "B"] | None = None
    target_BR: Float[Array, "B R"] | None = None
    mismatched: RowLogprobs | None = None
    sides: int = 1
    desirable_B: Shaped[Array, "B"] | None = None
    correct_BR: Float[Array, "B R"] | None = None

    def by_example(self, rows_B: Shaped[Array, "B ..."]) -> Shaped[Array, "A G ..."]:
        """Return rows as [A, G, ...], the G sides of each of A examples."""
        return rows_B.reshape(-1, self.sides, *rows_B.shape[1:])

    def sequence(
        self, *, mean: bool = False
    ) -> tuple[Float[Array, "A G"], Float[Array, "A G"] | None]:
        """Return the log-probs of whole responses under policy and reference: sums over the tokens,
        or their means. The second is None where there is no reference."""
        ref_B = self.ref_B
        if self.ref_BR is not None:
            ref_B = sequence_logprobs(self.ref_BR, self.mask_BR, mean=mean)
        policy_B = sequence_logprobs(self.policy_BR, self.mask_BR, mean=mean)
        return self.by_example(policy_B), None if ref_B is None else self.by_example(ref_B)


def with_likelihood(
    rows: RowLogprobs,
    result: Result,
    sft_weight: float,
    rewards_AG: Float[Array, "A G"] | None = None,
    logps_AG: Float[Array, "A G"] | None = None,
) -> Result:
    """Return the result of a pairwise loss with the chosen side's likelihood added, and the
    log-probs of both sides among its metrics: in DPO both fall while the margin grows.

    `rewards_AG` are the implicit rewards of the sides and `logps_AG` the log-probs that the loss
    compares, for the metrics that users of TRL look for.
    """
    loss, metrics = result
    tokens_AGR, mask_AGR = rows.by_example(rows.policy_BR), rows.by_example(rows.mask_BR)
    nll, _ = preference.sft_loss(tokens_AGR[:, 0], mask_AGR[:, 0])
    metrics["pref/logprob_chosen"] = -nll
    metrics["pref/logprob_rejected"] = masked_mean(tokens_AGR[:, 1], mask_AGR[:, 1])
    metrics["nll_loss"] = nll
    if rewards_AG is not None and logps_AG is not None:
        metrics |= side_metrics(rewards_AG[:, 0], rewards_AG[:, 1], logps_AG[:, 0], logps_AG[:, 1])
    if rows.correct_BR is not None:
        correct_AGR = rows.by_example(rows.correct_BR)
        metrics["mean_token_accuracy"] = masked_mean(correct_AGR[:, 0], mask_AGR[:, 0])
    return loss + sft_weight * nll, metrics


def side_metrics(
    good_A: Float[Array, "A"],
    bad_A: Float[Array, "A"],
    good_logps_A: Float[Array, "A"],
    bad_logps_A: Float[Array, "A"],
) -> Metrics:
    """Return what TRL's trainers of pairs log: means of the implicit rewards and log-probs of both
    sides, of the difference of the rewards, and how often the chosen side has the higher one."""
    metrics = {
        "rewards/chosen": jnp.mean(good_A),
        "rewards/rejected": jnp.mean(bad_A),
        "rewards/margins": jnp.mean(good_A - bad_A),
        "rewards/accuracies": jnp.mean((good_A > bad_A).astype(jnp.float32)),
        "logps/chosen": jnp.mean(good_logps_A),
        "logps/rejected": jnp.mean(bad_logps_A),
    }
    return jax.lax.stop_gradient(metrics)


def sft(rows: RowLogprobs) -> Result:
    """`sft_loss` of all rows."""
    loss, metrics = preference.sft_loss(rows.policy_BR, rows.mask_BR)
    if rows.correct_BR is not None:
        metrics["mean_token_accuracy"] = masked_mean(rows.correct_BR, rows.mask_BR)
    return loss, metrics


def dpo(
    rows: RowLogprobs,
    *,
    variant: str,
    beta: float,
    label_smoothing: float,
    reduce: str,
    sft_weight: float,
) -> Result:
    """`dpo_loss` of a chosen and a rejected side, their log-probs the `sum` or `mean` of tokens, or
    (`auto`) the mean for ipo and the sum for the other variants."""
    mean = reduce == "mean" or (reduce == "auto" and variant == "ipo")
    policy_AG, ref_AG = rows.sequence(mean=mean)
    assert ref_AG is not None
    result = preference.dpo_loss(
        *(policy_AG[:, 0], policy_AG[:, 1], ref_AG[:, 0], ref_AG[:, 1]),
        beta=beta,
        variant=variant,
        label_smoothing=label_smoothing,
    )
    return with_likelihood(rows, result, sft_weight, beta * (policy_AG - ref_AG), policy_AG)


def simpo(
    rows: RowLogprobs, *, beta: float, gamma: float, label_smoothing: float, sft_weight: float
) -> Result:
    """`simpo_loss` of a chosen and a rejected side."""
    policy_AG, _ = rows.sequence(mean=True)
    result = preference.simpo_loss(
        policy_AG[:, 0], policy_AG[:, 1], beta=beta, gamma=gamma, label_smoothing=label_smoothing
    )
    return with_likelihood(rows, result, sft_weight, beta * policy_AG, policy_AG)


def orpo(rows: RowLogprobs, *, beta: float, sft_weight: float) -> Result:
    """`orpo_loss` of a chosen and a rejected side."""
    tokens_AGR, mask_AGR = rows.by_example(rows.policy_BR), rows.by_example(rows.mask_BR)
    result = preference.orpo_loss(
        *(tokens_AGR[:, 0], tokens_AGR[:, 1], mask_AGR[:, 0], mask_AGR[:, 1]), beta=beta
    )
    policy_AG, _ = rows.sequence(mean=True)
    return with_likelihood(rows, result, sft_weight, beta * policy_AG, policy_AG)


def rpo_sides(
    rows: RowLogprobs, *, beta: float, eta: float, distance: str, sft_weight: float
) -> Result:
    """`rpo_loss` of the K sides of every example against their explicit rewards."""
    policy_AG, ref_AG = rows.sequence()
    assert ref_AG is not None and rows.rewards_B is not None
    rewards_AG = rows.by_example(rows.rewards_B)
    result = rpo.rpo_loss(policy_AG, ref_AG, rewards_AG, beta=beta, eta=eta, distance=distance)
    return with_likelihood(rows, result, sft_weight, beta * (policy_AG - ref_AG), policy_AG)


def kto_rows(
    rows: RowLogprobs, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Result:
    """`kto_loss` of rows that `desirable_B` marks as good or bad; without it the first half is
    accepted and the second rejected."""
    own, other = rows, rows.mismatched
    assert own.ref_BR is not None and other is not None and other.ref_BR is not None
    policy_B, ref_B = (sequence_logprobs(x_BR, own.mask_BR) for x_BR in (own.policy_BR, own.ref_BR))
    other_B, other_ref_B = (
        sequence_logprobs(x_BR, other.mask_BR) for x_BR in (other.policy_BR, other.ref_BR)
    )
    count = policy_B.shape[0]
    good_B = jnp.arange(count) < count // 2 if rows.desirable_B is None else rows.desirable_B != 0
    loss, metrics = kto.kto_loss(
        *(policy_B, ref_B, other_B, other_ref_B, good_B),
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    return loss, metrics | kto_metrics(rows, beta * (policy_B - ref_B), policy_B, good_B)


def kto_metrics(
    rows: RowLogprobs,
    rewards_B: Float[Array, "B"],
    logps_B: Float[Array, "B"],
    good_B: Shaped[Array, "B"],
) -> Metrics:
    """Return what TRL's trainer of labelled rows logs, NaN for a label that no row has."""
    metrics: Metrics = {}
    for name, chosen_B in (("chosen", good_B), ("rejected", ~good_B)):
        there = jnp.any(chosen_B)
        for key, values_B in (("rewards", rewards_B), ("logps", logps_B)):
            mean = masked_mean(values_B, chosen_B)
            metrics[f"{key}/{name}"] = jnp.where(there, mean, jnp.nan)
    metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    if rows.correct_BR is not None:
        real_BR = (rows.mask_BR != 0) & good_B[:, None]
        accuracy = masked_mean(rows.correct_BR, real_BR)
        metrics["mean_token_accuracy"] = jnp.where(jnp.any(good_B), accuracy, jnp.nan)
    return jax.lax.stop_gradient(metrics)


def inverse_q_rows(rows: RowLogprobs, *, beta: float, clip: float, contrast: str) -> Result:
    """`inverse_q_loss` against the target of a contrast. Where the rows are samples of the policy
    (no contrast of `prompts`), the log-ratio to the reference estimates the KL: `kl/ref`."""
    policy_BR, ref_BR, mask_BR = rows.policy_BR, rows.ref_BR, rows.mask_BR
    assert ref_BR is not None and rows.target_BR is not None
    loss, metrics = inverse_q.inverse_q_loss(
        policy_BR, ref_BR, rows.target_BR, mask_BR, beta=beta, clip=clip
    )
    if contrast != "prompts":
        metrics["kl/ref"] = jax.lax.stop_gradient(masked_mean(policy_BR - ref_BR, mask_BR))
    return loss, metrics


def sgpo(rows: RowLogprobs, *, beta: float, sft_weight: float) -> Result:
    """DPO against the reference that the batch brings along; in the first stage, which has none,
    -log pi(refinement | improve) - w log pi(answer | prompt), each the mean over the tokens of its
    kind, w being the weight of the answers' rows."""
    policy_AG, ref_AG = rows.sequence()
    if ref_AG is not None:
        sides = policy_AG[:, 0], policy_AG[:, 1], ref_AG[:, 0], ref_AG[:, 1]
        rewards_AG = beta * (policy_AG - ref_AG)
        result = preference.dpo_loss(*sides, beta=beta)
        return with_likelihood(rows, result, sft_weight, rewards_AG, policy_AG)
    assert rows.rewards_B is not None
    weights_AG = rows.by_example(rows.rewards_B)
    tokens_AGR, mask_AGR = rows.by_example(rows.policy_BR), rows.by_example(rows.mask_BR)
    parts = [preference.sft_loss(tokens_AGR[:, k], mask_AGR[:, k])[0] for k in (0, 1)]
    loss = parts[0] * weights_AG[0, 0] + parts[1] * weights_AG[0, 1]
    return loss, {"sft/loss": parts[1], "sgpo/improver_loss": parts[0]}
