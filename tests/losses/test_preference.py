"""SFT, the DPO family, SimPO, ORPO, KTO and RPO."""

import functools

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


SMOOTHING = {"sigmoid": 0.0, "cdpo": 0.1, "robust": 0.2, "exo": 0.1, "hinge": 0.0, "ipo": 0.0}


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def slow_dpo(delta, beta, variant, e):
    m, s = beta * delta, 1 / (1 + np.exp(-beta * delta))
    return {
        "sigmoid": -log_sigmoid(m),
        "cdpo": -(1 - e) * log_sigmoid(m) - e * log_sigmoid(-m),
        "robust": (-(1 - e) * log_sigmoid(m) + e * log_sigmoid(-m)) / (1 - 2 * e),
        "exo": s * np.log(s / (1 - e)) + (1 - s) * np.log((1 - s) / max(e, 1e-9)),
        "hinge": np.maximum(0, 1 - m),
        "ipo": (delta - 1 / (2 * beta)) ** 2,
    }[variant]


@pytest.fixture
def pairs(rng):
    return [jnp.array(rng.normal(-8, 3, size=6), jnp.float32) for _ in range(4)]


def test_sft_is_the_token_mean(batch):
    mask = np.array(batch["mask_BR"])
    want = -np.array(batch["logprobs_BR"])[mask == 1].mean()
    loss, metrics = jax.jit(losses.sft_loss)(batch["logprobs_BR"], batch["mask_BR"])
    assert float(loss) == pytest.approx(want, rel=1e-6)
    assert float(metrics["sft/tokens"]) == 12
    dirty = jnp.where(batch["mask_BR"] == 1, batch["logprobs_BR"], jnp.nan)
    total = lambda x: losses.sft_loss(x, batch["mask_BR"])[0]  # noqa: E731
    assert float(total(dirty)) == float(loss)
    np.testing.assert_allclose(grad(total)(dirty), -mask / 12, rtol=1e-6)


def test_sequence_logprobs(batch):
    x, mask = np.array(batch["logprobs_BR"]), np.array(batch["mask_BR"])
    total = losses.sequence_logprobs(batch["logprobs_BR"], batch["mask_BR"])
    np.testing.assert_allclose(total, (x * mask).sum(1), rtol=1e-5, atol=1e-6)
    mean = losses.sequence_logprobs(batch["logprobs_BR"], batch["mask_BR"], mean=True)
    np.testing.assert_allclose(
        mean, (x * mask).sum(1) / np.maximum(mask.sum(1), 1), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("variant", SMOOTHING)
def test_dpo_variants(pairs, variant):
    options = dict(beta=0.3, variant=variant, label_smoothing=SMOOTHING[variant])
    chosen, rejected, ref_chosen, ref_rejected = (np.array(x, np.float64) for x in pairs)
    delta = (chosen - ref_chosen) - (rejected - ref_rejected)
    want = slow_dpo(delta, 0.3, variant, SMOOTHING[variant])
    function = lambda *pairs: losses.dpo_loss(*pairs, **options)  # noqa: E731
    for loss in (function(*pairs)[0], jax.jit(function)(*pairs)[0]):
        assert float(loss) == pytest.approx(want.mean(), rel=1e-5)
    # The gradient in closed form: dL/dDelta by a central difference of the float64 version.
    slope = slow_dpo(delta + 1e-5, 0.3, variant, SMOOTHING[variant])
    slope = (slope - slow_dpo(delta - 1e-5, 0.3, variant, SMOOTHING[variant])) / 2e-5 / len(delta)
    gradient = grad(lambda c, r: function(c, r, *pairs[2:])[0], (0, 1))(*pairs[:2])
    np.testing.assert_allclose(gradient[0], slope, atol=1e-5)
    np.testing.assert_allclose(gradient[1], -slope, atol=1e-5)
    # A pair of weight 0 is as if absent, whatever it holds.
    weights = jnp.array([1.0, 1, 1, 0, 1, 1])
    dirty = [x.at[3].set(jnp.nan) for x in pairs]
    weighted, gradient = value_and_grad(
        lambda c: losses.dpo_loss(c, *dirty[1:], weights_B=weights, **options)[0]
    )(dirty[0])
    assert float(weighted) == pytest.approx(np.delete(want, 3).mean(), rel=1e-5)
    assert np.isfinite(gradient).all() and gradient[3] == 0


def test_dpo_by_hand():
    # Delta = log 3 / beta: the policy gives the chosen side odds of 3.
    pair = jnp.array([np.log(3.0) / 0.1]), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1)
    loss, metrics = losses.dpo_loss(*pair, beta=0.1)
    assert float(loss) == pytest.approx(-np.log(0.75), rel=1e-5)
    assert float(metrics["pref/accuracy"]) == 1
    assert float(metrics["pref/margin"]) == pytest.approx(np.log(3.0), rel=1e-6)
    smooth, _ = losses.dpo_loss(*pair, beta=0.1, label_smoothing=0.2)
    assert float(smooth) == pytest.approx(-0.8 * np.log(0.75) - 0.2 * np.log(0.25), rel=1e-5)


def test_dpo_under_extreme_margins_is_finite():
    pair = jnp.array([1e5, -1e5]), jnp.zeros(2), jnp.zeros(2), jnp.zeros(2)
    for variant, smoothing in SMOOTHING.items():
        total = functools.partial(losses.dpo_loss, variant=variant, label_smoothing=smoothing)
        value, gradient = value_and_grad(total, has_aux=True)(*pair)
        assert np.isfinite(value[0]) and np.isfinite(gradient).all(), variant


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variant": "nca"}, "variant"),
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"variant": "cdpo"}, "label_smoothing"),
        ({"variant": "exo"}, "label_smoothing"),
        ({"variant": "ipo", "label_smoothing": 0.1}, "label smoothing"),
    ],
)
def test_dpo_options_are_never_ignored(pairs, options, message):
    with pytest.raises(ValueError, match=message):
        losses.dpo_loss(*pairs, **options)


def test_simpo(pairs):
    chosen, rejected = (np.array(x, np.float64) / 8 for x in pairs[:2])
    want = -log_sigmoid(2.5 * (chosen - rejected) - 0.8).mean()
    loss, metrics = losses.simpo_loss(pairs[0] / 8, pairs[1] / 8, beta=2.5, gamma=0.8)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    assert float(metrics["pref/accuracy"]) == pytest.approx((chosen > rejected).mean())


def test_log1mexp_keeps_its_digits_and_its_gradient():
    x = np.array([-1e-6, -1e-4, -0.1, -0.69, -0.7, -3.0, -30.0, -200.0])
    want = np.where(x > -1, np.log(-np.expm1(x)), np.log1p(-np.exp(x)))
    np.testing.assert_allclose(
        losses.log1mexp(jnp.array(x, jnp.float32)), want, rtol=1e-5, atol=1e-30
    )
    slope = jax.jit(jax.vmap(jax.grad(losses.log1mexp)))(jnp.array(x, jnp.float32))
    np.testing.assert_allclose(slope, np.exp(x) / np.expm1(x), rtol=2e-5, atol=1e-30)
    value, gradient = value_and_grad(losses.log1mexp)(0.0)  # a probability of exactly 1
    assert np.isfinite(value) and np.isfinite(gradient)


def test_orpo_equals_the_slow_version(rng):
    chosen, rejected = -rng.random((2, 4, 5)) * 3
    masks = rng.integers(0, 2, size=(2, 4, 5))
    masks[:, :, 0] = 1
    terms = []
    for row in range(4):
        good, bad = (x[row][m[row] == 1].mean() for x, m in zip((chosen, rejected), masks))
        odds = [np.log(np.exp(mean) / (1 - np.exp(mean))) for mean in (good, bad)]
        terms.append(-log_sigmoid(odds[0] - odds[1]))
    want = -chosen[masks[0] == 1].mean() + 0.4 * np.mean(terms)
    arguments = [jnp.array(x) for x in (chosen, rejected, *masks)]
    loss, metrics = losses.orpo_loss(*arguments, beta=0.4)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    dirty = [jnp.where(m == 1, x, jnp.nan) for x, m in zip(arguments[:2], arguments[2:])]
    gradients = grad(lambda c, r: losses.orpo_loss(c, r, *arguments[2:])[0], (0, 1))(*dirty)
    assert np.isfinite(gradients[0]).all() and np.isfinite(gradients[1]).all()
    assert all(not np.any(g[m == 0]) for g, m in zip(gradients, arguments[2:]))
    certain = losses.orpo_loss(arguments[0] * 0, *arguments[1:])[0]
    assert np.isfinite(certain)  # a chosen side of probability 1


def test_orpo_by_hand_takes_the_likelihood_of_the_response_alone():
    """Means of log 1/2 and log 1/4: odds of 1 and 1/3. A prompt's log-probs have no place in it:
    TRL, which adds the prompt's three tokens to the mean, would find an NLL of 4/3 log 2."""
    prompt, response = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 1.0])
    chosen, rejected = jnp.array([response]), jnp.full((1, 3), np.log(0.25))
    mask = jnp.ones((1, 3), jnp.int32)
    loss, metrics = losses.orpo_loss(chosen, rejected, mask, mask, beta=0.1)
    assert float(metrics["pref/nll"]) == pytest.approx(np.log(2), rel=1e-5)
    assert -np.mean([*prompt, *response]) == pytest.approx(4 / 3 * np.log(2))
    assert float(metrics["pref/margin"]) == pytest.approx(np.log(3), rel=1e-5)
    assert float(loss) == pytest.approx(np.log(2) - 0.1 * np.log(0.75), rel=1e-5)


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_no_prompt_meets_its_own_response(batch):
    rows = losses.mismatched_rows(batch)
    assert sorted(rows) == list(range(batch))
    assert all(row != other for row, other in enumerate(rows))


def test_kto_equals_the_slow_version(rng):
    policy, ref, kl, ref_kl = rng.normal(-5, 2, size=(4, 6))
    kl = kl + 4
    labels = np.array([1, 0, 0, 1, 1, 0])
    z0 = max(0.0, (kl - ref_kl).mean())
    assert z0 > 0
    rho = policy - ref
    win = 1 - 1 / (1 + np.exp(-0.3 * (rho - z0)))
    lose = 1 - 1 / (1 + np.exp(-0.3 * (z0 - rho)))
    want = np.where(labels == 1, 1.2 * win, 0.7 * lose).mean()
    arguments = [jnp.array(x, jnp.float32) for x in (policy, ref, kl, ref_kl)]
    options = dict(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7)
    loss, metrics = losses.kto_loss(*arguments, jnp.array(labels), **options)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    assert float(metrics["pref/kl"]) == pytest.approx(z0, rel=1e-5)
    gradients = grad(
        lambda p, k: losses.kto_loss(
            p, arguments[1], k, arguments[3], jnp.array(labels), **options
        )[0],
        (0, 1),
    )(arguments[0], arguments[2])
    assert not np.any(gradients[1])  # z0 is a constant
    assert (np.sign(gradients[0]) == np.where(labels == 1, -1, 1)).all()
    # The reference point is never below 0.
    _, metrics = losses.kto_loss(*arguments[:2], arguments[3], arguments[2], jnp.array(labels))
    assert float(metrics["pref/kl"]) == 0
    # Padding rows count nowhere.
    weights = jnp.array([1.0, 1, 1, 1, 1, 0])
    padded = [x.at[5].set(jnp.nan) for x in arguments]
    short = losses.kto_loss(*(x[:5] for x in arguments), jnp.array(labels[:5]), **options)
    long = losses.kto_loss(*padded, jnp.array(labels), weights_B=weights, **options)
    for ours, theirs in zip(jax.tree.leaves(long), jax.tree.leaves(short)):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_kto_refuses_a_batch_of_one():
    one = jnp.zeros(1)
    with pytest.raises(ValueError, match="batch of 2"):
        losses.kto_loss(one, one, one, one, one)


# --- RPO and the identities of the family -------------------------------------------------------


def rpo_of_gap(gap, target, distance, beta=0.5):
    """RPO of two responses whose implicit log-ratios differ by `gap`, targets by `target`."""
    zero = jnp.zeros_like(gap)
    return losses.rpo_loss(
        jnp.stack([gap, zero], axis=1), jnp.zeros((len(gap), 2)),
        jnp.stack([target, zero], axis=1), beta=beta, distance=distance,
    )[0]  # fmt: skip


def test_rpo_bwd_kl_becomes_dpo_as_the_target_saturates(pairs):
    gap = (pairs[0] - pairs[2]) - (pairs[1] - pairs[3])
    dpo, _ = losses.dpo_loss(*pairs, beta=0.5)
    rpo = rpo_of_gap(gap, jnp.full_like(gap, 50.0), "bwd_kl")
    assert float(rpo) == pytest.approx(float(dpo), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.05, 0.3])
def test_rpo_bwd_kl_is_cdpo_and_fwd_kl_is_exo_at_the_smoothed_target(pairs, smoothing):
    gap = (pairs[0] - pairs[2]) - (pairs[1] - pairs[3])
    target = jnp.full_like(gap, np.log((1 - smoothing) / smoothing))
    entropy = -smoothing * np.log(smoothing) - (1 - smoothing) * np.log(1 - smoothing)
    cdpo, _ = losses.dpo_loss(*pairs, beta=0.5, variant="cdpo", label_smoothing=smoothing)
    assert float(rpo_of_gap(gap, target, "bwd_kl")) == pytest.approx(
        float(cdpo) - entropy, rel=1e-4
    )
    exo, _ = losses.dpo_loss(*pairs, beta=0.5, variant="exo", label_smoothing=smoothing)
    assert float(rpo_of_gap(gap, target, "fwd_kl")) == pytest.approx(float(exo), rel=1e-4)


def test_rpo_sq_at_a_constant_gap_is_ipo(pairs):
    gap = (pairs[0] - pairs[2]) - (pairs[1] - pairs[3])
    ipo, _ = losses.dpo_loss(*pairs, beta=0.5, variant="ipo")
    sq = rpo_of_gap(gap, jnp.full_like(gap, 0.5), "sq")
    assert float(sq) / 0.5**2 == pytest.approx(float(ipo), rel=1e-5)


@pytest.mark.parametrize("distance", ["sq", "sqloo", "bwd_kl", "fwd_kl"])
def test_rpo_slopes_and_optimum(distance):
    a, b = jnp.array([1.3]), jnp.array([0.4])
    slope = float(grad(lambda a: rpo_of_gap(a, b, distance, beta=1.0))(a)[0])
    s = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    want = {
        "sq": 2 * 0.9,
        "sqloo": 0.9,
        "bwd_kl": s(1.3) - s(0.4),
        "fwd_kl": s(1.3) * s(-1.3) * 0.9,
    }[distance]
    assert slope == pytest.approx(want, rel=1e-5)
    assert float(rpo_of_gap(b, b, distance, beta=1.0)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("distance", ["sqloo", "bwd_kl", "fwd_kl"])
@pytest.mark.parametrize("group", [2, 5])
def test_rpo_does_not_care_about_order_or_offsets(rng, distance, group):
    policy, ref, rewards = (jnp.array(x, jnp.float32) for x in rng.normal(size=(3, 3, group)))
    function = lambda *x: float(losses.rpo_loss(*x, beta=0.7, eta=2.0, distance=distance)[0])  # noqa: E731
    want = function(policy, ref, rewards)
    order = rng.permutation(group)
    assert function(policy[:, order], ref[:, order], rewards[:, order]) == pytest.approx(
        want, rel=1e-5
    )
    assert function(policy + 3, ref, rewards - 2) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("group", [2, 4])
def test_sqloo_gradient_is_that_of_rloo(rng, group):
    """grad of 1/(2G) sum (a' - b')^2 = -beta G/(G-1) (1/G) sum_i A_i grad log pi(y_i)."""
    beta, eta = 0.3, 1.5
    policy, ref, rewards = (jnp.array(x, jnp.float32) for x in rng.normal(size=(3, 1, group)))
    loss = lambda x: losses.rpo_loss(x, ref, rewards, beta=beta, eta=eta, distance="sqloo")[0]  # noqa: E731
    shaped = (eta * rewards - beta * (policy - ref)).reshape(-1)
    advantages = losses.leave_one_out(shaped, group)
    want = -beta * group / (group - 1) * advantages / group
    np.testing.assert_allclose(grad(loss)(policy)[0], want, rtol=1e-4, atol=1e-6)


def test_rpo_of_many_responses_equals_the_slow_version(rng):
    policy, ref, rewards = rng.normal(size=(3, 4, 5))
    a, b = 0.7 * (policy - ref), 2.0 * rewards
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    want = {
        "bwd_kl": (q * np.log(q / p)).sum(1).mean(),
        "fwd_kl": (p * np.log(p / q)).sum(1).mean(),
    }
    arguments = [jnp.array(x, jnp.float32) for x in (policy, ref, rewards)]
    for distance, number in want.items():
        loss, metrics = losses.rpo_loss(*arguments, beta=0.7, eta=2.0, distance=distance)
        assert float(loss) == pytest.approx(number, rel=1e-5)
    right = [
        (a[row, i] > a[row, j]) == (b[row, i] > b[row, j])
        for row in range(4) for i in range(5) for j in range(i)
    ]  # fmt: skip
    assert float(metrics["pref/accuracy"]) == pytest.approx(np.mean(right))
    weights = jnp.array([1.0, 1, 0, 1])
    dirty = [x.at[2].set(jnp.nan) for x in arguments]
    for distance in want:
        options = dict(beta=0.7, eta=2.0, distance=distance)
        clean = losses.rpo_loss(*(jnp.delete(x, 2, axis=0) for x in arguments), **options)[0]
        value, gradient = value_and_grad(
            lambda x: losses.rpo_loss(x, *dirty[1:], weights_B=weights, **options)[0]  # noqa: B023
        )(dirty[0])
        assert float(value) == pytest.approx(float(clean), rel=1e-5)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "shape, options, message",
    [
        ((2, 3), {"distance": "sq"}, "sqloo"),
        ((2, 1), {}, "2 responses"),
        ((2, 2), {"distance": "js"}, "distance"),
        ((2, 2), {"beta": 0.0}, "beta"),
    ],
)
def test_rpo_options_are_checked(shape, options, message):
    with pytest.raises(ValueError, match=message):
        losses.rpo_loss(*(jnp.zeros(shape),) * 3, **({"beta": 0.1} | options))
