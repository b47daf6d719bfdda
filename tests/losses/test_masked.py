"""Masked reductions and KL estimators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import losses


def value_and_grad(function, *args, **kwargs):
    """jax.value_and_grad, compiled: op by op each test would compile dozens of kernels."""
    return jax.jit(jax.value_and_grad(function, *args, **kwargs))


def test_masked_mean_by_hand():
    x, mask = jnp.array([[1.0, 2.0, 9.0], [5.0, 9.0, 9.0]]), jnp.array([[1, 1, 0], [1, 0, 0]])
    assert float(losses.masked_mean(x, mask)) == pytest.approx(8 / 3)
    np.testing.assert_allclose(losses.masked_mean(x, mask, axis=1), [1.5, 5.0])
    assert float(losses.masked_mean(x, mask, denominator=16)) == pytest.approx(0.5)
    assert float(losses.masked_mean(x, jnp.zeros_like(mask))) == 0.0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_in_padding_reaches_neither_value_nor_gradient(poison):
    x, mask = jnp.array([1.0, poison, 3.0]), jnp.array([1, 0, 1])
    for function in (losses.masked_mean, losses.masked_variance):
        value, gradient = value_and_grad(function)(x, mask)
        clean, clean_gradient = value_and_grad(function)(x.at[1].set(0.0), mask)
        assert float(value) == float(clean)
        np.testing.assert_array_equal(gradient, clean_gradient)
    np.testing.assert_allclose(losses.whiten(x, mask)[1], 0.0)
    assert float(losses.weighted_mean(x, jnp.array([1.0, 0.0, 3.0]))) == 2.5


def test_micro_batches_with_the_whole_denominator_sum_to_the_whole(rng):
    x, mask = jnp.array(rng.normal(size=(4, 5))), jnp.array(rng.integers(0, 2, size=(4, 5)))
    parts = [
        losses.masked_mean(x[i : i + 2], mask[i : i + 2], denominator=mask.sum()) for i in (0, 2)
    ]
    assert float(sum(parts)) == pytest.approx(float(losses.masked_mean(x, mask)), rel=1e-6)


def test_whiten_equals_numpy_over_the_real_places(rng):
    x, mask = rng.normal(3.0, 5.0, size=(4, 5)), rng.integers(0, 2, size=(4, 5))
    real = x[mask == 1]
    want = (real - real.mean()) / real.std(ddof=1)
    white = np.array(jax.jit(losses.whiten)(jnp.array(x), jnp.array(mask)))
    np.testing.assert_allclose(white[mask == 1], want, rtol=1e-5, atol=1e-6)
    assert not white[mask == 0].any()
    shifted = np.array(losses.whiten(jnp.array(x), jnp.array(mask), shift_mean=False))
    np.testing.assert_allclose(shifted[mask == 1], want + real.mean(), rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_whitening_too_few_numbers_gives_zeros(count):
    mask = (jnp.arange(4) < count).astype(jnp.int32)
    np.testing.assert_array_equal(losses.whiten(jnp.array([7.0, 1, 2, 3]), mask), np.zeros(4))


def test_kl_by_hand():
    logprobs, ref = jnp.log(jnp.array([0.5, 0.2])), jnp.log(jnp.array([0.25, 0.8]))
    np.testing.assert_allclose(losses.k1(logprobs, ref), [np.log(2), -np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(
        losses.k2(logprobs, ref), [np.log(2) ** 2 / 2, np.log(4) ** 2 / 2], rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.k3(logprobs, ref), [0.5 - 1 + np.log(2), 4 - 1 - np.log(4)], rtol=1e-5
    )


def test_k3_is_never_negative_and_zero_when_equal(rng):
    logprobs, ref = (jnp.array(-rng.random(1000) * 9, jnp.float32) for _ in range(2))
    assert (losses.k3(logprobs, ref) >= 0).all()
    close = losses.k3(logprobs, logprobs + 1e-6)
    assert (close >= 0).all()
    for estimator in (losses.k1, losses.k2, losses.k3):
        assert not np.any(estimator(logprobs, logprobs))


def test_k1_and_k3_estimate_the_exact_divergence(rng):
    p, q = (jax.nn.log_softmax(jnp.array(rng.normal(size=5), jnp.float32)) for _ in range(2))
    exact = float(jnp.sum(jnp.exp(p) * (p - q)))
    for estimator in (losses.k1, losses.k3):  # expectation under p in closed form
        assert float(jnp.sum(jnp.exp(p) * estimator(p, q))) == pytest.approx(exact, abs=1e-6)


def test_adaptive_kl_by_hand():
    update = lambda kl: losses.adaptive_kl_coef(0.1, kl, target=6.0, num_samples=100)  # noqa: E731
    assert float(update(6.0)) == pytest.approx(0.1)
    assert float(update(6.6)) == pytest.approx(0.1 * (1 + 0.1 * 0.01))
    assert float(update(60.0)) == pytest.approx(0.1 * (1 + 0.2 * 0.01))  # clipped
    assert float(update(0.0)) == pytest.approx(0.1 * (1 - 0.2 * 0.01))
    assert float(jax.jit(update)(6.6)) == pytest.approx(float(update(6.6)))
    with pytest.raises(ValueError, match="target"):
        losses.adaptive_kl_coef(0.1, 1.0, target=0.0, num_samples=1)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_is_reduced_as_the_policy_loss_is(batch, estimator):
    mask = batch["mask_BR"]
    arguments = [jnp.where(mask == 1, batch[name], jnp.nan) for name in ("logprobs_BR", "old_BR")]
    d = np.array(batch["logprobs_BR"] - batch["old_BR"], np.float64)
    each = d**2 / 2 if estimator == "k2" else np.exp(-d) - 1 + d
    rows = [each[row, :length] for row, length in enumerate((6, 2, 4))]
    for options, want in (
        ({}, np.concatenate(rows).mean()),
        ({"denominator": 24}, np.concatenate(rows).sum() / 24),
        ({"aggregation": "sequence"}, np.mean([row.mean() for row in rows])),
    ):
        value, gradient = value_and_grad(
            lambda x: losses.kl_loss(x, arguments[1], mask, estimator=estimator, **options)  # noqa: B023
        )(arguments[0])
        assert float(value) == pytest.approx(want, rel=1e-5)
        assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match="k1"):
        losses.kl_loss(*arguments, mask, estimator="k1")
    with pytest.raises(ValueError, match="aggregation"):
        losses.kl_loss(*arguments, mask, aggregation="rows")
