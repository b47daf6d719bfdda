"""What ends a run by itself: numbers that are not finite, a policy far from its reference, weights
that are out of all proportion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gapo_jax.config import DiscriminatorConfig
from gapo_jax.train.runtime import RunStopped
from gapo_jax.train.state import GAPOState

# By the network that a metric is about: what to lower where its updates leave no numbers.
ONLINE_RATES = {
    "policy": "config.ppo.optim.learning_rate",
    "value": "config.ppo.critic_optim.learning_rate",
    "disc": "config.discriminator.round_learning_rate",
}
OFFLINE_RATES = {
    "policy": "config.offline.optim.learning_rate",
    "disc": "config.discriminator.optim.learning_rate",
}
# Under which of these names the networks of a state stand there.
_NETWORKS = {"policy": "policy", "critic": "value", "discriminator": "disc"}
# Weights whose norm grows by more than this factor in one round have moved by nine times their norm
# or more. Updates that teach anything move them by a small part of it.
MOST_GROWTH = 10.0
_WATCHED = ("loss", "grad_norm", "weight_norm")


def warmup_rates(config: DiscriminatorConfig) -> dict[str, str]:
    """Return what to lower where the discriminator's warm-up leaves no numbers: its rate goes from
    that of the optimiser to that of the rounds, so it is the higher of the two."""
    round_is_higher = config.round_learning_rate > config.optim.learning_rate
    name = "round_learning_rate" if round_is_higher else "optim.learning_rate"
    return {"disc": f"config.discriminator.{name}"}


def check_finite(metrics: Mapping[str, float], when: str, rates: Mapping[str, str]) -> None:
    """Raise RunStopped when a loss, or the norm of a gradient or of weights, is not finite.

    Args:
        metrics: by name, `NETWORK/WHAT`; a network without a rate is not watched.
        when: such as "round 3", for the message.
        rates: the configuration key to lower, by network.
    """
    # A loss is named before the norms, which it has made what they are.
    for what in _WATCHED:
        for network, rate in rates.items():
            name = f"{network}/{what}"
            if not math.isfinite(metrics.get(name, 0.0)):
                raise RunStopped(f"{name} is {metrics[name]} in {when}; lower {rate}")


def norms_of(state: GAPOState) -> dict[str, tuple[float, float]]:
    """Return the 2-norm of the parameters and that of the optimiser's moments, by network."""
    pending = {name: _norms(getattr(state, name)) for name in _NETWORKS if getattr(state, name)}
    return {name: (float(params), float(moments)) for name, (params, moments) in pending.items()}


@jax.jit
def _norms(network: Any) -> tuple[jax.Array, jax.Array]:
    moments = [
        leaf for leaf in jax.tree.leaves(network.opt_state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]  # fmt: skip
    return optax.tree.norm(network.params), optax.tree.norm(moments)


def check_networks(
    before: Mapping[str, tuple[float, float]],
    state: GAPOState,
    when: str,
    rates: Mapping[str, str],
) -> None:
    """Raise RunStopped for networks that must not be saved as good: parameters or moments that are
    not finite, or parameters that have grown `MOST_GROWTH`-fold.

    What the last update of a round has made of them is in no loss yet.

    Args:
        before: `norms_of` the state at the start of the round.
        state: at its end.
        when: such as "round 3", for the message.
        rates: the configuration key to lower, by network, as in `check_finite`.
    """
    for name, (params, moments) in norms_of(state).items():
        rate = rates.get(_NETWORKS[name])
        if rate is None:
            continue
        for what, norm in (("parameters", params), ("moments", moments)):
            if not math.isfinite(norm):
                raise RunStopped(
                    f"the norm of the {name}'s {what} is {norm} after {when}; lower {rate}"
                )
        start = before[name][0]
        if params > MOST_GROWTH * max(start, 1e-6):
            raise RunStopped(
                f"the norm of the {name}'s parameters grew from {start:.3g} to {params:.3g} in "
                f"{when}, which is no learning; lower {rate}"
            )


def check_kl(kl: float, limit: float, when: str, remedy: str) -> None:
    """Raise RunStopped when the policy has left the reference by more than the limit; the round
    has not updated it yet, so the state that the round began with is no good one.

    Args:
        kl: nats a token (k1 estimate).
        limit: `config.ppo.kl_limit`.
        when: such as "round 3", for the message.
        remedy: what to change.
    """
    if not kl <= limit:
        raise RunStopped(
            f"KL to the reference is {kl:.3f} a token in {when}, above "
            f"config.ppo.kl_limit={limit}: the policy is collapsing; {remedy}",
            start_is_good=False,
        )
