"""What ends a run by itself: numbers that are not finite, a policy far from its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gapo_jax.train.runtime import RunStopped

# By the network that a metric is about: what to lower where its updates leave no numbers.
ONLINE_RATES = {
    "policy": "config.ppo.optim.learning_rate",
    "value": "config.ppo.critic_optim.learning_rate",
    "disc": "config.discriminator.round_learning_rate",
}
WARMUP_RATES = {"disc": "config.discriminator.optim.learning_rate"}
_WATCHED = ("loss", "grad_norm", "weight_norm")


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


def check_kl(kl: float, limit: float, when: str, remedy: str) -> None:
    """Raise RunStopped when the policy has left the reference by more than the limit.

    Args:
        kl: nats a token (k1 estimate).
        limit: `config.ppo.kl_limit`.
        when: such as "round 3", for the message.
        remedy: what to change.
    """
    if not kl <= limit:
        raise RunStopped(
            f"KL to the reference is {kl:.3f} a token in {when}, above "
            f"config.ppo.kl_limit={limit}: the policy is collapsing; {remedy}"
        )
