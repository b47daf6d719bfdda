"""The sections that every run has, and `Config`, which holds them and the options of the methods.

The sections of the rounds (discriminator, reward, PPO) are in `online.py`, the options of the
methods in `gapo_jax/options.py`; `Config` takes the latter from the registry of methods.
"""

# The flags of nested sections read the types of the fields (`gapo_jax/section.py`).

import dataclasses
import datetime
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from gapo_jax.config.online import DiscriminatorConfig, PPOConfig, RewardConfig
from gapo_jax.config.optim import OptimConfig
from gapo_jax.methods import option_sections
from gapo_jax.records import JsonObject
from gapo_jax.rng import MAX_SEED
from gapo_jax.section import (
    AtLeast0,
    AtLeast1,
    AtLeast2,
    NotNegative,
    Range,
    Section,
    Share,
    nearest,
)

Temperature = Annotated[float, Range(1e-3, 100)]
AboveZeroShare = Annotated[float, Range(1e-6, 1)]


def _tuple(*items: str) -> Any:
    return dataclasses.field(default_factory=lambda: tuple(items))


class LoraConfig(Section):
    """Adapters of low rank instead of trained matrices (LoRA, arXiv 2106.09685); rank 0 is off.

    The generator's own weights then stand still and serve policy and reference alike. `targets` are
    names of projections (`q`, `k`, `v`, `o`, `gate`, `up`, `down`) or regular expressions over
    parameter paths (`layers/mlp/.*`), in the layers that `model.trainable_layers` leaves. The
    update is scaled by alpha / rank. Learning rates are about ten times those of full training.
    """

    rank: AtLeast0 = 0
    alpha: Annotated[float, Range(1e-6)] = 16.0
    targets: tuple[str, ...] = _tuple("q", "k", "v", "o", "gate", "up", "down")

    def check(self) -> None:
        """Raise ValueError for targets that are no regular expressions, or are missing."""
        for target in self.targets:
            _check_expression("lora.targets", target)
        if self.rank and not self.targets:
            raise ValueError(
                "config.lora.targets is empty; name at least one projection, such as q"
            )


class ModelConfig(Section):
    """Which networks take part, and which of their parameters are trained.

    `generator` and `discriminator` name a model of the weight cache, a Hugging Face folder, a hub
    id, a GGUF file, or `random:tiny` or `random:words` (small, built from the seed).
    `trainable_layers` counts from the top, 0 means all; the layers below are the reference's, so
    their activations are computed once a round. `freeze` is a regular expression over parameter
    paths (`layers/mlp/`, `norm`); what it finds stands still too. `critic` is `reference` (a head
    on the reference's hidden states), `policy` (a head on the policy's hidden states) or `decoder`
    (a trunk of its own and a head); all are causal. `dtype` is what all networks compute in;
    trained weights, the moments of their optimisers, log-probs, rewards and losses are float32 all
    the same. `pooling` is that of a fresh head: a discriminator whose source has a head keeps its
    own. `attention` is the kernel of both networks (`models/attention_kernels.py`): `auto` takes
    what the device has, `xla` the plain version everywhere.
    """

    generator: str = "smollm2-135m-instruct"
    discriminator: str = "all-minilm-l6-v2"
    critic: Literal["reference", "policy", "decoder"] = "reference"
    critic_hidden: AtLeast0 = 256
    trainable_layers: AtLeast0 = 0
    train_embeddings: bool = False
    freeze: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    pooling: Literal["mean", "cls", "hf"] = "mean"

    def check(self) -> None:
        """Raise ValueError for trained embeddings below frozen layers, or a `freeze` that is no
        regular expression."""
        _check_expression("model.freeze", self.freeze)
        if self.train_embeddings and self.trainable_layers:
            raise ValueError(
                "config.model.train_embeddings=True trains the bottom of the decoder, but "
                f"config.model.trainable_layers={self.trainable_layers} freezes its lower "
                "layers; set trainable_layers=0 or train_embeddings=False"
            )


def _check_expression(key: str, expression: str) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"config.{key} must be a regular expression, got {expression!r} ({error})"
        ) from error


class DataConfig(Section):
    """Tasks, constraint types and the preferential pairs made of the generator's own text.

    With `source`, a folder that `scripts/build_data.py` wrote, its pairs and their prompts take the
    place of ours: nothing is composed or sampled beforehand, and the prompts of its test side are
    the held-out ones (`heldout_tasks`). `types` are names or families (`ifeval`); pairs of other
    types, or longer than the discriminator reads, are left out. Types of IFBench are refused, as it
    measures constraints that training has not seen.
    `on_invisible` says what happens to a type that the discriminator's tokenizer cannot see:
    `refuse` stops the run, `drop` leaves the type out with a warning. `system_prompt="template"`
    leaves the system turn to the chat template; any other text, the empty one too, replaces it.
    `preference` is what a pairwise method compares: `prompts` (one response under the prompt that
    it satisfies and under the one that it violates; GAPO, section 3.2) or `responses` (to one
    prompt, one that satisfies it and one that does not). It holds for the discriminator of an
    online method too. Both are made of the same pairs.
    With `curriculum` above 0 the pairs come in from easy to hard over that share of the training
    (of the warm-up, where the discriminator stands still after it), beginning with the easiest
    `curriculum_start` of them: near misses (4 bullets where 3 were asked for) come last.
    Responses are verified in `verify_workers` processes of their own; 0 does it in this one.
    `plugins` are Python files with constraint types of one's own (`constraints/plugins.py`).

    With any other `source` (a JSONL, JSON, CSV or Parquet file, also with .gz or .zst behind it, a
    folder of `datasets`, the id of a dataset on the hub, with its `subset` and `split`) an offline
    method learns from its rows directly (docs/data.md), and an online method whose rewards need no
    pairs answers its prompts (docs/rewards.md); what concerns our prompts, types and pairs above is
    not read. `streaming` reads rows while it trains, without fetching all first. A row with a side
    above `max_tokens` (prompt, answer and template together) is left out (the limit is TRL's).
    `train_on` says which answers of a dialogue are trained on: the last one or all.
    Held-out rows come from `heldout_source`, or are a share `heldout_fraction` of the source, split
    by prompt; at most `heldout_rows` of them. Encoded rows are kept in `cache`, by default in the
    workdir.

    `chat_template_kwargs` is a JSON object of variables for the chat template, such as
    {"enable_thinking": false}; "date" in it ("2026-12-01") is today for templates that ask.
    """

    types: tuple[str, ...] = _tuple(
        "no_comma",
        "number_words",
        "forbidden_words",
        "existence",
        "title",
        "number_bullet_lists",
        "postscript",
        "end_checker",
        "number_sentences",
    )
    source: str = ""
    subset: str = ""
    split: str = "train"
    streaming: bool = False
    max_tokens: AtLeast2 = 1024
    train_on: Literal["last", "all"] = "all"
    heldout_source: str = ""
    heldout_fraction: Annotated[float, Range(0, 0.5)] = 0.05
    heldout_rows: AtLeast1 = 256
    cache: str = ""
    chat_template_kwargs: str = "{}"
    on_invisible: Literal["refuse", "drop"] = "refuse"
    max_constraints: Annotated[int, Range(1, 8)] = 2
    system_prompt: str = "template"
    max_prompt_tokens: AtLeast1 = 112
    bootstrap_responses: AtLeast1 = 576
    responses_per_task: AtLeast2 = 6
    edited_fraction: Share = 0.5
    pairs: AtLeast2 = 700
    pairs_heldout: AtLeast2 = 96
    prompts: AtLeast1 = 1200
    preference: Literal["prompts", "responses"] = "prompts"
    curriculum: Share = 0.0
    curriculum_start: AboveZeroShare = 0.25
    verify_workers: Annotated[int, Range(0, 256)] = 0
    plugins: tuple[str, ...] = _tuple()

    def check(self) -> None:
        """Raise ValueError where no constraint type is named, or the variables of the chat template
        are no JSON object."""
        if not self.types:
            raise ValueError("config.data.types is empty; name at least one constraint type")
        self.template_variables()

    def template_variables(self) -> JsonObject:
        """Return `chat_template_kwargs`.

        Raises:
            ValueError: it is no JSON object, or its date is none.
        """
        text = self.chat_template_kwargs
        try:
            variables = json.loads(text)
            datetime.date.fromisoformat(variables.get("date", "2026-01-01"))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                "config.data.chat_template_kwargs must be a JSON object such as "
                f'{{"enable_thinking": false, "date": "2026-12-01"}}, got {text!r} ({error})'
            ) from error
        return variables


class SamplingConfig(Section):
    """How responses are sampled for rollouts.

    `batch_size` rows are decoded at once, until the longest has ended; with `slots` that many rows,
    where one that has ended makes room for the next (checked every `chunk` tokens): faster, on one
    process, if responses differ much in length and there are several times as many as slots.

    `top_k`, `top_p` and `min_p` (a share of the best token's probability) restrict what is drawn;
    0, 1 and 0 restrict nothing. A response that ends in `repetition_times` copies of one block of
    at most `repetition_period` tokens is broken off (0: never). With `stop` (several strings) a
    response ends with the token that completes one of them, and its text before the string.

    `weights` is what rollouts of the online methods are sampled with: the "same" as everywhere, all
    in "bfloat16", or the matrices of the layers in "int8", computed from the policy once a round;
    evaluation samples with the policy as it is. The policy then learns from what another one has
    drawn, so each token's loss is weighted by the ratio of their probabilities, at most `tis_cap`
    (truncated importance sampling; not for rpo_online, whose loss takes any samples).
    """

    max_new_tokens: AtLeast1 = 48
    temperature: Temperature = 1.0
    top_k: AtLeast0 = 0
    top_p: AboveZeroShare = 1.0
    min_p: Share = 0.0
    repetition_period: AtLeast0 = 0
    repetition_times: AtLeast2 = 4
    stop: tuple[str, ...] = _tuple()
    batch_size: AtLeast1 = 96
    slots: AtLeast0 = 0
    chunk: AtLeast1 = 8
    weights: Literal["same", "bfloat16", "int8"] = "same"
    tis_cap: Annotated[float, Range(1e-6)] = 2.0

    def check(self) -> None:
        """Raise ValueError for an empty stop string."""
        if not all(self.stop):
            raise ValueError(
                f"config.sampling.stop={self.stop!r} has an empty string, which every text holds; "
                "leave it out"
            )


class OfflineConfig(Section):
    """The loop of the offline methods: `config.rounds` rounds of `steps_per_round` updates.

    A round is what is logged, evaluated and saved at once. `batch_size` counts examples: pairs for
    the pairwise methods (two rows each, `rpo.responses` for RPO), rows for sft and inverse_q. With
    `accumulate` above 1 the rows of a batch pass through the network in that number of
    microbatches; the result is that of the whole batch. Examples with a response above
    `max_response_tokens` (end token included) are left out. `sft_weight` is the weight of the
    chosen side's negative log-likelihood in a pairwise loss. `length_buckets` is what
    `config.ppo.length_buckets` is: the examples of a round are cut into batches by the length of
    their longest side. Rows of one's own (`data.source`) come in four widths at least, kto learns
    from single ones of them, and `data.max_tokens` says how long they may be.
    """

    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(learning_rate=5e-6, schedule="cosine", warmup_steps=4)
    )
    steps_per_round: AtLeast1 = 10
    batch_size: AtLeast1 = 16
    accumulate: AtLeast1 = 1
    max_response_tokens: AtLeast2 = 128
    sft_weight: NotNegative = 0.0
    length_buckets: AtLeast1 = 1


class EvalConfig(Section):
    """Held-out evaluation by the verifiers, before, during and after training.

    With rows of one's own (`config.data.source`) it is the held-out rows that are measured, and
    `every_rounds` alone is read.
    The discriminator is measured on its held-out pairs after the warm-up, every `pairs_every`
    rounds and after the last one.

    With `development_prompts` above 0 there is one more set, `development`, on topics of its own:
    what is chosen by looking at results (rates, options, when to stop) is chosen on it, and the
    held-out sets are looked at once. It is the first of the sets then, and measured during
    training. With `trip_wires` a fixed set of prompts is measured on which exploits of a reward
    show (`evaluate/exploits.py`). With `likelihood` every measured response is scored under the
    frozen start, for a third of the time that sampling it takes. All three need our own tasks
    (`data.source` empty), except the last.

    `prompts` is a file or hub dataset of prompts to measure on as well, `given_prompts`: IFEval or
    IFBench rows, or rows of AI2 (`constraints/rows.py`). All of them are measured, before and after
    training; those above `data.max_prompt_tokens` are left out and named.
    """

    prompts: str = ""
    prompts_per_set: AtLeast1 = 96
    development_prompts: AtLeast0 = 0
    trip_wires: bool = False
    likelihood: bool = False
    samples_per_prompt: AtLeast1 = 2
    every_rounds: AtLeast0 = 0
    pairs_every: AtLeast1 = 1
    prompts_during: AtLeast1 = 48
    temperature: Annotated[float, Range(0, 100)] = 0.8
    resamples: AtLeast1 = 2000


class CheckpointConfig(Section):
    """Checkpoints at round boundaries: every how many rounds, how many are kept, and in which
    `directory`: one that all processes of a run see, or `gs://BUCKET/FOLDER`; empty for
    `checkpoints` in the workdir.

    `best` names a measure of held-out rows, such as eval/preference_accuracy or eval/nll_loss, for
    training on rows of one's own: the policy that is best by it is exported and reported. It is
    taken on development rows, which are neither trained on nor reported, every `eval.every_rounds`
    rounds (every round where that is 0). With `patience` above 0 training ends after that many
    measurements without a better one.
    """

    best: str = ""
    patience: AtLeast0 = 0
    directory: str = ""
    every_rounds: AtLeast1 = 1
    keep: AtLeast1 = 2


SINKS = ("tensorboard", "wandb", "mlflow", "trackio")


class LogConfig(Section):
    """Where metrics go besides metrics.jsonl: any of `tensorboard`, `wandb`, `mlflow`, `trackio`.

    The last three get the configuration, the first `samples` responses of each round as a table,
    and the report besides, below the name `project`. Servers and accounts are what their own
    environment variables say.
    """

    to: tuple[str, ...] = _tuple("tensorboard")
    project: str = "gapo_jax"
    samples: AtLeast0 = 32

    def check(self) -> None:
        """Raise ValueError for a sink that does not exist or is named twice."""
        for name in self.to:
            if name not in SINKS:
                raise ValueError(f"config.log.to cannot name {name!r}{nearest(name, SINKS)}")
        if len(set(self.to)) < len(self.to):
            raise ValueError(f"config.log.to={self.to!r} names a sink twice; leave one out")


class MeshConfig(Section):
    """Sizes of the mesh axes; -1 takes what the others leave.

    `data` splits the rows of a batch, `fsdp` rows and parameters, `tensor` the heads and the
    feed-forward of each layer. While it samples, the generator is split over `sampling_tensor`
    devices (or the most that divide both it and their number) and nothing else; the rows go over
    the rest. 0 takes as many as `tensor`.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sampling_tensor: AtLeast0 = 0


class Config(Section, options=option_sections()):
    """One run. `finalize(config)` checks and freezes it. The options of the methods are sections
    too (`config.dpo`, `config.kto`, ...), whichever `method` is chosen."""

    method: str = "gapo"
    name: str = "gapo"
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    rounds: AtLeast0 = 10
    export: bool = True
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    offline: OfflineConfig = dataclasses.field(default_factory=OfflineConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return the options of a method."""
