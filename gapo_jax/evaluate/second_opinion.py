"""A second opinion on responses: the scores of a discriminator from outside the run.

The GAPO paper scores by Longformers tuned on other pairs (arXiv 2503.20194, section 4). Such a
model is of the same family as the discriminator of the training, so its figures are reported beside
the verifiers' and never replace them: how often it accepts, and how often it agrees with the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from scipy import stats
from transformers import PreTrainedTokenizerBase

from gapo_jax.data.discriminator_text import encode_discriminator
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.evaluate.bootstrap import interval, resampled_rates
from gapo_jax.records import JsonObject

ScoreFn = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def make_scorer(
    module: nn.Module,
    params: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    batch_size: int = 32,
) -> ScoreFn:
    """Return a function from prompts and responses to logits, float32 [B].

    Texts are batched by length and padded to half or all of `max_tokens`: two shapes to compile.
    """
    apply = jax.jit(module.apply)
    sizes = tuple(sorted({max(8, max_tokens // 2), max_tokens}))

    def score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        order = np.argsort([len(p) + len(r) for p, r in zip(prompts, responses)], kind="stable")
        logits_B = np.zeros(len(prompts), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            # The last batch is filled up with rows of its own: one shape to compile, and the
            # surplus is cut off again.
            filled = np.resize(
                rows, batch_size
            ).tolist()  # the last batch repeats rows to keep its shape
            arrays = encode_discriminator(
                tokenizer,
                [prompts[i] for i in filled],
                [responses[i] for i in filled],
                max_tokens,
                pad_to=sizes,
            )
            logits_B[rows] = np.asarray(apply({"params": params}, *arrays))[: len(rows)]
        return logits_B

    return score


def second_opinion(
    score: ScoreFn, verdicts: Sequence[Verdict], seed: int = 0, resamples: int = 2000
) -> JsonObject:
    """Return figures of a discriminator's scores of responses that have been verified.

    Returns:
      "accepted": share of logits above 0 with a 95% bootstrap interval over prompts; "logit_mean";
      "agreement": share on which acceptance equals the strict prompt-level verdict; "auc" (see
      `auc`), None if all responses are of one kind.
    """
    logits_B = score([v.prompt for v in verdicts], [v.response for v in verdicts])
    held_B = np.array([all(v.strict) for v in verdicts])
    accepted_B = logits_B > 0
    prompts: dict[str, list[int]] = {}
    for index, verdict in enumerate(verdicts):
        prompts.setdefault(verdict.prompt, []).append(index)
    sums = np.array([[[accepted_B[rows].sum(), len(rows)]] for rows in prompts.values()], float)
    (draws,) = resampled_rates(sums, seed, resamples)
    return {
        "accepted": interval(accepted_B.mean(), draws),
        "logit_mean": float(logits_B.mean()),
        "agreement": float((accepted_B == held_B).mean()),
        "auc": None if held_B.all() or not held_B.any() else auc(logits_B, held_B),
    }


def auc(scores_B: np.ndarray, good_B: np.ndarray) -> float:
    """Return the area under the ROC curve of scores for the mask `good_B`, which has both kinds.

    This is how often the score of a good one lies above that of another one, ties counted half: the
    statistic of Mann and Whitney over the number of pairs.
    """
    scores_B = scores_B.astype(np.float64)  # the ranks are computed in the type of the scores
    good, others = scores_B[good_B], scores_B[~good_B]
    test = stats.mannwhitneyu(good, others, method="asymptotic")
    return float(test.statistic / (len(good) * len(others)))
