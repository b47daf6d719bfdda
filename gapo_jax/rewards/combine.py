"""From the scores of several sources to one score of each response.

Scores are float32 [B, K], K sources, the samples of one prompt next to each other. NaN leaves a
source out for a row: it counts in no mean, no deviation and no sum. A row that no source scores has
no score either (NaN).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Added to deviations, as in TRL.
_EPS = 1e-4
# Of the least distance of two verdicts: less than a half, so that the bands around them, in which
# other scores order the responses, do not touch.
_ROOM = 0.45


def combine_scores(
    scores_BK: Float[np.ndarray, "B K"],
    weights: Sequence[float],
    *,
    mode: str,
    group_size: int,
    verdicts: int | None = None,
    band: float = 0.1,
) -> Float[np.ndarray, "B"]:
    """Return the score of each response, float32 [B]; NaN where no source has one.

    Args:
        scores_BK: of the sources.
        weights: of the sources.
        mode: `sum`, `normalise_then_sum` or `stratified` (`config.reward.combine`).
        group_size: samples of a prompt.
        verdicts: the column of the verifier, for `stratified`.
        band: see `stratified_scores`.
    """
    if mode == "normalise_then_sum":
        return normalise_then_sum(scores_BK, weights, group_size)
    if mode == "stratified":
        assert verdicts is not None
        others = [k for k in range(scores_BK.shape[1]) if k != verdicts]
        order_B = weighted_sum(scores_BK[:, others], [weights[k] for k in others])
        return stratified_scores(scores_BK[:, verdicts], order_B, group_size, band)
    return weighted_sum(scores_BK, weights)


def weighted_sum(
    scores_BK: Float[np.ndarray, "B K"], weights: Sequence[float]
) -> Float[np.ndarray, "B"]:
    """Return the weighted sum over the sources that a row has, float32 [B]."""
    total_B = np.zeros(len(scores_BK), np.float32)
    for scores_B, weight in zip(scores_BK.T, weights, strict=True):
        total_B += np.where(np.isnan(scores_B), 0, np.float32(weight) * scores_B)
    return np.where(np.isnan(scores_BK).all(axis=1), np.float32(np.nan), total_B)


def normalise_then_sum(
    scores_BK: Float[np.ndarray, "B K"], weights: Sequence[float], group_size: int
) -> Float[np.ndarray, "B"]:
    """Normalise each source in its group, sum, and normalise the sum over the round, float32 [B].

    GDPO (arXiv 2601.05242, section 3): what one source says of a group keeps its weight however
    large the scores of another source are. The numbers agree with TRL's `normalize_then_sum`:
    deviations are unbiased and 1e-4 is added to them.
    """
    scores_AGK = scores_BK.astype(np.float32).reshape(-1, group_size, scores_BK.shape[1])
    scaled_BK = _normalised(scores_AGK, axis=1).reshape(scores_BK.shape)
    return _normalised(weighted_sum(scaled_BK, weights), axis=0)


def _normalised(values: np.ndarray, axis: int) -> np.ndarray:
    """Return (values - mean) / (deviation + 1e-4) along an axis, NaN left out."""
    with warnings.catch_warnings():
        # Of a slice without a value, or with one: they have no mean, or no deviation.
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmean(values, axis=axis, keepdims=True)
        deviation = np.nanstd(values, axis=axis, keepdims=True, ddof=1)
    # One value alone is the mean of its group, which is 0 then and must not become NaN.
    return (values - mean) / (np.nan_to_num(deviation) + np.float32(_EPS))


def stratified_scores(
    verdicts_B: Float[np.ndarray, "B"],
    scores_B: Float[np.ndarray, "B"],
    group_size: int,
    band: float,
) -> Float[np.ndarray, "B"]:
    """Return verdicts, moved by less than would change their order, float32 [B].

    HERO (arXiv 2510.07242, section 3): among the responses to one prompt that have equal verdicts,
    scores are scaled to [-1, 1] by their least and greatest and added with the factor `band`. The
    paper has verdicts 0 and 1; between shares of constraints that lie closer together the factor is
    lowered, so that a better verdict always has the higher score. Equal scores add nothing, and
    neither does a row without a score. A row without a verdict has no score: nothing can stand in
    for it.
    """
    result_B = verdicts_B.astype(np.float32).copy()
    for start in range(0, len(result_B), group_size):
        rows = slice(start, start + group_size)
        levels = np.unique(verdicts_B[rows][~np.isnan(verdicts_B[rows])])
        width = min(band, _ROOM * float(np.diff(levels).min())) if len(levels) > 1 else band
        for level in levels:
            stratum = start + np.flatnonzero(
                (verdicts_B[rows] == level) & ~np.isnan(scores_B[rows])
            )
            if not len(stratum):
                continue
            low, high = scores_B[stratum].min(), scores_B[stratum].max()
            if high > low:
                place = (scores_B[stratum] - low) / (high - low)
                result_B[stratum] += np.float32(width) * (2 * place - 1)
    return result_B
