"""Batch order: a function of a random stream and the step alone, every row equally often."""

import collections
import functools

import numpy as np
import pytest

from gapo_jax.data import batching
from gapo_jax.rng import Stream, stream

ORDER = Stream.SFT_ORDER


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    first = batching.epoch_order(3, ORDER, 0, n=50)
    np.testing.assert_array_equal(np.sort(first), np.arange(50))
    np.testing.assert_array_equal(first, batching.epoch_order(3, ORDER, 0, n=50))
    for path in ((3, ORDER, 1), (4, ORDER, 0), (3, Stream.OFFLINE_ORDER, 0)):
        assert (first != batching.epoch_order(*path, n=50)).any()


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 5)])
def test_batches_walk_through_epochs_without_replacement(n, batch_size):
    draw = functools.partial(batching.batch_at, 5, ORDER, n=n, batch_size=batch_size)
    rows = np.concatenate([draw(step=step) for step in range(n)])
    for epoch in range(batch_size):
        part = rows[epoch * n : (epoch + 1) * n]
        np.testing.assert_array_equal(part, batching.epoch_order(5, ORDER, n, epoch, n=n))


def test_a_batch_depends_on_the_step_alone():
    draw = functools.partial(batching.batch_at, 1, ORDER, n=11, batch_size=4)
    straight = [draw(step=step) for step in range(9)]
    resumed = [draw(step=step) for step in range(5, 9)]
    for one, two in zip(straight[5:], resumed, strict=True):
        np.testing.assert_array_equal(one, two)


def test_bucket_takes_the_smallest_that_fits():
    assert batching.bucket(5, (32, 8, 16)) == 8
    assert batching.bucket(16, (8, 16)) == 16
    with pytest.raises(ValueError, match="17 exceeds"):
        batching.bucket(17, (8, 16))


def test_length_sorted_batches_cover_all_rows_with_less_padding():
    lengths = np.random.default_rng(0).integers(1, 100, size=103)
    for seed in (None, 7):
        rng = None if seed is None else stream(seed, Stream.POLICY_ORDER)
        batches = batching.length_sorted_batches(lengths, 16, rng)
        counts = collections.Counter(np.concatenate(batches).tolist())
        assert counts == collections.Counter(range(103))
        padded = sum(len(b) * lengths[b].max() for b in batches)
        unsorted = sum(16 * lengths[i : i + 16].max() for i in range(0, 103, 16))
        assert padded < 0.75 * unsorted
    plain = batching.length_sorted_batches(lengths, 16)
    assert [lengths[b].max() for b in plain] == sorted(lengths[b].max() for b in plain)


def test_bad_arguments():
    with pytest.raises(ValueError, match="empty dataset"):
        batching.batch_at(0, ORDER, step=0, n=0, batch_size=4)
    with pytest.raises(ValueError, match="batch_size"):
        batching.batch_at(0, ORDER, step=0, n=4, batch_size=0)
    with pytest.raises(ValueError, match="batch_size"):
        batching.length_sorted_batches([1], 0)


def test_widths_are_few_and_grow_by_equal_factors():
    assert batching.bucket_widths(1, 10, 100) == ()
    assert batching.bucket_widths(3, 16, 128) == (32, 64, 128)
    assert batching.bucket_widths(2, 500, 2048) == (1024, 2048)  # whole lanes
    assert batching.text_buckets(96) == (36, 48, 64, 96)
    assert [batching.round_up(n, 20) for n in (1, 8, 9, 17, 20)] == [8, 8, 16, 20, 20]


def test_groups_stay_together():
    lengths = np.random.default_rng(0).integers(1, 100, 48)
    batches = list(batching.like_lengths(lengths, 8, 4, stream(3, Stream.POLICY_ORDER, 1)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(48))
    for batch in batches:
        np.testing.assert_array_equal(batch.reshape(2, 4) % 4, [[0, 1, 2, 3]] * 2)


def test_mixed_batches_have_the_mix_of_all_rows_and_similar_lengths():
    rng = np.random.default_rng(0)
    kinds = [index % 4 == 0 for index in range(66)]
    lengths = rng.integers(1, 100, 66).tolist()
    order = batching.mixed_batches(kinds, lengths, 16, rng)
    assert sorted(order) == list(range(66))
    batches = [order[start : start + 16] for start in range(0, 64, 16)]
    assert all(sum(kinds[i] for i in batch) in (3, 4, 5) for batch in batches)
    spread = [np.ptp([lengths[i] for i in batch if kinds[i]]) for batch in batches]
    assert max(spread) < 60
