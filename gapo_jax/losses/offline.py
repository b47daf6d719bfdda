"""The losses that the registry of methods names for the offline methods, all of one signature.

`loss(rows, *, ...)` takes what an update knows of its batch, `RowLogprobs`, and by keyword those
options of its method that it needs; it returns a float32 scalar and float32 metrics. With a keyword
`sft_weight` it is a pairwise loss: it adds so much of the chosen side's negative log-likelihood.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gapo_jax.losses import inverse_q, kto, preference, rpo
from gapo_jax.losses.masked import masked_mean
from gapo_jax.losses.preference import sequence_logprobs

Metrics = dict[str, jax.Array]
Result = tuple[jax.Array, Metrics]


class RowLogprobs(NamedTuple):
    """Token log-probs of the N rows of a batch, [N, R] float32, and what else a loss may ask for.

    The `sides` of an example stand next to each other, the chosen one first; for KTO all accepted
    rows come before all rejected ones.

    Attributes:
        policy_NR: under the policy that is trained.
        mask_NR: 1 = response token.
        ref_NR: under the reference, of a method that has one.
        rewards_N: the explicit rewards of the rows, or the weights of their likelihoods.
        ref_N: the rows' sums under a reference that the batch brings along.
        target_NR: under the policy that is to be imitated.
        mismatched: the log-probs of each prompt beside the response of another, without gradient.
        sides: the number of sides of an example.
    """

    policy_NR: jax.Array
    mask_NR: jax.Array
    ref_NR: jax.Array | None = None
    rewards_N: jax.Array | None = None
    ref_N: jax.Array | None = None
    target_NR: jax.Array | None = None
    mismatched: RowLogprobs | None = None
    sides: int = 1

    def by_example(self, rows_N: jax.Array) -> jax.Array:
        """Return [N, ...] as [B, K, ...], the K sides of each of B examples."""
        return rows_N.reshape(-1, self.sides, *rows_N.shape[1:])

    def sequence(self, *, mean: bool = False) -> tuple[jax.Array, jax.Array | None]:
        """Return the log-probs of whole responses, [B, K], under policy and reference; the sum over
        the tokens, or their mean. The reference is None where there is none."""
        ref_N = self.ref_N
        if self.ref_NR is not None:
            ref_N = sequence_logprobs(self.ref_NR, self.mask_NR, mean=mean)
        policy_N = sequence_logprobs(self.policy_NR, self.mask_NR, mean=mean)
        return self.by_example(policy_N), None if ref_N is None else self.by_example(ref_N)


def with_likelihood(rows: RowLogprobs, result: Result, sft_weight: float) -> Result:
    """Return the result of a pairwise loss with the chosen side's likelihood added, and the
    log-probs of both sides among its metrics: in DPO both fall while the margin grows."""
    loss, metrics = result
    tokens_BKR, mask_BKR = rows.by_example(rows.policy_NR), rows.by_example(rows.mask_NR)
    nll, _ = preference.sft_loss(tokens_BKR[:, 0], mask_BKR[:, 0])
    metrics["pref/logprob_chosen"] = -nll
    metrics["pref/logprob_rejected"] = masked_mean(tokens_BKR[:, 1], mask_BKR[:, 1])
    return loss + sft_weight * nll, metrics


def sft(rows: RowLogprobs) -> Result:
    """`sft_loss` of all rows."""
    return preference.sft_loss(rows.policy_NR, rows.mask_NR)


def dpo(
    rows: RowLogprobs,
    *,
    variant: str,
    beta: float,
    label_smoothing: float,
    reduce: str,
    sft_weight: float,
) -> Result:
    """`dpo_loss` of a chosen and a rejected side, their log-probs the `sum` or `mean` of tokens."""
    policy_BK, ref_BK = rows.sequence(mean=reduce == "mean")
    assert ref_BK is not None
    result = preference.dpo_loss(
        *(policy_BK[:, 0], policy_BK[:, 1], ref_BK[:, 0], ref_BK[:, 1]),
        beta=beta,
        variant=variant,
        label_smoothing=label_smoothing,
    )
    return with_likelihood(rows, result, sft_weight)


def simpo(
    rows: RowLogprobs, *, beta: float, gamma: float, label_smoothing: float, sft_weight: float
) -> Result:
    """`simpo_loss` of a chosen and a rejected side."""
    policy_BK, _ = rows.sequence(mean=True)
    result = preference.simpo_loss(
        policy_BK[:, 0], policy_BK[:, 1], beta=beta, gamma=gamma, label_smoothing=label_smoothing
    )
    return with_likelihood(rows, result, sft_weight)


def orpo(rows: RowLogprobs, *, beta: float, sft_weight: float) -> Result:
    """`orpo_loss` of a chosen and a rejected side."""
    tokens_BKR, mask_BKR = rows.by_example(rows.policy_NR), rows.by_example(rows.mask_NR)
    result = preference.orpo_loss(
        *(tokens_BKR[:, 0], tokens_BKR[:, 1], mask_BKR[:, 0], mask_BKR[:, 1]), beta=beta
    )
    return with_likelihood(rows, result, sft_weight)


def rpo_sides(
    rows: RowLogprobs, *, beta: float, eta: float, distance: str, sft_weight: float
) -> Result:
    """`rpo_loss` of the K sides of every example against their explicit rewards."""
    policy_BK, ref_BK = rows.sequence()
    assert ref_BK is not None and rows.rewards_N is not None
    rewards_BK = rows.by_example(rows.rewards_N)
    result = rpo.rpo_loss(policy_BK, ref_BK, rewards_BK, beta=beta, eta=eta, distance=distance)
    return with_likelihood(rows, result, sft_weight)


def kto_rows(
    rows: RowLogprobs, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Result:
    """`kto_loss` of rows whose first half is accepted and whose second half is rejected."""
    own, other = rows, rows.mismatched
    assert own.ref_NR is not None and other is not None and other.ref_NR is not None
    policy_N, ref_N = (sequence_logprobs(x_NR, own.mask_NR) for x_NR in (own.policy_NR, own.ref_NR))
    other_N, other_ref_N = (
        sequence_logprobs(x_NR, other.mask_NR) for x_NR in (other.policy_NR, other.ref_NR)
    )
    count = policy_N.shape[0]
    return kto.kto_loss(
        *(policy_N, ref_N, other_N, other_ref_N, jnp.arange(count) < count // 2),
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def inverse_q_rows(rows: RowLogprobs, *, beta: float, clip: float, contrast: str) -> Result:
    """`inverse_q_loss` against the target of a contrast. Where the rows are samples of the policy
    (no contrast of `prompts`), the log-ratio to the reference estimates the KL: `kl/ref`."""
    policy_NR, ref_NR, mask_NR = rows.policy_NR, rows.ref_NR, rows.mask_NR
    assert ref_NR is not None and rows.target_NR is not None
    loss, metrics = inverse_q.inverse_q_loss(
        policy_NR, ref_NR, rows.target_NR, mask_NR, beta=beta, clip=clip
    )
    if contrast != "prompts":
        metrics["kl/ref"] = jax.lax.stop_gradient(masked_mean(policy_NR - ref_NR, mask_NR))
    return loss, metrics


def sgpo(rows: RowLogprobs, *, beta: float, sft_weight: float) -> Result:
    """DPO against the reference that the batch brings along; in the first stage, which has none,
    -log pi(refinement | improve) - w log pi(answer | prompt), each the mean over the tokens of its
    kind, w being the weight of the answers' rows."""
    policy_BK, ref_BK = rows.sequence()
    if ref_BK is not None:
        sides = policy_BK[:, 0], policy_BK[:, 1], ref_BK[:, 0], ref_BK[:, 1]
        return with_likelihood(rows, preference.dpo_loss(*sides, beta=beta), sft_weight)
    assert rows.rewards_N is not None
    weights_BK = rows.by_example(rows.rewards_N)
    tokens_BKR, mask_BKR = rows.by_example(rows.policy_NR), rows.by_example(rows.mask_NR)
    parts = [preference.sft_loss(tokens_BKR[:, k], mask_BKR[:, k])[0] for k in (0, 1)]
    loss = parts[0] * weights_BK[0, 0] + parts[1] * weights_BK[0, 1]
    return loss, {"sft/loss": parts[1], "sgpo/improver_loss": parts[0]}
