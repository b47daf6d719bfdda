"""Truncated importance weights against their formula in torch, as TRL and verl have it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gapo_jax.losses import importance_weights, ppo_loss

RNG = np.random.default_rng(0)
NEW, OLD, SAMPLED, ADVANTAGES = (
    jnp.asarray(RNG.normal(-2, 0.8, (4, 6)), jnp.float32) for _ in range(4)
)
MASK = jnp.asarray(np.arange(6) < np.array([6, 3, 5, 1])[:, None], jnp.int32)
CAP = 1.5


def torch_loss(new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, weights, share at the cap), over tokens."""
    old, sampled, advantages, mask = (
        torch.tensor(np.asarray(x)) for x in (OLD, SAMPLED, ADVANTAGES, MASK)
    )
    ratio = torch.exp(new - old)
    losses = -torch.min(ratio * advantages, torch.clamp(ratio, 0.8, 1.2) * advantages)
    importance = torch.exp(old - sampled)
    weights = torch.clamp(importance, max=CAP)
    clipped = ((importance > CAP) * mask).sum() / mask.sum()
    return (losses * weights * mask).sum() / mask.sum(), weights, clipped


def our_loss(new: jax.Array) -> tuple[jax.Array, dict]:
    weights, metrics = importance_weights(OLD, SAMPLED, MASK, cap=CAP)
    loss, _ = ppo_loss(new, OLD, ADVANTAGES, MASK, weights_BR=weights)
    return loss, {"weights": weights, **metrics}


def test_loss_gradient_and_metrics_are_those_of_torch() -> None:
    new = torch.tensor(np.asarray(NEW), requires_grad=True)
    loss, weights, clipped = torch_loss(new)
    loss.backward()
    (ours, aux), gradient = jax.value_and_grad(our_loss, has_aux=True)(NEW)
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, new.grad, rtol=1e-5, atol=1e-7)
    real = np.asarray(MASK) > 0
    np.testing.assert_allclose(aux["weights"][real], weights.numpy()[real], rtol=1e-6)
    assert (aux["weights"][~real] == 1).all()
    np.testing.assert_allclose(aux["tis/clipped"], clipped.item(), rtol=1e-6)
    np.testing.assert_allclose(aux["tis/weight_mean"], weights.numpy()[real].mean(), rtol=1e-6)
    assert 0.1 < clipped < 0.9


def test_weights_of_one_change_nothing() -> None:
    weights, metrics = importance_weights(OLD, OLD, MASK, cap=CAP)
    plain, _ = ppo_loss(NEW, OLD, ADVANTAGES, MASK)
    weighted, _ = ppo_loss(NEW, OLD, ADVANTAGES, MASK, weights_BR=weights)
    assert plain == weighted and metrics["tis/clipped"] == 0


def test_log_probs_of_padding_and_wild_ratios_stay_finite() -> None:
    wild = jnp.where(MASK > 0, -500.0, jnp.nan)
    weights, metrics = importance_weights(OLD, wild, MASK, cap=CAP)
    assert (weights[MASK > 0] == CAP).all() and metrics["tis/clipped"] == 1


def test_a_cap_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="The cap must be positive, got 0"):
        importance_weights(OLD, SAMPLED, MASK, cap=0.0)
