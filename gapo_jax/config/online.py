"""The configuration of the online methods: discriminator, reward, policy update, and their checks.

A method that plays rounds is two choices: how rewards become a policy update (the estimator), and
whether the discriminator learns on (the adversary).

| `config.method` | estimator | discriminator |
|---|---|---|
| gapo | `ppo.advantage` (`gae` unless told) | updated in every round |
| ppo | gae | as its warm-up left it |
| rloo, grpo, reinforce_pp | that one | as its warm-up left it |
| rpo_online | rpo | as its warm-up left it |

So critic-free GAPO is `method=gapo` with another `ppo.advantage`, and every other name is the same
update against a frozen judge (`reward.source` decides which one).
"""

# No postponed annotations: the flags of nested sections read the types of the fields.

import dataclasses
import math
from typing import Any

from gapo_jax.config.section import POSITIVE, OptimConfig, Section

ONLINE_METHODS = ("gapo", "ppo", "rloo", "grpo", "reinforce_pp", "rpo_online")
ESTIMATORS = ("gae", "rloo", "grpo", "reinforce_pp", "rpo")
_ESTIMATOR_OF = {"ppo": "gae", "rpo_online": "rpo"}
# Above this the clip of a geometric mean over tokens never acts (GSPO takes 3e-4 and 4e-4).
_WIDEST_GSPO_CLIP = 0.1


@dataclasses.dataclass
class DiscriminatorConfig(Section):
    """The discriminator's warm-up and its update in every round (Algorithm 1 of GAPO).

    `label_policy` is the target of generated text: `paper` (0), `soft` (`soft_label`), `verified`
    (1 if every constraint holds, else 0) or `drop_verified` (those are left out). A response
    that repeats itself (share of repeated word 3-grams above `max_repetition`) never counts as
    verified: a postscript written nine times over satisfies its constraint too.
    `generated_fraction` is the share of generated text in a round's batch, `replay_fraction` the
    share of that which comes from earlier rounds. An update is skipped when the accuracy on the
    fresh batch is above `gate_high`, and doubled below `gate_low`; `updates_per_round=0` leaves the
    discriminator as it is, which makes gapo into ppo. `frozen_layers` of the encoder (from the
    bottom, the embeddings with them) keep their pretrained weights. With `accumulate` above 1 the
    texts of a batch pass through the network in so many parts, without a change of the result.

    `score_with` names the snapshot that gives the round's rewards: `pre` or `post` the round's
    update, or `ema`, the exponential moving average of the snapshots after each round (the
    warm-up's to begin with): `ema_decay` of the old one stays in every round.
    `loss` is `bce` (Eq. 6) or `bradley_terry`, which compares two texts and fixes their
    difference alone. `gradient_penalty` is gamma of R1 (arXiv 1801.04406, Eq. 9), gamma / 2 times
    the squared gradient of the logit by the embedded accepted text.
    """

    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(learning_rate=1.5e-4, b2=0.999, weight_decay=0.01)
    )
    max_tokens: int = 192
    batch_size: int = 32
    accumulate: int = 1
    warmup_epochs: int = 2
    updates_per_round: int = 5
    round_learning_rate: float = 5e-5
    loss: str = "bce"
    label_policy: str = "verified"
    soft_label: float = 0.2
    max_repetition: float = 0.2
    positive_label: float = 1.0
    generated_fraction: float = 0.6
    replay_fraction: float = 0.25
    replay_capacity: int = 2000
    gate_high: float = 1.0
    gate_low: float = 0.0
    gradient_penalty: float = 0.0
    balance_classes: bool = True
    freeze_embeddings: bool = True
    frozen_layers: int = 0
    dropout: float = 0.0
    score_with: str = "pre"
    ema_decay: float = 0.5


@dataclasses.dataclass
class RewardConfig(Section):
    """Reward = a score of the response, standardised and clipped.

    `source` is the score: the `discriminator`'s logit (its probability with `squash="sigmoid"`),
    the `verifier`'s rule reward, or a `mix` of probability and rule reward, the latter with
    `verifier_weight`. The rule reward is the `share` of the prompt's constraints that hold, or 1
    where `all` of them do; text that repeats itself gets 0 (`discriminator.max_repetition`).

    `standardise` takes mean and deviation from all rounds so far (`running`), this round
    (`batch`) or the samples of the same prompt (`group`); `none` leaves the score as it is.
    `missing_eos_penalty` comes off the reward of a response that did not end within
    `sampling.max_new_tokens`, in units of the rewards' deviation (of the score's own, with `none`).
    `overlong_tokens` before that limit the score begins to fall, by 1 at the limit (DAPO's soft
    punishment, before the standardisation); 0 leaves it alone.
    """

    source: str = "discriminator"
    rule: str = "share"
    verifier_weight: float = 0.5
    standardise: str = "running"
    clip: float = 4.0
    squash: str = "none"
    missing_eos_penalty: float = 0.0
    overlong_tokens: int = 0


@dataclasses.dataclass
class PPOConfig(Section):
    """The policy update of all online methods, and the critic's of those that have one.

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
    All but gae have no critic: no parameters, no optimiser.

    With `train_samples` above 0, only so many of a prompt's samples are learned from: half of
    them the best, half the worst by reward, which carry most of the signal (max-variance
    down-sampling, arXiv 2504.13818). The others cost no scoring and no gradient.

    With `accumulate` above 1 the rows of a minibatch (and the `sft_rows`) pass through the networks
    in so many parts, which saves memory; the result is that of the whole minibatch.

    With `length_buckets` above 1 the rows of a round are cut into minibatches by length, which come
    in random order, each as wide as it needs: one of so many widths, for each of which the steps
    are compiled. What is learned from a row is the same; but a mean over the tokens of a minibatch
    gives each token of short rows more weight than a mean over all lengths would, and so does the
    same step size for minibatches of few tokens. The `sft_rows` keep one width.

    `sft_coef` adds so much of the negative log-likelihood of accepted pairs, `sft_rows` of them in
    every minibatch, to the policy loss: it keeps the generator at text that obeys its prompt.
    """

    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=3e-5))
    critic_optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(learning_rate=1e-3, b2=0.999)
    )
    advantage: str = "gae"
    prompts_per_round: int = 12
    samples_per_prompt: int = 8
    train_samples: int = 0
    epochs: int = 2
    minibatch_size: int = 24
    accumulate: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    kl_coef: float = 0.02
    kl_target: float = 0.0
    kl_horizon: float = 10000.0
    kl_limit: float = 0.5
    whiten_advantages: bool = True
    group_baseline: bool = False
    aggregation: str = "token"
    critic_epochs: int = 4
    logprob_chunk: int = 256
    sft_coef: float = 0.0
    sft_rows: int = 8
    length_buckets: int = 1


@dataclasses.dataclass
class GRPOConfig(Section):
    """GRPO (arXiv 2402.03300) and its relatives; clip range and KL weight are `config.ppo`'s.

    | variant | score is divided by the group's deviation | loss is averaged over | ratio |
    |---|---|---|---|
    | grpo | yes | rows of token means | token |
    | dr_grpo (2503.20783) | no | the constant rows x `sampling.max_new_tokens` | token |
    | dapo (2503.14476) | yes | all tokens of the batch | token |
    | gspo (2507.18071) | yes | rows | geometric mean of the row |

    Beside dapo's loss stand its `ppo.clip_high` (0.28 in the paper), `reward.overlong_tokens`,
    `mask_truncated` (responses cut at the length limit are not learned from) and
    `dynamic_sampling`: groups whose rule rewards are all equal teach nothing and are replaced by
    groups of further prompts, in up to `max_resamples` more batches; what is missing then stays
    unlearned. gspo wants a narrow clip: `ppo.clip_low=3e-4`, `ppo.clip_high=4e-4`.
    """

    variant: str = "grpo"
    mask_truncated: bool = False
    dynamic_sampling: bool = False
    max_resamples: int = 3


ONLINE_CHOICES: dict[str, tuple[str, ...]] = {
    "discriminator.label_policy": ("paper", "soft", "verified", "drop_verified"),
    "discriminator.loss": ("bce", "bradley_terry"),
    "discriminator.score_with": ("pre", "post", "ema"),
    "reward.source": ("discriminator", "verifier", "mix"),
    "reward.rule": ("share", "all"),
    "reward.standardise": ("running", "batch", "group", "none"),
    "reward.squash": ("none", "sigmoid"),
    "ppo.advantage": ESTIMATORS,
    "ppo.aggregation": ("token", "sequence"),
    "grpo.variant": ("grpo", "dr_grpo", "dapo", "gspo"),
}

ONLINE_RANGES: dict[str, tuple[float, float]] = {
    "discriminator.max_tokens": (8, math.inf),
    "discriminator.batch_size": (1, math.inf),
    "discriminator.accumulate": (1, math.inf),
    "discriminator.updates_per_round": (0, math.inf),
    "discriminator.frozen_layers": (0, math.inf),
    "discriminator.generated_fraction": (0, 1),
    "discriminator.warmup_epochs": (0, math.inf),
    "discriminator.round_learning_rate": (0, math.inf),
    "discriminator.replay_fraction": (0, 1),
    "discriminator.replay_capacity": (0, math.inf),
    "discriminator.soft_label": (0, 1),
    "discriminator.max_repetition": (0, 1),
    "discriminator.positive_label": (0.5, 1),
    "discriminator.gate_high": (0, 1),
    "discriminator.gate_low": (0, 1),
    "discriminator.gradient_penalty": (0, math.inf),
    "discriminator.ema_decay": (0, 1),
    "reward.verifier_weight": (0, 1),
    "reward.clip": (1e-6, math.inf),
    "reward.overlong_tokens": (0, math.inf),
    "ppo.prompts_per_round": (1, math.inf),
    "ppo.samples_per_prompt": (1, math.inf),
    "ppo.train_samples": (0, math.inf),
    "ppo.epochs": (1, math.inf),
    "ppo.minibatch_size": (1, math.inf),
    "ppo.accumulate": (1, math.inf),
    "ppo.critic_epochs": (1, math.inf),
    "ppo.logprob_chunk": (1, math.inf),
    "ppo.clip_low": (1e-9, 1),
    "ppo.clip_high": POSITIVE,
    "ppo.value_clip": POSITIVE,
    "ppo.gamma": (0, 1),
    "ppo.lam": (0, 1),
    "ppo.kl_coef": (0, math.inf),
    "ppo.kl_target": (0, math.inf),
    "ppo.kl_horizon": POSITIVE,
    "ppo.kl_limit": (0, math.inf),
    "ppo.sft_coef": (0, math.inf),
    "ppo.sft_rows": (1, math.inf),
    "ppo.length_buckets": (1, math.inf),
    "grpo.max_resamples": (0, math.inf),
}


def estimator(config: Any) -> str:
    """Return how an online method turns rewards into an update: one of `ESTIMATORS`."""
    method: str = config.method
    return config.ppo.advantage if method == "gapo" else _ESTIMATOR_OF.get(method, method)


def has_critic(config: Any) -> bool:
    """Return whether an online method trains a value function."""
    return estimator(config) == "gae"


def is_adversarial(config: Any) -> bool:
    """Return whether the discriminator is updated in the rounds."""
    return config.method == "gapo"


def scores_with_average(config: Any) -> bool:
    """Return whether the moving average of the discriminator gives the rewards."""
    return is_adversarial(config) and config.discriminator.score_with == "ema"


def asks_discriminator(config: Any) -> bool:
    """Return whether an online method's rewards need a discriminator at all."""
    return config.reward.source != "verifier"


def group_size(config: Any) -> int:
    """Return the samples of one prompt that the policy learns from."""
    return config.ppo.train_samples or config.ppo.samples_per_prompt


def kl_in_loss(config: Any) -> str | None:
    """Return the estimator of the KL term in the policy loss; None where it is in the rewards."""
    chosen = estimator(config)
    if chosen == "reinforce_pp" and config.ppo.group_baseline:
        return "k2"
    return "k3" if chosen == "grpo" else None


def check_online(config: Any) -> None:
    """Check what an online method can use, before anything is loaded.

    Raises:
        ValueError: names the key, what it holds and what would work.
    """
    if config.method in ONLINE_METHODS:
        _check_groups(config)
    _check_rows(config)
    _check_judge(config.discriminator)
    if config.method not in ONLINE_METHODS:
        return
    _check_reward(config)
    _check_grpo(config)


def _check_rows(config: Any) -> None:
    ppo = config.ppo
    if ppo.train_samples > ppo.samples_per_prompt or ppo.train_samples % 2:
        raise ValueError(
            "config.ppo.train_samples must be even and at most ppo.samples_per_prompt="
            f"{ppo.samples_per_prompt} (0 trains on all), got {ppo.train_samples}"
        )
    rows = ppo.prompts_per_round * group_size(config)
    if rows % ppo.minibatch_size:
        raise ValueError(
            f"the {rows} rows that a round trains on (prompts_per_round times train_samples, "
            "or samples_per_prompt where that is 0) must divide into whole minibatches; "
            f"config.ppo.minibatch_size is {ppo.minibatch_size}"
        )
    for name in ("minibatch_size", *(("sft_rows",) if ppo.sft_coef else ())):
        if getattr(ppo, name) % ppo.accumulate:
            raise ValueError(
                f"config.ppo.accumulate={ppo.accumulate} must divide config.ppo.{name}="
                f"{getattr(ppo, name)}: the rows pass through the network in equal parts"
            )
    if config.reward.standardise == "group" and ppo.samples_per_prompt < 2:
        raise ValueError(
            "config.reward.standardise='group' needs at least 2 samples of a prompt; set "
            f"config.ppo.samples_per_prompt (got {ppo.samples_per_prompt}) or 'running'"
        )


def _check_groups(config: Any) -> None:
    ppo, chosen, group = config.ppo, estimator(config), group_size(config)
    if config.method != "gapo" and ppo.advantage not in ("gae", chosen):
        raise ValueError(
            f"config.ppo.advantage={ppo.advantage!r} is for config.method='gapo', but the method "
            f"is {config.method!r}, whose estimator is {chosen!r}; change one of the two"
        )
    grouped = chosen in ("rloo", "grpo", "rpo")
    if (grouped or (chosen == "reinforce_pp" and ppo.group_baseline)) and group < 2:
        raise ValueError(
            f"{chosen} compares the samples of one prompt, and one sample has nothing to be "
            f"compared with: set config.ppo.samples_per_prompt to 2 or more (got {group}), or "
            "take config.method='reinforce_pp' or 'ppo', which work with one"
        )
    if chosen == "rpo" and ppo.minibatch_size % group:
        raise ValueError(
            f"config.ppo.minibatch_size={ppo.minibatch_size} must be a multiple of {group}, the "
            "samples of a prompt that are learned from: rpo compares them within a minibatch"
        )
    if chosen == "rpo" and config.rpo.distance == "sq" and group > 2:
        raise ValueError(
            f"config.rpo.distance='sq' is for 2 responses, but {group} samples of a prompt are "
            "learned from; its form for more of them is config.rpo.distance='sqloo'"
        )


def _check_reward(config: Any) -> None:
    reward = config.reward
    if reward.source == "verifier" and is_adversarial(config):
        raise ValueError(
            "config.method='gapo' trains a discriminator that config.reward.source='verifier' "
            "never asks; set source to 'discriminator' or 'mix', or take a method without an "
            "adversary ('ppo', 'rloo', 'grpo', 'reinforce_pp', 'rpo_online')"
        )
    if reward.overlong_tokens > config.sampling.max_new_tokens:
        raise ValueError(
            f"config.reward.overlong_tokens={reward.overlong_tokens} is more than a response can "
            f"have (config.sampling.max_new_tokens={config.sampling.max_new_tokens}); lower it"
        )
    if reward.source == "mix" and reward.squash != "sigmoid":
        raise ValueError(
            "config.reward.source='mix' adds a rule reward in [0, 1] to the discriminator's score, "
            "which must lie there too: set config.reward.squash='sigmoid'"
        )
    if reward.source == "verifier" and reward.squash != "none":
        raise ValueError(
            f"config.reward.squash={reward.squash!r} is for logits, and config.reward.source="
            "'verifier' has none; set squash='none'"
        )


def _check_judge(settings: Any) -> None:
    for name in ("schedule", "warmup_steps", "final_fraction"):
        if getattr(settings.optim, name) != getattr(OptimConfig(), name):
            raise ValueError(
                f"config.discriminator.optim.{name}={getattr(settings.optim, name)!r} would have "
                "no effect: the rate climbs over a tenth of the warm-up and falls to "
                "config.discriminator.round_learning_rate, which the rounds keep; set that"
            )
    if settings.gate_low > settings.gate_high:
        raise ValueError(
            f"config.discriminator.gate_low={settings.gate_low} (updates are doubled below it) "
            f"must not exceed gate_high={settings.gate_high} (they are skipped above it)"
        )
    if settings.batch_size % settings.accumulate:
        raise ValueError(
            f"config.discriminator.accumulate={settings.accumulate} must divide "
            f"config.discriminator.batch_size={settings.batch_size}"
        )
    if settings.accumulate > 1 and settings.dropout:
        raise ValueError(
            f"config.discriminator.dropout={settings.dropout} would drop the same units in every "
            f"part of a batch; set it to 0, or config.discriminator.accumulate="
            f"{settings.accumulate} to 1"
        )
    if settings.loss != "bradley_terry":
        return
    if settings.label_policy == "soft" or settings.positive_label != 1:
        raise ValueError(
            "config.discriminator.loss='bradley_terry' says which of two texts is better and has "
            "no targets to soften: set label_policy to 'paper', 'verified' or 'drop_verified' (got "
            f"{settings.label_policy!r}) and positive_label to 1 (got {settings.positive_label})"
        )
    if settings.batch_size % 2:
        raise ValueError(
            "config.discriminator.loss='bradley_terry' fills batches with pairs: "
            f"config.discriminator.batch_size must be even, got {settings.batch_size}"
        )


def _check_grpo(config: Any) -> None:
    grpo, ppo, chosen = config.grpo, config.ppo, estimator(config)
    if chosen != "reinforce_pp" and ppo.group_baseline:
        raise ValueError(
            "config.ppo.group_baseline=True is a form of reinforce_pp, but the estimator is "
            f"{chosen!r}; set it to False, or take config.method='reinforce_pp'"
        )
    if chosen != "grpo":
        changed = [name for name, value in vars(GRPOConfig()).items() if vars(grpo)[name] != value]
        if changed:
            raise ValueError(
                f"config.grpo.{changed[0]}={vars(grpo)[changed[0]]!r} is an option of grpo, but "
                f"the estimator is {chosen!r}; take config.method='grpo' (or, with gapo, "
                "config.ppo.advantage='grpo')"
            )
        return
    if grpo.variant == "gspo" and max(ppo.clip_low, ppo.clip_high) > _WIDEST_GSPO_CLIP:
        raise ValueError(
            "config.grpo.variant='gspo' clips the geometric mean of a response's ratios, so that "
            f"config.ppo.clip_low={ppo.clip_low} and clip_high={ppo.clip_high} would never act; "
            "the paper's are 3e-4 and 4e-4"
        )
    if grpo.dynamic_sampling and config.reward.source != "verifier":
        raise ValueError(
            "config.grpo.dynamic_sampling replaces groups whose rule rewards are all equal, but "
            f"config.reward.source={config.reward.source!r} gives them unequal rewards all the "
            "same; set source='verifier' or dynamic_sampling=False"
        )
