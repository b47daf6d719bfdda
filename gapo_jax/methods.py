"""The registry of methods: one entry each, and nothing else in the program compares their names.

`method_of(config)` is the entry of a run. A new offline loss is a function in `losses/`, its entry
here with its section of options, a test and a file under configs/.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from gapo_jax import config as configuration
from gapo_jax import losses
from gapo_jax.config.section import Section

Metrics = dict[str, jax.Array]
Rows = Literal["demonstrations", "pairs", "labelled", "scored", "prompts", "preferential prompts"]
Batches = Literal["examples", "texts", "contrast", "refinements"]
_PREFERENCES: tuple[Rows, ...] = ("pairs", "preferential prompts")


@dataclasses.dataclass(frozen=True)
class Method:
    """What the program needs to know of a method.

    Attributes:
        name: the value of `config.method`.
        paper: its arXiv number.
        loop: `online` learns from samples of the present policy, `offline` from given rows.
        rows: what it can learn from (design section 9).
        loss: what an update minimises.
        reference: whether the loss compares the policy with its frozen start.
        critic: whether it trains a value function (gapo: with `ppo.advantage="gae"`).
        adversarial: whether the discriminator is updated in every round.
        options: its section of the configuration, None without one.
        section: the name of that section; "" for the method's own name.
        trains: the network that its rounds are about, which is also what it exports.
        estimator: how an online method turns rewards into an update; None leaves the choice to
            `config.ppo.advantage`.
        batches: what an offline method makes its batches of: `examples` made once of the pairs,
            discriminator `texts`, a prompt in `contrast` to another one, or `refinements` of the
            policy's own answers.
        pairwise: whether an offline loss compares a chosen side with others, so that
            `config.offline.sft_weight` has a chosen side to add.
        contrasts_logits: whether its target is a difference of logits, which a generator that caps
            its logits (final_softcap) cannot give.
        first_stage: of its section, the rounds of a first stage and their constant learning rate.
    """

    name: str
    paper: str
    loop: Literal["online", "offline"]
    rows: tuple[Rows, ...]
    loss: Callable[..., tuple[jax.Array, Metrics]]
    reference: bool = False
    critic: bool = False
    adversarial: bool = False
    options: type[Section] | None = None
    section: str = ""
    trains: Literal["policy", "discriminator"] = "policy"
    estimator: str | None = None
    batches: Batches = "examples"
    pairwise: bool = False
    contrasts_logits: bool = False
    first_stage: Callable[[Any], tuple[int, float]] | None = None

    def section_of(self, config: Any) -> Any:
        """Return the method's section of a configuration, None without one."""
        return getattr(config, self.section or self.name) if self.options else None


def _online(name: str, paper: str, loss: Any, **fields: Any) -> Method:
    """Return an online method: it learns from any prompts, and its KL needs the reference."""
    options: dict[str, Any] = {"rows": ("prompts", "preferential prompts"), "reference": True}
    return Method(name, paper, "online", loss=loss, **(options | fields))


_ENTRIES = (
    _online(
        "gapo",
        "2503.20194",
        losses.ppo_loss,
        rows=("prompts", "preferential prompts", "demonstrations"),
        critic=True,
        adversarial=True,
    ),
    _online("ppo", "1707.06347", losses.ppo_loss, critic=True, estimator="gae"),
    _online("rloo", "2402.14740", losses.ppo_loss, estimator="rloo"),
    _online(
        "grpo",
        "2402.03300",
        losses.ppo_loss,
        estimator="grpo",
        options=configuration.GRPOConfig,
    ),
    _online("reinforce_pp", "2501.03262", losses.ppo_loss, estimator="reinforce_pp"),
    _online(
        "rpo_online",
        "2502.00203",
        losses.rpo_loss,
        estimator="rpo",
        options=configuration.RPOConfig,
        section="rpo",
    ),
    Method(
        "sft",
        "2203.02155",
        "offline",
        ("demonstrations", *_PREFERENCES),
        losses.sft_loss,
    ),
    Method(
        "discriminator",
        "2503.20194",
        "offline",
        (*_PREFERENCES, "labelled", "scored"),
        losses.bce_loss,
        trains="discriminator",
        batches="texts",
    ),
    Method(
        "dpo",
        "2305.18290",
        "offline",
        _PREFERENCES,
        losses.dpo_loss,
        reference=True,
        options=configuration.DPOConfig,
        pairwise=True,
    ),
    Method(
        "kto",
        "2402.01306",
        "offline",
        (*_PREFERENCES, "labelled"),
        losses.kto_loss,
        reference=True,
        options=configuration.KTOConfig,
    ),
    Method(
        "simpo",
        "2405.14734",
        "offline",
        _PREFERENCES,
        losses.simpo_loss,
        options=configuration.SimPOConfig,
        pairwise=True,
    ),
    Method(
        "orpo",
        "2403.07691",
        "offline",
        _PREFERENCES,
        losses.orpo_loss,
        options=configuration.ORPOConfig,
        pairwise=True,
    ),
    Method(
        "rpo",
        "2502.00203",
        "offline",
        (*_PREFERENCES, "scored"),
        losses.rpo_loss,
        reference=True,
        options=configuration.RPOConfig,
        pairwise=True,
    ),
    Method(
        "inverse_q",
        "2408.14874",
        "offline",
        ("prompts", "preferential prompts"),
        losses.inverse_q_loss,
        reference=True,
        options=configuration.InverseQConfig,
        batches="contrast",
        contrasts_logits=True,
    ),
    # Its reference is the policy that its first stage left, whose log-probs a batch brings along.
    Method(
        "sgpo",
        "2507.20181",
        "offline",
        _PREFERENCES,
        losses.dpo_loss,
        options=configuration.SGPOConfig,
        batches="refinements",
        pairwise=True,
        first_stage=lambda sgpo: (sgpo.improver_rounds, sgpo.improver_learning_rate),
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _ENTRIES}


def method_of(config: Any) -> Method:
    """Return the method of a configuration.

    Raises:
        ValueError: there is none of that name; the message gives the nearest one.
    """
    if config.method not in METHODS:
        near = configuration.nearest(config.method, list(METHODS))
        raise ValueError(f"config.method cannot be {config.method!r}{near}")
    return METHODS[config.method]


def estimator(config: Any) -> str:
    """Return how an online method turns rewards into an update: one of `ESTIMATORS`."""
    return method_of(config).estimator or config.ppo.advantage


def has_critic(config: Any) -> bool:
    """Return whether a run trains a value function."""
    return method_of(config).critic and estimator(config) == "gae"


def scores_with_average(config: Any) -> bool:
    """Return whether the moving average of the discriminator gives the rewards."""
    return method_of(config).adversarial and config.discriminator.score_with == "ema"


def asks_discriminator(config: Any) -> bool:
    """Return whether rewards come from a discriminator, which is then warmed up on the pairs."""
    method = method_of(config)
    if method.loop == "online":
        return config.reward.source != "verifier"
    return method.section_of(config) is config.rpo and config.rpo.reward == "discriminator"


def kl_in_loss(config: Any) -> str | None:
    """Return the estimator of the KL term in the policy loss; None where it is in the rewards."""
    chosen = estimator(config)
    if chosen == "reinforce_pp" and config.ppo.group_baseline:
        return "k2"
    return "k3" if chosen == "grpo" else None
