"""The configuration of the offline methods: the loop, each method's own section, their checks."""

# No postponed annotations: the flags of nested sections read the types of the fields.

import dataclasses
import math
from typing import Any

from gapo_jax.config.section import (
    OPTIM_RANGES,
    OPTIMIZERS,
    POSITIVE,
    SCHEDULES,
    OptimConfig,
    Section,
)

# Methods that learn from data made before training (inverse_q and sgpo also sample in between).
OFFLINE_METHODS = (
    "sft",
    "discriminator",
    "dpo",
    "kto",
    "simpo",
    "orpo",
    "rpo",
    "inverse_q",
    "sgpo",
)
# Their loss compares a chosen side with others.
PAIRWISE = ("dpo", "simpo", "orpo", "rpo", "sgpo")
DPO_VARIANTS = ("sigmoid", "cdpo", "ipo", "hinge", "robust", "exo")


@dataclasses.dataclass
class OfflineConfig(Section):
    """The loop of the offline methods: `config.rounds` rounds of `steps_per_round` updates.

    A round is what is logged, evaluated and saved at once. `batch_size` counts examples: pairs for
    the pairwise methods (two rows each, `rpo.responses` for RPO), rows for sft and inverse_q. With
    `accumulate` above 1 the rows of a batch pass through the network in so many parts; the result
    is that of the whole batch. Examples with a response above `max_response_tokens` (end token
    included) are left out. `sft_weight` adds so much of the chosen side's negative log-likelihood
    to a pairwise loss. `length_buckets` as `config.ppo.length_buckets`: the examples of a round are
    cut into batches by the length of their longest side.
    """

    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(learning_rate=5e-6, schedule="cosine", warmup_steps=4)
    )
    steps_per_round: int = 10
    batch_size: int = 16
    accumulate: int = 1
    max_response_tokens: int = 128
    sft_weight: float = 0.0
    length_buckets: int = 1


@dataclasses.dataclass
class DPOConfig(Section):
    """DPO and its variants (losses/preference.py). `reduce` makes a sequence's log-prob the `sum`
    over its tokens or their `mean`: TRL and IPO's authors take the mean for ipo, NeMo-Aligner the
    sum, and the same beta means different things."""

    variant: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    reduce: str = "sum"


@dataclasses.dataclass
class KTOConfig(Section):
    """KTO (losses/kto.py): keep w_D n_D / (w_U n_U) within 1 to 4/3; here n_D = n_U."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


@dataclasses.dataclass
class SimPOConfig(Section):
    """SimPO (losses/preference.py): `gamma` is absolute, the official code's is gamma / beta."""

    beta: float = 2.0
    gamma: float = 1.0
    label_smoothing: float = 0.0


@dataclasses.dataclass
class ORPOConfig(Section):
    """ORPO (losses/preference.py): the weight of the odds-ratio term."""

    beta: float = 0.1


@dataclasses.dataclass
class RPOConfig(Section):
    """RPO (losses/rpo.py): implicit rewards beta log(pi / ref) against explicit ones, eta r*.

    `responses` is K, the sides of an example. `reward` is r*: `verifiers` (the share of the
    prompt's constraints that hold) or `discriminator` (its logit, after a warm-up on the pairs).
    The method `rpo_online` takes K from `config.ppo` and r* from `config.reward` instead.
    """

    distance: str = "bwd_kl"
    beta: float = 0.2
    eta: float = 1.0
    responses: int = 2
    reward: str = "verifiers"


@dataclasses.dataclass
class InverseQConfig(Section):
    """Inverse-Q*-style learning (losses/inverse_q.py, a reconstruction): the target policy is
    log ref + strength (log ref(. | better) - log ref(. | worse)), renormalised.

    `contrast` names the two conditions. `constraints`: the prompt with its constraints against the
    bare task, on samples that the policy draws in every round. `system`: the prompt under
    `system_prompt` against the plain prompt, on such samples. `prompts`: the accepted against the
    rejected prompt of a preferential pair, on the pair's response. `clip` bounds the token reward.
    """

    contrast: str = "constraints"
    strength: float = 1.0
    system_prompt: str = "Follow every instruction of the user exactly, down to the smallest one."
    beta: float = 1.0
    clip: float = 5.0


@dataclasses.dataclass
class SGPOConfig(Section):
    """SGPO-style learning (train/sgpo.py, a reconstruction): stage 1 trains the policy to refine
    its own answers too, for `improver_rounds` of `config.rounds`; stage 2 prefers its refinements
    to its answers (DPO with `beta`, the reference being the policy that stage 1 left).

    Templates hold {prompt}, {response} and, for `refine_template`, {reference}. A refinement is
    kept when its normalised edit distance from what it refines lies in [min_edit, max_edit], when
    it is no copy of the reference and nearer to it than the first answer was (stage 1), and when
    the longer of the two has at most `max_length_ratio` times the words of the other (stage 2).
    Each stage asks for at most `prompts` refinements.
    """

    improver_rounds: int = 1
    improver_learning_rate: float = 1e-5
    answer_weight: float = 1.0
    beta: float = 0.1
    prompts: int = 256
    min_edit: float = 0.05
    max_edit: float = 0.6
    max_length_ratio: float = 2.0
    max_prompt_tokens: int = 320
    refine_template: str = (
        "{prompt}\n\nA first answer:\n{response}\n\nA good answer by someone else:\n{reference}\n\n"
        "Improve the first answer so that it follows every instruction. Keep its content and "
        "style, and give only the improved answer."
    )
    improve_template: str = (
        "{prompt}\n\nA first answer:\n{response}\n\nImprove the first answer so that it follows "
        "every instruction. Give only the improved answer."
    )


OFFLINE_CHOICES: dict[str, tuple[str, ...]] = {
    "data.preference": ("prompts", "responses"),
    "dpo.variant": DPO_VARIANTS,
    "dpo.reduce": ("sum", "mean"),
    "rpo.distance": ("sq", "sqloo", "bwd_kl", "fwd_kl"),
    "rpo.reward": ("verifiers", "discriminator"),
    "inverse_q.contrast": ("constraints", "system", "prompts"),
}
OFFLINE_RANGES: dict[str, tuple[float, float]] = {
    "offline.steps_per_round": (1, math.inf),
    "offline.batch_size": (1, math.inf),
    "offline.accumulate": (1, math.inf),
    "offline.max_response_tokens": (2, math.inf),
    "offline.sft_weight": (0, math.inf),
    "offline.length_buckets": (1, math.inf),
    "dpo.beta": POSITIVE,
    "dpo.label_smoothing": (0, 0.4999),
    "kto.beta": POSITIVE,
    "kto.desirable_weight": POSITIVE,
    "kto.undesirable_weight": POSITIVE,
    "simpo.beta": POSITIVE,
    "simpo.label_smoothing": (0, 0.4999),
    "orpo.beta": POSITIVE,
    "rpo.beta": POSITIVE,
    "rpo.responses": (2, math.inf),
    "inverse_q.beta": POSITIVE,
    "inverse_q.strength": POSITIVE,
    "inverse_q.clip": POSITIVE,
    "sgpo.improver_rounds": (1, math.inf),
    "sgpo.beta": POSITIVE,
    "sgpo.prompts": (2, math.inf),
    "sgpo.answer_weight": (0, math.inf),
    "sgpo.min_edit": (0, 1),
    "sgpo.max_edit": (0, 1),
    "sgpo.max_length_ratio": (1, math.inf),
}


for _path in ("ppo.optim", "ppo.critic_optim", "discriminator.optim", "offline.optim"):
    OFFLINE_CHOICES |= {f"{_path}.schedule": SCHEDULES, f"{_path}.optimizer": OPTIMIZERS}
    OFFLINE_RANGES |= {f"{_path}.{_name}": _range for _name, _range in OPTIM_RANGES.items()}


def learns_from_pairs(config: Any) -> bool:
    """Return whether a method's examples are made once, of the preferential pairs."""
    if config.method == "inverse_q":
        return config.inverse_q.contrast == "prompts"
    return config.method in ("sft", "dpo", "kto", "simpo", "orpo", "rpo")


def check_offline(config: Any) -> None:
    """Check what an offline method can use, before anything is loaded.

    Raises:
        ValueError: names the key, what it holds and what would work.
    """
    if config.method not in OFFLINE_METHODS:
        return
    offline, method = config.offline, config.method
    if offline.batch_size % offline.accumulate:
        raise ValueError(
            f"config.offline.accumulate={offline.accumulate} must divide "
            f"config.offline.batch_size={offline.batch_size}"
        )
    if method != "discriminator" and offline.batch_size > config.data.pairs:
        raise ValueError(
            f"config.offline.batch_size={offline.batch_size} asks {method} for more examples than "
            f"config.data.pairs={config.data.pairs} gives; lower the one or raise the other"
        )
    if method == "kto" and offline.batch_size < 2:
        raise ValueError(
            f"config.offline.batch_size={offline.batch_size} gives KTO no second pair for its KL "
            "term, which puts each prompt beside the response of another; set it to 2 or more "
            "(config.offline.accumulate saves memory instead)"
        )
    if offline.length_buckets > 1:
        _check_buckets(config)
    if offline.sft_weight and method not in PAIRWISE:
        raise ValueError(
            f"config.offline.sft_weight={offline.sft_weight} adds the chosen side's likelihood to "
            f"the loss of {PAIRWISE}, but config.method={method!r}; set it to 0"
        )
    for name, check in (("dpo", _check_dpo), ("rpo", _check_rpo), ("sgpo", _check_sgpo)):
        if method == name:
            check(config)
    if method == "inverse_q":
        _check_inverse_q(config)


def _check_buckets(config: Any) -> None:
    reason = ""
    if config.method == "discriminator":
        reason = "the discriminator's batches are of like length anyway"
    elif config.method == "inverse_q" and not learns_from_pairs(config):
        reason = "the samples of inverse_q are as wide as they were drawn"
    elif config.data.curriculum:
        reason = "config.data.curriculum orders the examples in another way"
    if reason:
        raise ValueError(
            f"config.offline.length_buckets={config.offline.length_buckets} puts examples of like "
            f"length together, but {reason}; set length_buckets=1"
        )


def _check_dpo(config: Any) -> None:
    dpo = config.dpo
    if dpo.variant in ("cdpo", "exo") and dpo.label_smoothing == 0:
        raise ValueError(
            f"config.dpo.variant={dpo.variant!r} needs config.dpo.label_smoothing above 0; "
            "try 0.1 (exo: 0.001), or variant='sigmoid'"
        )
    if dpo.variant in ("hinge", "ipo") and dpo.label_smoothing > 0:
        raise ValueError(
            f"config.dpo.variant={dpo.variant!r} has no label smoothing, but "
            f"config.dpo.label_smoothing={dpo.label_smoothing}; set it to 0"
        )


def _check_rpo(config: Any) -> None:
    rpo = config.rpo
    if rpo.distance == "sq" and rpo.responses > 2:
        raise ValueError(
            f"config.rpo.distance='sq' is for 2 sides, but config.rpo.responses={rpo.responses}; "
            "its form for more of them is 'sqloo'"
        )
    if rpo.responses > config.data.responses_per_task and config.data.preference == "responses":
        raise ValueError(
            f"config.rpo.responses={rpo.responses} wants more answers to a task than "
            f"config.data.responses_per_task={config.data.responses_per_task} samples; raise it"
        )


def _check_inverse_q(config: Any) -> None:
    contrast = config.inverse_q.contrast
    if contrast == "system" and not config.inverse_q.system_prompt:
        raise ValueError(
            "config.inverse_q.contrast='system' needs a config.inverse_q.system_prompt, got ''"
        )
    if contrast == "prompts" and config.data.preference != "prompts":
        raise ValueError(
            "config.inverse_q.contrast='prompts' compares two prompts of one response, which "
            f"config.data.preference={config.data.preference!r} does not give; set it to 'prompts'"
        )


def _check_sgpo(config: Any) -> None:
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
    if sgpo.min_edit >= sgpo.max_edit:
        raise ValueError(
            f"config.sgpo.min_edit={sgpo.min_edit} must lie below sgpo.max_edit={sgpo.max_edit}"
        )
    for name, wanted in (
        ("refine_template", ("{prompt}", "{response}", "{reference}")),
        ("improve_template", ("{prompt}", "{response}")),
    ):
        template = getattr(sgpo, name)
        missing = [part for part in wanted if part not in template]
        if missing:
            raise ValueError(f"config.sgpo.{name} lacks {missing}")
        try:
            template.format(**{part[1:-1]: "" for part in wanted})
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"config.sgpo.{name} is no template of {wanted} ({error!r}); write {{{{ for a brace"
            ) from error
