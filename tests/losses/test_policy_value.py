"""The PPO policy and value losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import losses


def grad(function, *args, **kwargs):
    """jax.grad, compiled: op by op each test would compile dozens of kernels."""
    return jax.jit(jax.grad(function, *args, **kwargs))


def value_and_grad(function, *args, **kwargs):
    """jax.value_and_grad, compiled: op by op each test would compile dozens of kernels."""
    return jax.jit(jax.value_and_grad(function, *args, **kwargs))


def policy(batch, **options):
    return losses.ppo_loss(
        batch["logprobs_BR"], batch["old_BR"], batch["advantages_BR"], batch["mask_BR"], **options
    )


def slow_ppo(batch, low, high, aggregation):
    rows = []
    for row in range(batch["mask_BR"].shape[0]):
        terms = []
        for t in range(batch["mask_BR"].shape[1]):
            if batch["mask_BR"][row, t]:
                ratio = np.exp(float(batch["logprobs_BR"][row, t]) - float(batch["old_BR"][row, t]))
                advantage = float(batch["advantages_BR"][row, t])
                clipped = min(max(ratio, 1 - low), 1 + high)
                terms.append(max(-advantage * ratio, -advantage * clipped))
        rows.append(terms)
    if aggregation == "token":
        return np.mean(sum(rows, []))
    return np.mean([np.mean(terms) for terms in rows if terms])


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.1, 0.4)])
def test_policy_loss_equals_the_slow_version(batch, low, high, aggregation):
    options = dict(clip_low=low, clip_high=high, aggregation=aggregation)
    want = slow_ppo(batch, low, high, aggregation)
    assert float(policy(batch, **options)[0]) == pytest.approx(want, rel=1e-5)
    jitted, metrics = jax.jit(lambda batch: policy(batch, **options))(batch)
    assert float(jitted) == pytest.approx(want, rel=1e-5)
    for name, value in metrics.items():
        assert value.dtype == jnp.float32 and value.shape == (), name


def test_policy_loss_by_hand():
    # Ratio 2 with A = 1 is clipped to 1.2, 1/2 with A = -1 to 0.8; 2 with A = -1 is not.
    new, old = jnp.log(jnp.array([[2.0, 0.5, 2.0]])), jnp.zeros((1, 3))
    advantages, mask = jnp.array([[1.0, -1.0, -1.0]]), jnp.ones((1, 3), jnp.int32)
    loss, metrics = losses.ppo_loss(new, old, advantages, mask)
    assert float(loss) == pytest.approx((-1.2 + 0.8 + 2.0) / 3)
    assert float(metrics["policy/clip_fraction"]) == pytest.approx(2 / 3)
    assert float(metrics["policy/ratio_max"]) == pytest.approx(2.0)
    k3 = [2 - 1 - np.log(2), 0.5 - 1 + np.log(2), 2 - 1 - np.log(2)]
    assert float(metrics["policy/approx_kl"]) == pytest.approx(np.mean(k3), rel=1e-5)
    gradient = grad(lambda new: losses.ppo_loss(new, old, advantages, mask)[0])(new)
    np.testing.assert_allclose(gradient, [[0, 0, 2 / 3]], atol=1e-6)  # clipped tokens teach nothing


def test_on_policy_the_ratio_is_one_and_the_gradient_is_that_of_reinforce(batch):
    batch = batch | {"old_BR": batch["logprobs_BR"]}
    loss, metrics = policy(batch)
    mask, advantages = batch["mask_BR"], batch["advantages_BR"]
    assert float(metrics["policy/clip_fraction"]) == 0
    assert float(metrics["policy/approx_kl"]) == 0
    assert float(metrics["policy/ratio_max"]) == 1
    gradient = grad(lambda x: policy(batch | {"logprobs_BR": x})[0])(batch["logprobs_BR"])
    np.testing.assert_allclose(gradient, -advantages * mask / mask.sum(), atol=1e-7)
    assert float(loss) == pytest.approx(float(-(advantages * mask).sum() / mask.sum()), abs=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_stands_in_padding_changes_nothing(batch, poison):
    def everything(batch):
        def total(logprobs, values):
            first, a = policy(batch | {"logprobs_BR": logprobs})
            second, b = losses.value_loss(
                values, batch["old_BR"], batch["returns_BR"], batch["mask_BR"], clip=0.2
            )
            return first + second, a | b

        gradient = value_and_grad(total, (0, 1), has_aux=True)
        return gradient(batch["logprobs_BR"], batch["values_BR"])

    real = batch["mask_BR"] == 1
    dirty = {k: v if k == "mask_BR" else jnp.where(real, v, poison) for k, v in batch.items()}
    jax.tree.map(np.testing.assert_array_equal, everything(dirty), everything(batch))
    for array in jax.tree.leaves(everything(dirty)):
        assert np.isfinite(array).all()


def test_removing_padding_columns_changes_nothing(batch):
    short = {name: array[1:3, :4] for name, array in batch.items()}
    long = {name: array[1:3] for name, array in batch.items()}
    assert float(policy(short)[0]) == pytest.approx(float(policy(long)[0]), rel=1e-6)


def test_gradients_against_finite_differences(batch):
    step = 1e-2
    for name, loss in (
        ("logprobs_BR", lambda batch: policy(batch)[0]),
        ("logprobs_BR", lambda batch: policy(batch, aggregation="sequence")[0]),
        ("values_BR", lambda b: value(b)[0]),
    ):
        gradient = grad(lambda x: loss(batch | {name: x}))(batch[name])  # noqa: B023
        for place in ((0, 0), (0, 3), (1, 1), (2, 2), (3, 0)):
            up, down = (
                float(loss(batch | {name: batch[name].at[place].add(sign * step)}))
                for sign in (1, -1)
            )
            assert float(gradient[place]) == pytest.approx((up - down) / (2 * step), abs=2e-3)


def test_a_runaway_ratio_stays_finite():
    new, old = jnp.array([[0.0, 0.0]]), jnp.array([[-1e4, -1e4]])
    advantages, mask = jnp.array([[0.0, -1.0]]), jnp.ones((1, 2), jnp.int32)
    loss, gradient = value_and_grad(lambda x: losses.ppo_loss(x, old, advantages, mask)[0])(new)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_an_empty_mask_gives_zero_and_no_gradient(batch):
    batch = batch | {"mask_BR": jnp.zeros_like(batch["mask_BR"])}
    for aggregation in ("token", "sequence"):
        total = lambda x: policy(batch | {"logprobs_BR": x}, aggregation=aggregation)[0]  # noqa: B023, E731
        loss, gradient = value_and_grad(total)(batch["logprobs_BR"])
        assert float(loss) == 0 and not np.any(gradient)


def test_sequence_ratio_is_the_geometric_mean(batch):
    loss, metrics = policy(
        batch, aggregation="sequence", ratio_level="sequence", clip_low=0.9, clip_high=9.0
    )
    terms = []
    for row, length in ((0, 6), (1, 2), (2, 4)):
        drift = np.array(batch["logprobs_BR"] - batch["old_BR"])[row, :length]
        terms.append(-np.exp(drift.mean()) * np.array(batch["advantages_BR"])[row, :length].mean())
    assert float(metrics["policy/clip_fraction"]) == 0
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)


def test_product_ratio_is_that_of_the_whole_response(batch):
    options = dict(aggregation="sequence", ratio_level="product", clip_low=0.99, clip_high=99.0)
    loss, _ = policy(batch, **options)
    terms = []
    for row, length in ((0, 6), (1, 2), (2, 4)):
        drift = np.array(batch["logprobs_BR"] - batch["old_BR"])[row, :length]
        terms.append(-np.exp(drift.sum()) * np.array(batch["advantages_BR"])[row, :length].mean())
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)
    # On policy its gradient is that of REINFORCE on sums: A / rows for every token of a row.
    ones = batch | {"advantages_BR": jnp.broadcast_to(jnp.array([[1.0], [2], [3], [4]]), (4, 6))}
    gradient = grad(lambda x: policy(ones | {"logprobs_BR": x}, **options)[0])(batch["old_BR"])
    np.testing.assert_allclose(gradient, -ones["advantages_BR"] * batch["mask_BR"] / 3, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"aggregation": "row"}, "aggregation"),
        ({"clip_low": 0.0}, "positive"),
        ({"ratio_level": "row"}, "ratio_level"),
        ({"ratio_level": "sequence"}, "aggregation='sequence'"),
        ({"ratio_level": "product"}, "aggregation='sequence'"),
    ],
)
def test_bad_options_are_named(batch, options, message):
    with pytest.raises(ValueError, match=message):
        policy(batch, **options)


def value(batch, clip=0.2):
    return losses.value_loss(
        batch["values_BR"], batch["old_BR"], batch["returns_BR"], batch["mask_BR"], clip=clip
    )


def test_value_loss_by_hand():
    # Errors: 1 - 0 = 1 against clip(1, 0 +- 0.2) = 0.2 -> max(1, 0.04) = 1; and, moving away from
    # the target by more than the clip, 0.5 - 2 against 0.7... : max(2.25, 1.69) = 2.25.
    values, old, target = jnp.array([[1.0, 0.5]]), jnp.array([[0.0, 0.9]]), jnp.array([[0.0, 2.0]])
    mask = jnp.ones((1, 2), jnp.int32)
    loss, metrics = losses.value_loss(values, old, target, mask, clip=0.2)
    assert float(loss) == pytest.approx(0.5 * (1 + 2.25) / 2)
    assert float(metrics["value/error"]) == pytest.approx(np.sqrt(3.25 / 2))
    # A step towards the target beyond the clip range is held back: (0.2 - 1)^2 > (1 - 1)^2.
    loss, metrics = losses.value_loss(
        values[:, :1], old[:, :1], jnp.ones((1, 1)), mask[:, :1], clip=0.2
    )
    assert float(loss) == pytest.approx(0.5 * 0.64)
    assert float(metrics["value/clip_fraction"]) == 1
    loss, _ = losses.value_loss(values, old, target, mask, clip=None)
    assert float(loss) == pytest.approx(0.5 * 3.25 / 2)


def test_value_loss_equals_the_slow_version(batch):
    terms = []
    for row, t in zip(*np.nonzero(np.array(batch["mask_BR"]))):
        v, old, target = (float(batch[k][row, t]) for k in ("values_BR", "old_BR", "returns_BR"))
        clipped = min(max(v, old - 0.2), old + 0.2)
        terms.append(max((v - target) ** 2, (clipped - target) ** 2))
    assert float(value(batch)[0]) == pytest.approx(0.5 * np.mean(terms), rel=1e-5)
    assert float(jax.jit(value)(batch)[0]) == pytest.approx(0.5 * np.mean(terms), rel=1e-5)


def test_explained_variance(batch):
    mask, returns = batch["mask_BR"], batch["returns_BR"]
    assert float(losses.explained_variance(returns, returns, mask)) == 1.0
    assert float(losses.explained_variance(returns + 3, returns, mask)) == pytest.approx(1.0)
    assert float(losses.explained_variance(jnp.zeros_like(returns), returns, mask)) == 0.0
    real = np.array(mask) == 1
    error = np.array(returns - batch["values_BR"])[real]
    want = 1 - error.var() / np.array(returns)[real].var()
    got = float(losses.explained_variance(batch["values_BR"], returns, mask))
    assert got == pytest.approx(want, rel=1e-4)
    constant = jnp.ones_like(returns)
    assert float(losses.explained_variance(batch["values_BR"], constant, mask)) == 0.0


def test_value_clip_must_be_positive(batch):
    with pytest.raises(ValueError, match="positive"):
        value(batch, clip=0.0)
