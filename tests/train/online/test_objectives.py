"""What the policy minimises under each estimator, against plain numpy: denominators, ratios, KL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import Config
from gapo_jax.rollout.experience import critic_free_advantages
from gapo_jax.train.online.objectives import policy_objective
from gapo_jax.types import Experience

GROUP, WIDTH = 4, 6
MASK = (np.arange(WIDTH) < np.array([6, 2, 4, 1, 5, 3, 6, 2])[:, None]).astype(np.int32)
ROWS = len(MASK)


def _config(method="gapo", **changes):
    config = Config(method=method)
    config.ppo.samples_per_prompt, config.ppo.minibatch_size = GROUP, ROWS
    for path, value in changes.items():
        section, name = path.split("__")
        setattr(getattr(config, section), name, value)
    return config


@pytest.fixture
def numbers():
    rng = np.random.default_rng(5)
    draw = lambda scale: rng.normal(0, scale, MASK.shape).astype(np.float32)  # noqa: E731
    old = draw(1.0) - 2
    return {"new": old + draw(0.3), "old": old, "ref": old + draw(0.2), "reward": draw(1.0)[:, 0]}


def _experience(numbers, advantages_B):
    poison = lambda x: jnp.asarray(np.where(MASK == 1, x, np.nan))  # noqa: E731
    zeros = jnp.zeros((ROWS, 3), jnp.int32)
    return Experience(
        tokens_BT=zeros,
        mask_BT=zeros,
        response_mask_BR=jnp.asarray(MASK),
        old_logprobs_BR=poison(numbers["old"]),
        ref_logprobs_BR=poison(numbers["ref"]),
        advantages_BR=poison(np.broadcast_to(np.asarray(advantages_B)[:, None], MASK.shape)),
        rewards_B=jnp.asarray(numbers["reward"]),
    )


def _advantages(estimator, numbers, kl_coef=0.1, **options):
    logprobs = (np.where(MASK == 1, numbers[k], np.nan) for k in ("old", "ref"))
    return np.asarray(
        critic_free_advantages(
            estimator,
            jnp.asarray(numbers["reward"]),
            *map(jnp.asarray, logprobs),
            jnp.asarray(MASK),
            jnp.float32(kl_coef),
            group_size=GROUP,
            **options,
        )
    )


def _slow(numbers, advantage_B, variant, low, high, kl_coef):
    """Sums and denominators of each variant written out in loops."""
    rows = []
    for i in range(ROWS):
        n = int(MASK[i].sum())
        log_ratio = numbers["new"][i, :n].astype(float) - numbers["old"][i, :n]
        if variant == "gspo":
            log_ratio = np.full(n, log_ratio.mean())
        if variant == "rloo":
            log_ratio = np.full(n, log_ratio.sum())
        ratio, a = np.exp(log_ratio), float(advantage_B[i])
        terms = np.maximum(-a * ratio, -a * np.clip(ratio, 1 - low, 1 + high))
        d = numbers["new"][i, :n].astype(float) - numbers["ref"][i, :n]
        if variant != "rloo":  # there the KL is in the score
            terms = terms + kl_coef * (np.exp(-d) - 1 + d)
        rows.append(terms)
    if variant == "dapo":
        return np.concatenate(rows).mean()
    if variant == "dr_grpo":
        return np.concatenate(rows).sum() / (ROWS * WIDTH)
    return np.mean([terms.mean() for terms in rows])


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo", "gspo", "rloo"])
def test_denominators_and_ratios_of_each_method(numbers, variant):
    method = "rloo" if variant == "rloo" else "grpo"
    config = _config(method, ppo__clip_low=0.1, ppo__clip_high=0.15)
    config.sampling.max_new_tokens = WIDTH
    if method == "grpo":
        config.grpo.variant = variant
    advantages_B = np.random.default_rng(1).normal(size=ROWS).astype(np.float32)
    experience = _experience(numbers, advantages_B)
    loss, metrics = jax.jit(lambda x: policy_objective(config, x, experience, 0.3))(
        jnp.asarray(np.where(MASK == 1, numbers["new"], np.inf))
    )
    want = _slow(numbers, advantages_B, variant, 0.1, 0.15, 0.3)
    assert float(loss) == pytest.approx(want, rel=1e-5)
    assert float(metrics["policy/loss"]) == float(loss)
    assert 0 < float(metrics["policy/clip_fraction"]) < 1
    # On policy every ratio is 1 and nothing is clipped.
    _, metrics = policy_objective(config, experience.old_logprobs_BR, experience, 0.3)
    assert float(metrics["policy/clip_fraction"]) == 0
    assert float(metrics["policy/ratio_max"]) == 1


@pytest.mark.parametrize("variant", ["grpo", "gspo", "dr_grpo", "dapo"])
def test_masked_and_filling_rows_in_the_denominators(numbers, variant):
    """Two responses were cut off and are not learned from, two more rows only fill the shape.

    TRL: `((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()` over the six rows that it
    would have, `(losses * mask).sum() / (6 * max_completion_length)` for dr_grpo, and for dapo the
    tokens that are left (its pull request 6439).
    """
    config = _config("grpo", grpo__variant=variant, ppo__clip_low=0.1, ppo__clip_high=0.15)
    config.sampling.max_new_tokens = WIDTH
    learned, counted = np.ones(ROWS, np.int32), np.ones(ROWS, np.int32)
    learned[[1, 4, 6, 7]], counted[[6, 7]] = 0, 0
    mask_BR = MASK * learned[:, None]
    experience = _experience(numbers, np.linspace(-1, 1, ROWS, dtype=np.float32)).replace(
        response_mask_BR=jnp.asarray(mask_BR), counted_B=jnp.asarray(counted)
    )
    loss, _ = policy_objective(config, jnp.asarray(numbers["new"]), experience, 0.0)
    log_ratio = np.where(mask_BR, numbers["new"] - numbers["old"], 0)
    lengths = np.maximum(mask_BR.sum(1, keepdims=True), 1)
    if variant == "gspo":
        log_ratio = np.broadcast_to(log_ratio.sum(1, keepdims=True) / lengths, MASK.shape)
    ratio, a = np.exp(log_ratio), np.linspace(-1, 1, ROWS)[:, None]
    losses = np.maximum(-a * ratio, -a * np.clip(ratio, 0.9, 1.15)) * mask_BR
    want = {
        "dapo": losses.sum() / mask_BR.sum(),
        "dr_grpo": losses.sum() / (6 * WIDTH),
    }.get(variant, (losses / lengths).sum() / 6)
    assert float(loss) == pytest.approx(want, rel=1e-5)


def test_advantages_of_rloo_and_grpo(numbers):
    kl = np.where(MASK == 1, numbers["old"] - numbers["ref"], 0).sum(1)
    shaped = (numbers["reward"] - 0.1 * kl).reshape(-1, GROUP)
    rloo = _advantages("rloo", numbers)
    want = [[row[i] - np.delete(row, i).mean() for i in range(GROUP)] for row in shaped]
    np.testing.assert_allclose(rloo[:, 0].reshape(-1, GROUP), want, atol=1e-5)
    np.testing.assert_allclose(rloo[:, 0].reshape(-1, GROUP).sum(1), 0, atol=1e-5)
    # The KL is in the loss: it must not count twice.
    plain = numbers["reward"].reshape(-1, GROUP)
    centred = plain - plain.mean(1, keepdims=True)
    want = centred / (plain.std(1, ddof=1, keepdims=True) + 1e-4)
    grpo = _advantages("grpo", numbers)
    np.testing.assert_allclose(grpo[:, 0].reshape(-1, GROUP), want, atol=1e-5)
    dr_grpo = _advantages("grpo", numbers, scale=False)
    np.testing.assert_allclose(dr_grpo[:, 0].reshape(-1, GROUP), centred, atol=1e-5)
    for found in (rloo, grpo, dr_grpo):  # one number a row, 0 behind its end
        np.testing.assert_array_equal(found, found[:, :1] * MASK)


@pytest.mark.parametrize("baseline", [False, True])
def test_advantages_of_reinforce_pp(numbers, baseline):
    rewards = numbers["reward"].astype(float)
    if baseline:
        rewards = (rewards.reshape(-1, GROUP) - rewards.reshape(-1, GROUP).mean(1)[:, None]).ravel()
    to_go = np.zeros(MASK.shape)
    for i in range(ROWS):
        ahead = rewards[i]
        for t in reversed(range(int(MASK[i].sum()))):
            kl = float(numbers["old"][i, t]) - float(numbers["ref"][i, t])
            ahead -= 0.0 if baseline else 0.1 * kl
            to_go[i, t] = ahead
    real = to_go[MASK == 1]
    want = np.where(MASK == 1, (to_go - real.mean()) / real.std(ddof=1), 0)
    got = _advantages("reinforce_pp", numbers, group_baseline=baseline)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_kl_of_reinforce_with_a_baseline_is_k2_in_the_loss(numbers):
    config = _config("reinforce_pp", ppo__group_baseline=True)
    experience = _experience(numbers, np.zeros(ROWS, np.float32))
    loss, _ = policy_objective(config, jnp.asarray(numbers["new"]), experience, 0.3)
    d = (numbers["new"] - numbers["ref"])[MASK == 1].astype(float)
    assert float(loss) == pytest.approx(0.3 * (d**2 / 2).mean(), rel=1e-4)


def test_online_rpo_sqloo_has_the_gradient_of_rloo_with_the_kl_in_the_score(numbers):
    """beta K / (K - 1) times, on policy: the identity of algorithms with equal names apart."""
    beta = 0.3
    rpo = _config("rpo_online", rpo__distance="sqloo", rpo__beta=beta, rpo__eta=1.0)
    rloo = _config("rloo")
    advantages_BR = _advantages("rloo", numbers, kl_coef=beta)
    experience = _experience(numbers, advantages_BR[:, 0])
    slopes = [
        jax.jit(jax.grad(lambda x, c=config: policy_objective(c, x, experience, beta)[0]))(
            jnp.asarray(numbers["old"])
        )
        for config in (rpo, rloo)
    ]
    np.testing.assert_allclose(
        slopes[0], beta * GROUP / (GROUP - 1) * slopes[1], rtol=1e-4, atol=1e-6
    )
    assert np.abs(slopes[0]).max() > 1e-3 and not np.any(np.asarray(slopes[0])[MASK == 0])


def test_gapo_takes_the_estimator_that_it_is_told(numbers):
    gapo = _config("gapo", ppo__advantage="grpo")
    experience = _experience(numbers, np.ones(ROWS, np.float32))
    one, other = (
        policy_objective(config, jnp.asarray(numbers["new"]), experience, 0.2)[0]
        for config in (gapo, _config("grpo"))
    )
    assert float(one) == float(other)


@pytest.mark.parametrize("method", ["gapo", "grpo", "rloo"])
def test_tokens_of_another_sampler_are_weighted(method, numbers):
    """The gradient of a token is `min(pi_old / pi_sampled, cap)` times what it is without."""
    config = _config(method, sampling__weights="int8", sampling__tis_cap=1.2)
    experience = _experience(numbers, numbers["reward"])
    sampled = numbers["old"] - np.random.default_rng(6).normal(0, 0.3, MASK.shape)
    poisoned = jnp.asarray(np.where(MASK == 1, sampled, np.nan), jnp.float32)

    def gradient(experience):
        new = jnp.asarray(np.where(MASK == 1, numbers["new"], np.nan))
        loss = lambda new: policy_objective(config, new, experience, 0.0)  # noqa: E731
        return jax.grad(loss, has_aux=True)(new)

    plain, without = gradient(experience)
    weighted, metrics = gradient(experience.replace(sampled_logprobs_BR=poisoned))
    weights = np.minimum(np.exp(numbers["old"] - sampled), 1.2)
    clipped = (np.exp(numbers["old"] - sampled) > 1.2)[MASK == 1].mean()
    np.testing.assert_allclose(metrics["tis/clipped"], clipped, rtol=1e-6)
    assert 0.1 < clipped < 0.9 and "tis/clipped" not in without
    if method != "rloo":  # there each token's gradient is that of the row's ratio
        np.testing.assert_allclose(weighted, plain * weights * (MASK == 1), rtol=2e-5, atol=1e-8)
    same, _ = gradient(experience.replace(sampled_logprobs_BR=experience.old_logprobs_BR))
    np.testing.assert_array_equal(same, plain)
