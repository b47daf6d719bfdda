"""The sections of the rounds: discriminator, reward and policy update.

A method that learns from its own samples is two choices: how rewards become a policy update (the
estimator), and whether the discriminator goes on learning (adversarial).

| `config.method` | estimator | discriminator |
|---|---|---|
| gapo | `ppo.advantage` (`gae` unless told) | updated in every round |
| ppo | gae | as its warm-up left it |
| rloo, grpo, reinforce_pp | of that name | as its warm-up left it |
| rpo_online | rpo | as its warm-up left it |

So critic-free GAPO is `method=gapo` with another `ppo.advantage`, and every other name is the same
update with the rewards of a frozen discriminator or of other sources (`reward.sources`).
"""

# The flags of nested sections read the types of the fields (`gapo_jax/section.py`).

import dataclasses
from typing import Annotated, Literal

from gapo_jax.config.optim import OptimConfig
from gapo_jax.config.reward_sources import parse_sources
from gapo_jax.methods import Estimator
from gapo_jax.section import AtLeast0, AtLeast1, NotNegative, Positive, Range, Section, Share


class DiscriminatorConfig(Section):
    """The discriminator's warm-up and its update in every round (Algorithm 1 of GAPO).

    `label_policy` is the target of generated text: `paper` (0), `soft` (`soft_label`), `verified`
    (1 if every constraint holds, else 0), `drop_verified` (text that satisfies all of them is left
    out) or `demonstration` (0, and the real texts of a round are the data's own responses to the
    very prompts that were sampled for, with the target 1; arXiv 2511.10643). A response that
    repeats itself (share of repeated word 3-grams above `max_repetition`) never counts as verified:
    a postscript written nine times over satisfies its constraint too. `generated_fraction` is the
    share of generated text in a round's batch, `replay_fraction` the share of that which comes from
    earlier rounds. An update is skipped when the accuracy on the fresh batch is above `gate_high`,
    and doubled below `gate_low`; `updates_per_round=0` leaves the discriminator as it is, which
    makes gapo into ppo. `frozen_layers` of the encoder (from the bottom, and the embeddings with
    them) keep their pretrained weights. With `accumulate` above 1 the texts of a batch pass through
    the network in that number of microbatches, without a change of the result.

    `generated_prompts` says which prompts a round samples responses for, by any online method.
    `rollouts`: prompts of their own (`data.prompts` of them). `pairs`, as in Algorithm 1: accepted
    prompts of the training pairs, and the real texts of the round stand under the same prompts, so
    that a prompt does not tell generated text from real text; the metric `disc/prompt_auc` says how
    well it does.

    `score_with` names the snapshot that gives the round's rewards: `pre` or `post` the round's
    update, or `ema`, the exponential moving average of the snapshots after each round (beginning
    with the warm-up's), of which `ema_decay` stays in every round.
    `loss` is `bce` (Eq. 6) or `bradley_terry`, which compares two texts and fixes only the
    difference of their scores. `gradient_penalty` is gamma of R1 (arXiv 1801.04406, Eq. 9),
    gamma / 2 times the squared gradient of the logit by the embedded accepted text.
    """

    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(learning_rate=1.5e-4, b2=0.999, weight_decay=0.01)
    )
    max_tokens: Annotated[int, Range(8)] = 192
    batch_size: AtLeast1 = 32
    accumulate: AtLeast1 = 1
    warmup_epochs: AtLeast0 = 2
    updates_per_round: AtLeast0 = 5
    round_learning_rate: NotNegative = 5e-5
    loss: Literal["bce", "bradley_terry"] = "bce"
    label_policy: Literal["paper", "soft", "verified", "drop_verified", "demonstration"] = (
        "verified"
    )
    soft_label: Share = 0.2
    max_repetition: Share = 0.2
    positive_label: Annotated[float, Range(0.5, 1)] = 1.0
    generated_prompts: Literal["rollouts", "pairs"] = "rollouts"
    generated_fraction: Share = 0.6
    replay_fraction: Share = 0.25
    replay_capacity: AtLeast0 = 2000
    gate_high: Share = 1.0
    gate_low: Share = 0.0
    gradient_penalty: NotNegative = 0.0
    balance_classes: bool = True
    freeze_embeddings: bool = True
    frozen_layers: AtLeast0 = 0
    dropout: float = 0.0
    score_with: Literal["pre", "post", "ema"] = "pre"
    ema_decay: Share = 0.5

    def check(self) -> None:
        """Raise ValueError for options that would have no effect, or exclude each other."""
        for name in ("schedule", "warmup_steps", "final_fraction"):
            if getattr(self.optim, name) != getattr(OptimConfig(), name):
                raise ValueError(
                    f"config.discriminator.optim.{name}={getattr(self.optim, name)!r} would have "
                    "no effect: the rate climbs over a tenth of the warm-up and falls to "
                    "config.discriminator.round_learning_rate, which the rounds keep; set that"
                )
        if self.label_policy == "demonstration" and self.generated_prompts != "pairs":
            raise ValueError(
                "config.discriminator.label_policy='demonstration' sets the data's own responses "
                "against those that were sampled for the same prompts: set "
                "config.discriminator.generated_prompts='pairs' (got "
                f"{self.generated_prompts!r})"
            )
        if self.gate_low > self.gate_high:
            raise ValueError(
                f"config.discriminator.gate_low={self.gate_low} (updates are doubled below it) "
                f"must not exceed gate_high={self.gate_high} (they are skipped above it)"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"config.discriminator.accumulate={self.accumulate} must divide "
                f"config.discriminator.batch_size={self.batch_size}"
            )
        if self.accumulate > 1 and self.dropout:
            raise ValueError(
                f"config.discriminator.dropout={self.dropout} would drop the same units in every "
                "microbatch; set it to 0, or config.discriminator.accumulate="
                f"{self.accumulate} to 1"
            )
        if self.loss == "bradley_terry":
            self._check_pairs()

    def _check_pairs(self) -> None:
        if self.label_policy == "soft" or self.positive_label != 1:
            raise ValueError(
                "config.discriminator.loss='bradley_terry' says which of two texts is better and "
                "has no targets to soften: set label_policy to 'paper', 'verified' or "
                f"'drop_verified' (got {self.label_policy!r}) and positive_label to 1 (got "
                f"{self.positive_label})"
            )
        if self.batch_size % 2:
            raise ValueError(
                "config.discriminator.loss='bradley_terry' fills batches with pairs: "
                f"config.discriminator.batch_size must be even, got {self.batch_size}"
            )


class RewardConfig(Section):
    """Reward = the combined score of a response, standardised and clipped.

    `sources` names what gives scores, one or several of:

    | source | score |
    |---|---|
    | verifier | the rule reward of the row's constraints |
    | discriminator | the discriminator's logit (its probability with `squash="sigmoid"`) |
    | model:PATH-or-hub-id | the logit of a frozen reward model |
    | file.py:function, package.module:function | what a Python function returns, as in TRL |

    `weights` has a number for each of them; () is 1 for all. `combine` says how they become one
    score: the weighted `sum`; `normalise_then_sum` (GDPO, arXiv 2601.05242), where each source is
    normalised among the samples of a prompt, and the weighted sum over the round; `stratified`
    (HERO, arXiv 2510.07242), where the other sources order the responses to a prompt that have
    equal verdicts, within `band` to either side of the verdict, and never overrule one. Verdicts
    come from the `verifier` or, where it is not named, from the first function.

    Without `sources`, `source` is the short form: the `discriminator`, the `verifier`, or a `mix`
    of probability and rule reward, the latter with `verifier_weight`. The rule reward is the
    `share` of the prompt's constraints that hold, or 1 where `all` of them do; text that repeats
    itself gets 0 (`discriminator.max_repetition`).

    A call of a function may take `timeout_s` seconds. Rows for which it fails (an exception, no
    number, too much time, a dead process) are counted and get `floor`, or the lowest score that
    the function gave in the round if that is lower; with `strict` the run stops instead.

    `standardise` takes mean and deviation from all rounds so far (`running`), this round
    (`batch`) or the samples of the same prompt (`group`); `none` leaves the score as it is.
    `group_eps` is added to the deviation of a prompt's samples, in units of the score: where it is
    much larger than what sets equal answers apart, noise is not blown up to a full reward (for
    logits take more than the default, which suits probabilities; GRPO and TRL have 1e-4).
    `missing_eos_penalty` comes off the reward of a response that did not end within
    `sampling.max_new_tokens`, in units of the rewards' deviation (of the score's own, with `none`).
    `overlong_tokens` before that limit the score begins to fall, by 1 at the limit (DAPO's soft
    punishment, before the standardisation); 0 leaves it alone.
    """

    sources: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    combine: Literal["sum", "normalise_then_sum", "stratified"] = "sum"
    band: Annotated[float, Range(1e-6, 0.5)] = 0.1
    timeout_s: Annotated[float, Range(1e-3)] = 60.0
    floor: float = 0.0
    strict: bool = False
    source: Literal["discriminator", "verifier", "mix"] = "discriminator"
    rule: Literal["share", "all"] = "share"
    verifier_weight: Share = 0.5
    standardise: Literal["running", "batch", "group", "none"] = "running"
    group_eps: Positive = 0.05
    clip: Annotated[float, Range(1e-6)] = 4.0
    squash: Literal["none", "sigmoid"] = "none"
    missing_eos_penalty: float = 0.0
    overlong_tokens: AtLeast0 = 0

    @property
    def asked(self) -> tuple[str, ...]:
        """The sources: `sources`, or those that the short form stands for."""
        mixed = ("discriminator", "verifier")
        return self.sources or (mixed if self.source == "mix" else (self.source,))

    @property
    def source_weights(self) -> tuple[float, ...]:
        """The weight of each source that is asked."""
        if not self.sources and self.source == "mix":
            return 1.0 - self.verifier_weight, self.verifier_weight
        return tuple(map(float, self.weights)) or (1.0,) * len(self.asked)

    def check(self) -> None:
        """Raise ValueError for sources that are none, or that the other fields do not allow."""
        parse_sources(self.asked)
        self._check_weights()
        if not self.sources and self.source == "mix" and self.squash != "sigmoid":
            raise ValueError(
                "config.reward.source='mix' adds a rule reward in [0, 1] to the discriminator's "
                "score, which must lie there too: set config.reward.squash='sigmoid'"
            )
        if "discriminator" not in self.asked and self.squash != "none":
            raise ValueError(
                f"config.reward.squash={self.squash!r} is for logits of the discriminator, and "
                f"config.reward asks {self.asked} only, which have none; set squash='none'"
            )
        if self.combine == "normalise_then_sum" and self.standardise != "none":
            raise ValueError(
                "config.reward.combine='normalise_then_sum' normalises by group and by round "
                f"itself, and config.reward.standardise={self.standardise!r} would do so again; "
                "set standardise='none'"
            )
        if self.combine == "stratified":
            self._check_strata()

    def _check_weights(self) -> None:
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(
                f"config.reward.weights={self.weights} must have one number for each of "
                f"config.reward.sources={self.sources} (or none at all, which is 1 for all)"
            )

    @property
    def verdicts(self) -> int | None:
        """The place among the sources of the one that no other may overrule (`stratified`): the
        verifier, or without it the first function, a verifier of one's own."""
        kinds = [source.kind for source in parse_sources(self.asked)]
        return next((kinds.index(kind) for kind in ("verifier", "function") if kind in kinds), None)

    def _check_strata(self) -> None:
        if self.verdicts is None or len(self.asked) < 2:
            raise ValueError(
                "config.reward.combine='stratified' orders responses of equal verdicts by the "
                "other sources: config.reward.sources must name 'verifier', or a function that "
                f"takes its place, and at least one more, got {self.asked}"
            )
        weight = self.source_weights[self.verdicts]
        if weight != 1:
            raise ValueError(
                "config.reward.combine='stratified' does not weigh verdicts against scores: the "
                f"weight of {self.asked[self.verdicts]!r} must be 1, got {weight}"
            )


class PPOConfig(Section):
    """The policy update of all online methods, and the update of the critic where there is one.

    `advantage` is the estimator of `method="gapo"`; the other methods name their own:

    | estimator | advantage | ratio | KL to the reference (`kl_coef`) |
    |---|---|---|---|
    | gae | critic, GAE(`gamma`, `lam`) | token | k1 in the token rewards |
    | rloo | score minus the mean of the prompt's others | of the response | k1 sum, in the score |
    | grpo | score normalised among the prompt's samples | see `config.grpo` | k3 in the loss |
    | reinforce_pp | return-to-go, normalised over all tokens | token | k1 in the token rewards |
    | rpo | none: distance of implicit to explicit rewards | none | `config.rpo.beta` |

    `group_baseline` gives reinforce_pp its second form: the mean of the prompt's samples is taken
    off the scores first, and the KL is k2 in the loss. `whiten_advantages` is for gae,
    `aggregation` for gae and reinforce_pp (mean over `token`s, or over `sequence`s of token means).
    Only gae has a critic; the others have no parameters and no optimiser for one.

    With `train_samples` above 0 only that number of a prompt's samples is learned from: half of
    them the best, half the worst by reward, which carry most of the signal (max-variance
    down-sampling, arXiv 2504.13818). The others cost no scoring and no gradient.

    With `accumulate` above 1 the rows of a minibatch (and the `sft_rows`) pass through the networks
    in that number of microbatches, which saves memory; the result is that of the whole minibatch.

    With `length_buckets` above 1 the rows of a round are cut into minibatches by length, which come
    in random order, each as wide as it needs: one of that number of widths, for each of which the
    steps are compiled. What is learned from a row is the same; but a mean over the tokens of a
    minibatch gives each token of short rows more weight than a mean over all lengths would, and so
    does the same step size for minibatches of few tokens. The `sft_rows` keep one width.

    `sft_coef` is the weight of the negative log-likelihood of accepted pairs in the policy loss,
    `sft_rows` of them in every minibatch: it keeps the generator at text that obeys its prompt.
    """

    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=3e-5))
    critic_optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(learning_rate=1e-3, b2=0.999)
    )
    advantage: Estimator = "gae"
    prompts_per_round: AtLeast1 = 12
    samples_per_prompt: AtLeast1 = 8
    train_samples: AtLeast0 = 0
    epochs: AtLeast1 = 2
    minibatch_size: AtLeast1 = 24
    accumulate: AtLeast1 = 1
    clip_low: Annotated[float, Range(1e-9, 1)] = 0.2
    clip_high: Positive = 0.2
    value_clip: Positive = 0.2
    gamma: Share = 1.0
    lam: Share = 0.95
    kl_coef: NotNegative = 0.02
    kl_target: NotNegative = 0.0
    kl_horizon: Positive = 10000.0
    kl_limit: NotNegative = 0.5
    whiten_advantages: bool = True
    group_baseline: bool = False
    aggregation: Literal["token", "sequence"] = "token"
    critic_epochs: AtLeast1 = 4
    logprob_chunk: AtLeast1 = 256
    sft_coef: NotNegative = 0.0
    sft_rows: AtLeast1 = 8
    length_buckets: AtLeast1 = 1

    @property
    def group_size(self) -> int:
        """The samples of one prompt that the policy learns from."""
        return self.train_samples or self.samples_per_prompt

    @property
    def trained_rows(self) -> int:
        """The responses that one round of policy updates learns from."""
        return self.prompts_per_round * self.group_size

    def check(self) -> None:
        """Raise ValueError for numbers of rows that do not divide into minibatches."""
        if self.train_samples > self.samples_per_prompt or self.train_samples % 2:
            raise ValueError(
                "config.ppo.train_samples must be even and at most ppo.samples_per_prompt="
                f"{self.samples_per_prompt} (0 trains on all), got {self.train_samples}"
            )
        if self.trained_rows % self.minibatch_size:
            raise ValueError(
                f"the {self.trained_rows} rows that a round trains on (prompts_per_round times "
                "train_samples, or samples_per_prompt where that is 0) must divide into whole "
                f"minibatches; config.ppo.minibatch_size is {self.minibatch_size}"
            )
        for name in ("minibatch_size", *(("sft_rows",) if self.sft_coef else ())):
            if getattr(self, name) % self.accumulate:
                raise ValueError(
                    f"config.ppo.accumulate={self.accumulate} must divide config.ppo.{name}="
                    f"{getattr(self, name)}: microbatches have equally many rows"
                )
