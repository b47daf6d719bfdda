"""The registry of methods: one entry each, and nothing else in the program compares their names.

`method_of(config)` is the entry of a run. A new offline loss touches four files: the loss (a
function of `losses.offline.RowLogprobs` and keyword arguments), its entry here with its section of
options, its test, and its file under configs/. The section becomes a part of every configuration,
`config.NAME`, and its fields flags, `--config.NAME.beta=0.2`.

Losses are named by module and function, so that a configuration can be read, and a wrong flag be
reported, before JAX is loaded.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from gapo_jax import options
from gapo_jax.section import Section, nearest

if TYPE_CHECKING:
    import jax

    from gapo_jax.losses.offline import RowLogprobs
    from gapo_jax.types import Metrics

Rows = Literal["demonstrations", "pairs", "labelled", "scored", "prompts", "preferential prompts"]
Batches = Literal["examples", "texts", "samples", "refinements"]
Layout = Literal["sides", "accepted", "halves", "conditions"]
Estimator = Literal["gae", "rloo", "grpo", "reinforce_pp", "rpo"]


@dataclasses.dataclass(frozen=True)
class Method:
    """What the program knows of a method.

    Attributes:
        name: the value of `config.method`.
        paper: its arXiv number.
        loop: `online` learns from samples of the present policy, `offline` from given rows.
        rows: what it can learn from (design section 9).
        loss_name: what an update minimises, as MODULE.FUNCTION of `gapo_jax.losses`. Of an offline
            method it is `loss(rows, *, ...)` as in `losses/offline.py`, whose keywords are fields
            of `options` and, if it is pairwise, `sft_weight`.
        reference: whether the loss compares the policy with its frozen start.
        critic: whether it can train a value function (see `has_critic`).
        adversarial: whether the discriminator is updated in every round.
        options: its section of the configuration, None without one.
        section: the name of that section; "" for the method's own name.
        estimator: how an online method turns rewards into an update; None leaves the choice to
            `config.ppo.advantage`.
        trains: the network that its rounds are about, which is also the one that is exported.
        batches: what an offline method makes its batches of: `examples` made once of the pairs,
            `texts` of the discriminator, `samples` drawn in every round, `refinements` of the
            policy's own answers; or a function of the options that says which.
        layout: how the sides of examples lie in a batch: `sides` next to each other, the `accepted`
            ones alone, in `halves` (all accepted ones first), or the first ones with the same
            responses under other `conditions`.
        sides: how many rows an example has in a batch, or a function of the options.
        pairwise: whether an offline loss compares a chosen side with others and adds the likelihood
            of the former, with the weight `config.offline.sft_weight`.
        contrasts_logits: whether its target is a difference of logits, which a generator that caps
            them (final_softcap) does not have.
        first_stage: of its options, the rounds of a first stage and their constant learning rate.
        check: raises ValueError where the configuration cannot be run by this method.
    """

    name: str
    paper: str
    loop: Literal["online", "offline"]
    rows: tuple[Rows, ...]
    loss_name: str
    reference: bool = False
    critic: bool = False
    adversarial: bool = False
    options: type[Section] | None = None
    section: str = ""
    estimator: Estimator | None = None
    trains: Literal["policy", "discriminator"] = "policy"
    batches: Batches | Callable[[Any], Batches] = "examples"
    layout: Layout = "sides"
    sides: int | Callable[[Any], int] = 2
    pairwise: bool = False
    contrasts_logits: bool = False
    first_stage: Callable[[Any], tuple[int, float]] | None = None
    check: Callable[[Any], None] = lambda config: None

    @functools.cached_property
    def loss(self) -> Callable[..., tuple[jax.Array, Metrics]]:
        """What an update minimises."""
        module, _, function = self.loss_name.rpartition(".")
        return getattr(importlib.import_module(f"gapo_jax.losses.{module}"), function)

    @functools.cached_property
    def keywords(self) -> tuple[str, ...]:
        """The keyword arguments of a loss of rows; () of a loss that is called in another way.

        Raises:
            TypeError: nothing gives one of them a value.
        """
        if self.loop == "online" or self.trains == "discriminator":
            return ()
        parameters = inspect.signature(self.loss).parameters.items()
        keywords = tuple(name for name, p in parameters if p.kind is p.KEYWORD_ONLY)
        fields = dataclasses.fields(self.options) if self.options else ()
        known = {*(field.name for field in fields), *(("sft_weight",) if self.pairwise else ())}
        if missing := set(keywords) - known:
            raise TypeError(
                f"the loss of {self.name!r} takes {sorted(missing)} by keyword, but its options "
                f"are {sorted(known)}"
            )
        if self.pairwise and "sft_weight" not in keywords:
            raise TypeError(f"the loss of {self.name!r} is pairwise, but takes no sft_weight")
        return keywords

    def section_of(self, config: Any) -> Any:
        """Return the method's section of a configuration, None without one."""
        return getattr(config, self.section or self.name) if self.options else None


def refuse_curriculum(config: Any, reason: str) -> None:
    """Raise ValueError, with the reason, if pairs are to be ordered by difficulty."""
    if config.data.curriculum:
        raise ValueError(
            f"config.data.curriculum={config.data.curriculum} orders preferential pairs by "
            f"difficulty, but {reason}; set curriculum=0"
        )


def refuse_buckets(config: Any, reason: str) -> None:
    """Raise ValueError, with the reason, if examples are to be cut into batches by length."""
    if config.offline.length_buckets > 1:
        raise ValueError(
            f"config.offline.length_buckets={config.offline.length_buckets} puts examples of like "
            f"length together, but {reason}; set length_buckets=1"
        )


def _check_gapo(config: Any) -> None:
    if not asks_discriminator(config):
        others = [m.name for m in METHODS.values() if m.loop == "online" and not m.adversarial]
        asked, remedy = "source='verifier'", "set source to 'discriminator' or 'mix'"
        if config.reward.sources:
            asked, remedy = f"sources={config.reward.sources}", "add 'discriminator'"
        raise ValueError(
            f"config.method='gapo' trains a discriminator that config.reward.{asked} never asks; "
            f"{remedy}, or take a method that leaves the discriminator alone: {others}"
        )


def _check_sft(config: Any) -> None:
    refuse_curriculum(
        config, "sft learns from accepted texts alone, which are neither near nor far misses"
    )


def _check_discriminator(config: Any) -> None:
    refuse_buckets(config, "the discriminator's batches are of like length anyway")


def _check_kto(config: Any) -> None:
    if config.offline.batch_size < 2:
        raise ValueError(
            f"config.offline.batch_size={config.offline.batch_size} gives KTO no second pair for "
            "its KL term, which puts each prompt beside the response of another; set it to 2 or "
            "more (config.offline.accumulate saves memory instead)"
        )


def _check_rpo(config: Any) -> None:
    responses, sampled = config.rpo.responses, config.data.responses_per_task
    if config.rpo.distance == "sq" and responses > 2:
        raise ValueError(
            f"config.rpo.distance='sq' is for 2 sides, but config.rpo.responses={responses}; "
            "its form for more of them is 'sqloo'"
        )
    if responses > sampled and config.data.preference == "responses":
        raise ValueError(
            f"config.rpo.responses={responses} wants more answers to a task than "
            f"config.data.responses_per_task={sampled} samples; raise it"
        )


def _check_inverse_q(config: Any) -> None:
    if config.inverse_q.contrast != "prompts":
        refuse_buckets(config, "the samples of inverse_q are as wide as they were drawn")
        refuse_curriculum(
            config,
            "inverse_q learns from its own samples; config.inverse_q.contrast='prompts' works",
        )
    elif config.data.preference != "prompts":
        raise ValueError(
            "config.inverse_q.contrast='prompts' compares two prompts of one response, which "
            f"config.data.preference={config.data.preference!r} does not give; set it to 'prompts'"
        )


def _check_sgpo(config: Any) -> None:
    refuse_curriculum(config, "sgpo makes its own pairs")
    sgpo = config.sgpo
    if sgpo.prompts < config.offline.batch_size:
        raise ValueError(
            f"config.sgpo.prompts={sgpo.prompts} gives fewer comparisons than a batch holds "
            f"(config.offline.batch_size={config.offline.batch_size}); raise it"
        )
    if sgpo.improver_rounds >= config.rounds > 0:
        raise ValueError(
            f"config.sgpo.improver_rounds={sgpo.improver_rounds} leaves none of config.rounds="
            f"{config.rounds} for the preference stage; raise rounds"
        )
    if sgpo.max_prompt_tokens < config.data.max_prompt_tokens:
        raise ValueError(
            f"config.sgpo.max_prompt_tokens={sgpo.max_prompt_tokens} must be at least "
            f"config.data.max_prompt_tokens={config.data.max_prompt_tokens}: a prompt to improve "
            "an answer holds the prompt itself"
        )


# What all online methods share: any prompts will do, and the KL term needs the reference.
_online = functools.partial(
    Method, loop="online", rows=("prompts", "preferential prompts"), reference=True
)
_offline = functools.partial(Method, loop="offline", rows=("pairs", "preferential prompts"))
_pairwise = functools.partial(_offline, pairwise=True)
_METHODS = (
    _online(
        "gapo",
        "2503.20194",
        rows=("prompts", "preferential prompts", "demonstrations"),
        loss_name="policy.ppo_loss",
        critic=True,
        adversarial=True,
        check=_check_gapo,
    ),
    _online("ppo", "1707.06347", loss_name="policy.ppo_loss", estimator="gae", critic=True),
    _online("rloo", "2402.14740", loss_name="policy.ppo_loss", estimator="rloo"),
    _online(
        "grpo",
        "2402.03300",
        loss_name="policy.ppo_loss",
        estimator="grpo",
        options=options.GRPOConfig,
    ),
    _online("reinforce_pp", "2501.03262", loss_name="policy.ppo_loss", estimator="reinforce_pp"),
    _online(
        "rpo_online",
        "2502.00203",
        loss_name="rpo.rpo_loss",
        estimator="rpo",
        options=options.RPOConfig,
        section="rpo",
    ),
    _offline(
        "sft",
        "2203.02155",
        rows=("demonstrations", "pairs", "labelled", "preferential prompts"),
        loss_name="offline.sft",
        layout="accepted",
        sides=1,
        check=_check_sft,
    ),
    _offline(
        "discriminator",
        "2503.20194",
        rows=("pairs", "labelled", "scored", "preferential prompts"),
        loss_name="discriminator.bce_loss",
        trains="discriminator",
        batches="texts",
        check=_check_discriminator,
    ),
    _pairwise(
        "dpo", "2305.18290", loss_name="offline.dpo", reference=True, options=options.DPOConfig
    ),
    _offline(
        "kto",
        "2402.01306",
        rows=("pairs", "labelled", "preferential prompts"),
        loss_name="offline.kto_rows",
        reference=True,
        options=options.KTOConfig,
        layout="halves",
        check=_check_kto,
    ),
    _pairwise("simpo", "2405.14734", loss_name="offline.simpo", options=options.SimPOConfig),
    _pairwise("orpo", "2403.07691", loss_name="offline.orpo", options=options.ORPOConfig),
    _pairwise(
        "rpo",
        "2502.00203",
        rows=("pairs", "scored", "preferential prompts"),
        loss_name="offline.rpo_sides",
        reference=True,
        options=options.RPOConfig,
        sides=lambda rpo: rpo.responses,
        check=_check_rpo,
    ),
    _offline(
        "inverse_q",
        "2408.14874",
        rows=("prompts", "preferential prompts"),
        loss_name="offline.inverse_q_rows",
        reference=True,
        options=options.InverseQConfig,
        batches=lambda inverse_q: "examples" if inverse_q.contrast == "prompts" else "samples",
        layout="conditions",
        sides=1,
        contrasts_logits=True,
        check=_check_inverse_q,
    ),
    # Its reference is the policy that the first stage left, whose log-probs a batch brings along.
    _pairwise(
        "sgpo",
        "2507.20181",
        loss_name="offline.sgpo",
        options=options.SGPOConfig,
        batches="refinements",
        first_stage=lambda sgpo: (sgpo.improver_rounds, sgpo.improver_learning_rate),
        check=_check_sgpo,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _METHODS}


def option_sections() -> dict[str, type[Section]]:
    """Return the sections of options by their name in the configuration."""
    return {m.section or m.name: m.options for m in METHODS.values() if m.options}


def unused_options(config: Any) -> set[str]:
    """Return the names of the sections of options that the run does not read."""
    method = method_of(config)
    # The estimator of an online method may be that of another one.
    used = [m for m in METHODS.values() if m is method or m.loop == method.loop == "online"]
    return set(option_sections()) - {m.section or m.name for m in used}


def method_of(config: Any) -> Method:
    """Return the method of a configuration.

    Raises:
        ValueError: there is none of that name; the message gives the nearest one.
    """
    if config.method not in METHODS:
        near = nearest(config.method, METHODS)
        raise ValueError(f"config.method cannot be {config.method!r}{near}")
    return METHODS[config.method]


def offline_loss(config: Any) -> Callable[[RowLogprobs], tuple[jax.Array, Metrics]]:
    """Return the loss of an offline method with the options that it takes by keyword."""
    method = method_of(config)
    section = method.section_of(config)
    values = {
        name: config.offline.sft_weight if name == "sft_weight" else getattr(section, name)
        for name in method.keywords
    }
    return functools.partial(method.loss, **values)


def batches_of(config: Any) -> Batches:
    """Return what an offline method makes its batches of."""
    method = method_of(config)
    return method.batches(method.section_of(config)) if callable(method.batches) else method.batches


def sides_of(config: Any) -> int:
    """Return how many rows an example of an offline method has in a batch."""
    method = method_of(config)
    return method.sides(method.section_of(config)) if callable(method.sides) else method.sides


def estimator(config: Any) -> str:
    """Return how an online method turns rewards into an update."""
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
        return "discriminator" in config.reward.asked
    return getattr(method.section_of(config), "reward", "") == "discriminator"


def needs_pairs(config: Any) -> bool:
    """Return whether anything in a run learns from pairs, or samples for their prompts; they are
    made or read first then."""
    method = method_of(config)
    if method.loop == "offline" or method.adversarial:
        return True
    warmed_up = asks_discriminator(config) and config.discriminator.warmup_epochs > 0
    asked = config.discriminator.generated_prompts == "pairs"
    return warmed_up or asked or config.ppo.sft_coef > 0


def kl_in_loss(config: Any) -> str | None:
    """Return the estimator of the KL term in the policy loss; None where it is in the rewards."""
    chosen = estimator(config)
    if chosen == "reinforce_pp" and config.ppo.group_baseline:
        return "k2"
    return "k3" if chosen == "grpo" else None
