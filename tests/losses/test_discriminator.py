"""Discriminator losses and their metrics per class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import losses
from gapo_jax.types import ACCEPTED, GENERATED, REJECTED


def grad(function, *args, **kwargs):
    """jax.grad, compiled: op by op each test would compile dozens of kernels."""
    return jax.jit(jax.grad(function, *args, **kwargs))


def value_and_grad(function, *args, **kwargs):
    """jax.value_and_grad, compiled: op by op each test would compile dozens of kernels."""
    return jax.jit(jax.value_and_grad(function, *args, **kwargs))


def test_cross_entropy_by_hand_and_at_the_extremes():
    # s(log 3) = 3/4.
    logits = jnp.array([np.log(3.0), np.log(3.0), np.log(3.0), 1e4, -1e4, 1e4])
    targets = jnp.array([1.0, 0.0, 0.2, 1.0, 1.0, 0.0])
    want = [-np.log(0.75), -np.log(0.25), -0.2 * np.log(0.75) - 0.8 * np.log(0.25), 0, 1e4, 1e4]
    np.testing.assert_allclose(
        losses.binary_cross_entropy(logits, targets), want, rtol=1e-6, atol=1e-7
    )
    gradient = grad(lambda x: losses.binary_cross_entropy(x, targets).sum())(logits)
    sigmoid = [0.75, 0.75, 0.75, 1, 0, 1]
    np.testing.assert_allclose(gradient, np.array(sigmoid) - targets, atol=1e-6)


def test_the_gradient_at_a_logit_of_zero():
    gradient_B = grad(lambda x_B: losses.binary_cross_entropy(x_B, jnp.ones(1))[0])(jnp.zeros(1))
    assert float(gradient_B[0]) == pytest.approx(-0.5)


def test_weighted_loss_equals_the_slow_version_with_and_without_jit(rng):
    logits, targets, weights = rng.normal(size=7), rng.random(7), rng.random(7)
    total = 0.0
    for x, y, w in zip(logits, targets, weights):
        p = 1 / (1 + np.exp(-x))
        total -= w * (y * np.log(p) + (1 - y) * np.log(1 - p))
    arguments = [jnp.array(x, jnp.float32) for x in (logits, targets, weights)]
    for function in (losses.bce_loss, jax.jit(losses.bce_loss)):
        assert float(function(*arguments)[0]) == pytest.approx(total / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_row_of_weight_zero_is_as_if_absent(rng, poison):
    logits, targets = jnp.array(rng.normal(size=5)), jnp.array([1.0, 0.0, 0.3, 1.0, 0.0])
    classes = jnp.array([ACCEPTED, REJECTED, GENERATED, ACCEPTED, GENERATED])
    weights = jnp.array([1.0, 2.0, 1.0, 0.5, 0.0])
    total = value_and_grad(losses.bce_loss, has_aux=True)
    (loss, metrics), gradient = total(logits.at[4].set(poison), targets, weights, classes_B=classes)
    (want, wanted), _ = total(logits[:4], targets[:4], weights[:4], classes_B=classes[:4])
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    assert np.isfinite(gradient).all() and float(gradient[4]) == 0
    for name in metrics:
        assert float(metrics[name]) == pytest.approx(float(wanted[name])), name


def test_class_metrics_by_hand():
    classes = jnp.array(
        [ACCEPTED, ACCEPTED, REJECTED, REJECTED, GENERATED, GENERATED, GENERATED, 2]
    )
    logits = jnp.array([2.0, -1.0, -3.0, -1.0, -1.0, 1.0, -4.0, 99.0])
    weights = jnp.array([1, 1, 1, 1, 1, 1, 1, 0.0])
    metrics = {k: float(v) for k, v in losses.class_metrics(logits, classes, weights).items()}
    assert metrics["disc/acc_accepted"] == 0.5
    assert metrics["disc/acc_rejected"] == 1.0
    assert metrics["disc/acc_generated"] == pytest.approx(2 / 3)
    assert metrics["disc/score_gap"] == pytest.approx(0.5 - -2.0)
    assert metrics["disc/score_generated"] == pytest.approx(-4 / 3)
    assert metrics["disc/generated_fraction"] == pytest.approx(3 / 7)
    assert metrics["disc/count_generated"] == 3


def test_verified_text_is_right_with_a_positive_logit():
    """Of four generated texts the verifiers accept the first two; a logit of 0 is never right."""
    classes, targets = jnp.full(4, GENERATED), jnp.array([1.0, 0.9, 0.0, 0.2])
    logits = jnp.array([2.0, -1.0, -3.0, 0.0])
    plain = losses.class_metrics(logits, classes)
    assert float(plain["disc/acc_generated"]) == 2 / 4
    metrics = losses.class_metrics(logits, classes, targets_B=targets)
    assert float(metrics["disc/acc_generated"]) == 2 / 4
    metrics = losses.class_metrics(jnp.array([2.0, 1.0, 3.0, -1.0]), classes, targets_B=targets)
    assert float(metrics["disc/acc_generated"]) == 3 / 4
    _, metrics = losses.bce_loss(jnp.array([2.0, 1.0, -3.0, -1.0]), targets, classes_B=classes)
    assert float(metrics["disc/acc_generated"]) == 1 and float(metrics["disc/accuracy"]) == 1


def test_a_class_without_a_row_has_no_accuracy():
    metrics = losses.class_metrics(jnp.array([1.0, -1.0]), jnp.array([ACCEPTED, REJECTED]))
    assert np.isnan(metrics["disc/acc_generated"]) and metrics["disc/generated_fraction"] == 0
    assert metrics["disc/acc_accepted"] == 1 and metrics["disc/count_generated"] == 0


def test_soft_labels_have_their_optimum_at_the_label():
    gradient = grad(lambda x: losses.bce_loss(x, jnp.array([0.2]))[0])
    at = jnp.log(jnp.array([0.2 / 0.8]))
    assert abs(float(gradient(at)[0])) < 1e-6
    assert float(gradient(at + 1)[0]) > 0 > float(gradient(at - 1)[0])


def test_bradley_terry(rng):
    better, worse = (jnp.array(rng.normal(size=6), jnp.float32) for _ in range(2))
    weights = jnp.array([1.0, 2.0, 0.0, 1.0, 1.0, 0.5])
    margin = np.array(better - worse)
    want = np.average(np.log1p(np.exp(-margin)), weights=weights)
    loss, metrics = jax.jit(losses.bradley_terry_loss)(better, worse, weights)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    real = np.array(weights) > 0
    assert float(metrics["disc/pair_accuracy"]) == pytest.approx((margin[real] > 0).mean())
    shifted, _ = losses.bradley_terry_loss(better + 5, worse + 5, weights)
    assert float(shifted) == pytest.approx(want, rel=1e-4)  # only differences matter
    gradient = grad(lambda x: losses.bradley_terry_loss(x, worse, weights)[0])(
        better.at[2].set(jnp.nan)
    )
    sigmoid = 1 / (1 + np.exp(margin))
    np.testing.assert_allclose(gradient, -np.array(weights) * sigmoid / 5.5, atol=1e-6)


def test_the_gradient_penalty_is_half_the_mean_square_over_rows_and_real_tokens(rng):
    gradients = rng.normal(size=(3, 4, 2)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    weights = np.array([1.0, 3.0, 0.0])
    squares = [(gradients[0, :2] ** 2).sum(), (gradients[1] ** 2).sum()]
    dirty = np.where(mask[:, :, None] == 1, gradients, np.nan)
    dirty[2] = np.nan
    loss = losses.gradient_penalty_loss(jnp.array(dirty), jnp.array(mask), jnp.array(weights))
    assert float(loss) == pytest.approx((squares[0] + 3 * squares[1]) / 8, rel=1e-5)
    assert float(losses.gradient_penalty_loss(jnp.array(dirty), jnp.array(mask), jnp.zeros(3))) == 0
