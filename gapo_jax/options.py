"""The options of the methods: sections of the configuration, such as `config.dpo`.

The registry (`methods.py`) says which method has which.
"""

from __future__ import annotations

from typing import Annotated, Literal

from gapo_jax.section import (
    AtLeast0,
    AtLeast1,
    AtLeast2,
    NotNegative,
    Positive,
    Range,
    Section,
    Share,
)

Smoothing = Annotated[float, Range(0, 0.4999)]


class GRPOConfig(Section):
    """GRPO (arXiv 2402.03300) and its relatives; clip range and KL weight are `config.ppo`'s.

    | variant | score is divided by the group's deviation | loss is averaged over | ratio |
    |---|---|---|---|
    | grpo | yes | rows of token means | token |
    | dr_grpo (2503.20783) | no | the constant rows x `sampling.max_new_tokens` | token |
    | dapo (2503.14476) | yes | all tokens of the batch | token |
    | gspo (2507.18071) | yes | rows | geometric mean of the row |

    DAPO also sets `ppo.clip_high` (0.28 in the paper), `reward.overlong_tokens`, `mask_truncated`
    (responses cut at the length limit are not learned from) and `dynamic_sampling`: groups whose
    rule rewards are all equal teach nothing and are replaced by groups of further prompts, in up to
    `max_resamples` more batches; what is still missing then stays unlearned. GSPO needs a narrow
    clip range: `ppo.clip_low=3e-4`, `ppo.clip_high=4e-4`.
    """

    variant: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    mask_truncated: bool = False
    dynamic_sampling: bool = False
    max_resamples: AtLeast0 = 3


class DPOConfig(Section):
    """DPO and its variants (losses/preference.py). The log-prob of a sequence is the `sum` over its
    tokens or their `mean` (`reduce`), and the same beta means different things. `auto` is the mean
    for ipo, as in TRL and by its authors, and the sum for the others; NeMo-Aligner has the sum for
    ipo too."""

    variant: Literal["sigmoid", "cdpo", "ipo", "hinge", "robust", "exo"] = "sigmoid"
    beta: Positive = 0.1
    label_smoothing: Smoothing = 0.0
    reduce: Literal["auto", "sum", "mean"] = "auto"

    def check(self) -> None:
        """Raise ValueError for a label smoothing that the variant cannot use."""
        if self.variant in ("cdpo", "exo") and self.label_smoothing == 0:
            raise ValueError(
                f"config.dpo.variant={self.variant!r} needs config.dpo.label_smoothing above 0; "
                "try 0.1 (exo: 0.001), or variant='sigmoid'"
            )
        if self.variant in ("hinge", "ipo") and self.label_smoothing > 0:
            raise ValueError(
                f"config.dpo.variant={self.variant!r} has no label smoothing, but "
                f"config.dpo.label_smoothing={self.label_smoothing}; set it to 0"
            )


class KTOConfig(Section):
    """KTO (losses/kto.py): keep w_D n_D / (w_U n_U) within 1 to 4/3; here n_D = n_U."""

    beta: Positive = 0.1
    desirable_weight: Positive = 1.0
    undesirable_weight: Positive = 1.0


class SimPOConfig(Section):
    """SimPO (losses/preference.py); `gamma` is absolute, the official code divides it by beta."""

    beta: Positive = 2.0
    gamma: float = 1.0
    label_smoothing: Smoothing = 0.0


class ORPOConfig(Section):
    """ORPO (losses/preference.py): the weight of the odds-ratio term."""

    beta: Positive = 0.1


class RPOConfig(Section):
    """RPO (losses/rpo.py): implicit rewards beta log(pi / ref) against explicit ones, eta r*.

    `responses` is K, the sides of an example. `reward` is r*: `verifiers` (the share of the
    prompt's constraints that hold) or `discriminator` (its logit, after a warm-up on the pairs).
    The method `rpo_online` takes K from `config.ppo` and r* from `config.reward` instead.
    """

    distance: Literal["sq", "sqloo", "bwd_kl", "fwd_kl"] = "bwd_kl"
    beta: Positive = 0.2
    eta: float = 1.0
    responses: AtLeast2 = 2
    reward: Literal["verifiers", "discriminator"] = "verifiers"


class InverseQConfig(Section):
    """Inverse-Q*-style learning (losses/inverse_q.py, a reconstruction): the target policy is
    log ref + strength (log ref(. | better) - log ref(. | worse)), renormalised.

    `contrast` names the two conditions. `constraints`: the prompt with its constraints and the task
    without them, on samples that the policy draws in every round. `system`: the prompt under
    `system_prompt` and the plain prompt, on such samples too. `prompts`: the accepted and the
    rejected prompt of a preferential pair, on the pair's response. `clip` bounds the token reward.
    """

    contrast: Literal["constraints", "system", "prompts"] = "constraints"
    strength: Positive = 1.0
    system_prompt: str = "Follow every instruction of the user exactly, down to the smallest one."
    beta: Positive = 1.0
    clip: Positive = 5.0

    def check(self) -> None:
        """Raise ValueError where the contrast lacks one of its conditions."""
        if self.contrast == "system" and not self.system_prompt:
            raise ValueError(
                "config.inverse_q.contrast='system' needs a config.inverse_q.system_prompt, got ''"
            )

    @property
    def signed_strength(self) -> float:
        """The strength, negative where the other condition is the better one: the system prompt."""
        return -self.strength if self.contrast == "system" else self.strength


class SGPOConfig(Section):
    """SGPO-style learning (train/offline/sgpo.py, a reconstruction). For `improver_rounds` of
    `config.rounds` stage 1 trains the policy to refine its own answers too; stage 2 prefers its
    refinements to its answers (DPO with `beta`, the reference being the policy that stage 1 left).

    Templates hold {prompt}, {response} and, for `refine_template`, {reference}. A refinement is
    kept if its normalised edit distance from what it refines lies in [min_edit, max_edit], if it is
    no copy of the reference and nearer to it than the first answer was (stage 1), and if the longer
    of the two has at most `max_length_ratio` times the words of the other (stage 2). Each stage
    asks for at most `prompts` refinements.
    """

    improver_rounds: AtLeast1 = 1
    improver_learning_rate: float = 1e-5
    answer_weight: NotNegative = 1.0
    beta: Positive = 0.1
    prompts: AtLeast2 = 256
    min_edit: Share = 0.05
    max_edit: Share = 0.6
    max_length_ratio: Annotated[float, Range(1)] = 2.0
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

    def check(self) -> None:
        """Raise ValueError for bounds that keep nothing, or a template that lacks a part."""
        if self.min_edit >= self.max_edit:
            raise ValueError(
                f"config.sgpo.min_edit={self.min_edit} must lie below sgpo.max_edit={self.max_edit}"
            )
        _check_template(
            "refine_template", self.refine_template, ("prompt", "response", "reference")
        )
        _check_template("improve_template", self.improve_template, ("prompt", "response"))


def _check_template(name: str, template: str, parts: tuple[str, ...]) -> None:
    missing = [f"{{{part}}}" for part in parts if f"{{{part}}}" not in template]
    if missing:
        raise ValueError(f"config.sgpo.{name} lacks {missing}")
    try:
        template.format(**dict.fromkeys(parts, ""))
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"config.sgpo.{name} is no template of {parts} ({error!r}); write {{{{ for a brace"
        ) from error
