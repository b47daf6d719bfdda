"""The token-level imitation loss: hand numbers, closed form, masks, jit, its fixed point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.losses import inverse_q_loss


def _plain(logprobs, ref, target, mask, beta, clip):
    errors = []
    for row, column in zip(*np.nonzero(mask)):
        reward = np.clip(beta * (target[row, column] - ref[row, column]), -clip, clip)
        errors.append(beta * (logprobs[row, column] - ref[row, column]) - reward)
    return 0.5 * np.mean(np.square(errors)), np.array(errors)


@pytest.fixture
def arrays(rng, batch):
    logprobs, ref, target = (-rng.exponential(2.0, size=(4, 6)) for _ in range(3))
    return logprobs, ref, target, np.array(batch["mask_BR"])


@pytest.mark.parametrize(("beta", "clip"), [(1.0, 5.0), (0.3, 0.5)])
def test_against_a_plain_loop_in_value_and_gradient(arrays, beta, clip):
    logprobs, ref, target, mask = arrays
    want, errors = _plain(*arrays, beta, clip)
    given = [jnp.array(x, jnp.float32) for x in arrays[:3]]

    def loss(*given):
        return inverse_q_loss(*given, jnp.array(mask), beta=beta, clip=clip)

    (got, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(*given)
    assert float(got) == pytest.approx(want, rel=1e-5)
    assert float(loss(*given)[0]) == pytest.approx(want, rel=1e-5)
    wanted = np.zeros(mask.shape)
    wanted[np.nonzero(mask)] = beta * errors / mask.sum()
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)
    raw = beta * np.abs(target - ref)[mask > 0]
    assert float(metrics["invq/clip_fraction"]) == pytest.approx((raw > clip).mean())
    assert float(metrics["invq/gap"]) == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    # What stands at masked places changes nothing, and only the policy gets a gradient.
    dirty = [jnp.where(mask > 0, x, jnp.nan) for x in given]
    assert float(loss(*dirty)[0]) == float(loss(*given)[0])
    others = jax.jit(jax.grad(lambda *x: loss(*x)[0], (1, 2)))(*dirty)
    assert not any(np.asarray(leaf).any() for leaf in others)


def test_by_hand_and_at_its_fixed_point():
    ref, mask = jnp.array([[-2.0, -1.0]]), jnp.array([[1, 1]])
    target = jnp.array([[-1.0, -9.0]])
    loss, metrics = inverse_q_loss(ref, ref, target, mask, clip=5.0)
    # Rewards 1 and -8, the latter clipped to -5; the policy is still the reference.
    assert float(loss) == pytest.approx((0.5 * 1 + 0.5 * 25) / 2)
    assert float(metrics["invq/reward"]) == pytest.approx(-2.0)
    assert float(inverse_q_loss(target, ref, target, mask, clip=10.0)[0]) == 0.0


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"clip": -1.0}])
def test_settings_that_mean_nothing(options):
    zeros = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="above 0"):
        inverse_q_loss(zeros, zeros, zeros, jnp.ones((1, 2), jnp.int32), **options)
