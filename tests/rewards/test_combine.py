"""Several sources as one score: against hand numbers, TRL's formula in torch, and by property."""

import numpy as np
import pytest
import torch

from gapo_jax.config import Config, RewardConfig
from gapo_jax.methods import needs_pairs
from gapo_jax.rewards.combine import combine_scores, stratified_scores, weighted_sum

NAN = np.nan


def _f32(*rows):
    return np.array(rows, np.float32)


def test_the_weighted_sum_by_hand():
    scores = _f32([1, 10], [2, NAN], [NAN, 30], [NAN, NAN], [0, 0])
    found = weighted_sum(scores, (2.0, 0.5))
    np.testing.assert_allclose(found, [7, 4, 15, NAN, 0])
    np.testing.assert_array_equal(weighted_sum(scores[:, :1], (1.0,)), scores[:, 0])


def _trl(rewards_per_func, weights, num_generations):
    """TRL's `normalize_then_sum`, in torch: groups first, then the batch, NaN left out of all."""

    def nanstd(x, **options):
        mean = torch.nanmean(x, keepdim=True, **options)
        count = (~torch.isnan(x)).sum(keepdim=True, **options)
        variance = torch.nanmean((x - mean) ** 2, keepdim=True, **options) * count / (count - 1)
        return torch.where(count > 1, variance.sqrt(), torch.nan)

    scores = torch.tensor(rewards_per_func)
    grouped = scores.view(-1, num_generations, scores.shape[1])
    mean = torch.nanmean(grouped, dim=1, keepdim=True)
    each = ((grouped - mean) / (nanstd(grouped, dim=1) + 1e-4)).view(-1, scores.shape[1])
    total = (each * torch.tensor(weights)).nansum(dim=1)
    total[torch.isnan(scores).all(dim=1)] = torch.nan
    return (total - torch.nanmean(total)) / (nanstd(total, dim=0) + 1e-4)


@pytest.mark.parametrize("left_out", [0, 9])
def test_normalise_then_sum_is_that_of_trl(left_out):
    rng = np.random.default_rng(left_out)
    scores = (rng.normal(size=(12, 3)) * [1, 100, 0.1]).astype(np.float32)
    scores[:4, 1] = 7.0  # a source that gives a whole group the same
    scores[rng.permutation(12)[:left_out], rng.integers(0, 3, left_out)] = NAN
    scores[11] = NAN if left_out else scores[11]
    weights = (1.0, 0.5, -2.0)
    found = combine_scores(scores, weights, mode="normalise_then_sum", group_size=4)
    np.testing.assert_allclose(found, _trl(scores, weights, 4).numpy(), rtol=1e-4, atol=1e-5)


def test_normalise_then_sum_by_hand():
    """Two groups of two, two sources: of a pair the better one is 1/sqrt(2) deviations above."""
    scores = _f32([0, 5], [1, 5], [10, 0], [30, 200])
    found = combine_scores(scores, (1.0, 1.0), mode="normalise_then_sum", group_size=2)
    half = np.sqrt(0.5)
    sums = np.array([-half, half, -2 * half, 2 * half])
    np.testing.assert_allclose(found, sums / sums.std(ddof=1), rtol=1e-3)


def test_stratified_scores_by_hand():
    verdicts = _f32([0, 0, 1, 1, 1, 1])[0]
    scores = _f32([-3, 9, 2, 4, 3, NAN])[0]
    found = stratified_scores(verdicts, scores, 6, band=0.1)
    np.testing.assert_allclose(found, [-0.1, 0.1, 0.9, 1.1, 1.0, 1.0], rtol=1e-6)
    # One verdict for all: the scores alone order the group; equal scores add nothing.
    found = stratified_scores(_f32([1, 1, 0, 0])[0], _f32([5, 6, 7, 7])[0], 2, band=0.25)
    np.testing.assert_allclose(found, [0.75, 1.25, 0, 0])


def test_a_score_can_never_overrule_a_verdict():
    rng = np.random.default_rng(0)
    for _ in range(300):
        group, size = int(rng.integers(2, 7)), int(rng.integers(1, 9))
        verdicts = (rng.integers(0, size + 1, 3 * group) / size).astype(np.float32)
        scores = (rng.normal(size=(3 * group, 2)) * 10 ** rng.uniform(-6, 6)).astype(np.float32)
        scores[rng.random(scores.shape) < 0.1] = NAN
        table = np.column_stack([scores[:, 0], verdicts, scores[:, 1]])
        weights, band = (float(rng.normal()), 1.0, 1.0), float(rng.uniform(0.01, 0.5))
        found = combine_scores(
            table, weights, mode="stratified", group_size=group, verdicts=1, band=band
        )
        order = weighted_sum(scores, (weights[0], weights[2]))
        for start in range(0, 3 * group, group):
            for i in range(start, start + group):
                for j in range(start, start + group):
                    if verdicts[i] > verdicts[j]:
                        assert found[i] > found[j]
                    elif verdicts[i] == verdicts[j] and order[i] > order[j]:
                        assert found[i] >= found[j]


def test_a_row_without_a_verdict_has_no_stratified_score():
    found = stratified_scores(_f32([NAN, 1, 0])[0], _f32([9, 1, 2])[0], 3, band=0.1)
    np.testing.assert_allclose(found, [NAN, 1, 0])


def test_a_function_stands_in_for_a_verifier_that_is_not_named():
    def verdicts(*sources):
        reward = RewardConfig()
        reward.sources, reward.combine, reward.squash = sources, "stratified", "none"
        reward.check()
        return reward.verdicts

    assert verdicts("discriminator", "mine.py:right", "mine.py:polite") == 1
    assert verdicts("discriminator", "mine.py:right", "verifier") == 2
    with pytest.raises(ValueError, match="must name 'verifier', or a function"):
        verdicts("discriminator", "model:some/model")
    with pytest.raises(ValueError, match="at least one more"):
        verdicts("mine.py:right")


def test_prompts_of_pairs_need_pairs_whatever_gives_the_reward():
    config = Config(method="grpo")
    config.reward.source = "verifier"
    assert not needs_pairs(config)
    config.discriminator.generated_prompts = "pairs"
    assert needs_pairs(config)
