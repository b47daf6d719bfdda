"""The configuration of a run: one mutable dataclass a section, checked and frozen by `finalize`.

`configs/*.py` return a `Config` from `get_config(preset)`; flags override single fields
(`--config.ppo.clip_low=0.1`); `finalize` checks the whole before anything slow starts. The sections
of the offline and of the online methods, with the checks that concern them alone, have modules of
their own here; `presets` holds the settings that the files under configs/ share.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from gapo_jax.config.offline import (
    OFFLINE_CHOICES,
    OFFLINE_METHODS,
    OFFLINE_RANGES,
    DPOConfig,
    InverseQConfig,
    KTOConfig,
    OfflineConfig,
    ORPOConfig,
    RPOConfig,
    SGPOConfig,
    SimPOConfig,
    check_offline,
)
from gapo_jax.config.online import (
    ONLINE_CHOICES,
    ONLINE_METHODS,
    ONLINE_RANGES,
    DiscriminatorConfig,
    GRPOConfig,
    PPOConfig,
    RewardConfig,
    asks_discriminator,
    check_online,
    group_size,
)
from gapo_jax.config.section import LoraConfig, Section, check_trained_parts, nearest
from gapo_jax.config.section import OptimConfig as OptimConfig

METHODS = (*ONLINE_METHODS, *OFFLINE_METHODS)


def _tuple(*items: str) -> Any:
    return dataclasses.field(default_factory=lambda: tuple(items))


@dataclasses.dataclass
class ModelConfig(Section):
    """Which networks take part, and which of their parameters are trained.

    `generator` and `discriminator` name a model of the weight cache, an HF folder, a hub id, a
    GGUF file, or `random:tiny` or `random:words` (small, built from the seed). `trainable_layers`
    counts from the top, 0 means all; the layers below are the reference's, so their activations
    are computed once a round. `freeze` is a regular expression over parameter paths
    (`layers/mlp/`, `norm`): what it finds stands still too. `critic` is `reference` (a head on the
    reference's hidden states), `policy` (a head on the policy's hidden states) or `decoder` (a
    trunk of its own and a head); all are causal. `dtype` is what all networks compute in; the
    weights that are trained and their optimisers' moments are float32 all the same, and so are
    log-probs, rewards and losses.
    `pooling` is that of a fresh head: a discriminator's source that has a head of its own brings
    it. `attention` is the kernel of both (`models/attention_kernels.py`): `auto` takes what the
    device has, `xla` the plain version everywhere.
    """

    generator: str = "smollm2-135m-instruct"
    discriminator: str = "all-minilm-l6-v2"
    critic: str = "reference"
    critic_hidden: int = 256
    trainable_layers: int = 0
    train_embeddings: bool = False
    freeze: str = ""
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    pooling: str = "mean"


@dataclasses.dataclass
class DataConfig(Section):
    """Tasks, constraint types and the preferential pairs made of the generator's own text.

    With `source`, a folder that `scripts/build_data.py` wrote, its pairs and their prompts take the
    place of ours: nothing is composed or sampled beforehand, and the prompts of its test side are
    the held-out ones (`heldout_tasks`). `types` are names or families (`ifeval`); pairs of other
    types, or longer than the discriminator reads, are left out.
    `on_invisible` says what happens to a type that the discriminator's tokenizer cannot see:
    `refuse` stops the run, `drop` leaves the type out with a warning. `system_prompt="template"`
    leaves the system turn to the chat template; any other text, the empty one too, replaces it.
    `preference` is what a pairwise method compares: `prompts` (one response under the prompt that
    it satisfies and under the one that it violates; GAPO, section 3.2) or `responses` (to one
    prompt, one that satisfies it and one that does not); so does the discriminator that judges an
    online method. Both are made of the same pairs.
    With `curriculum` above 0 the pairs come in from easy to hard over that share of the training
    (of the warm-up, where the discriminator stands still after it), the first being the easiest
    `curriculum_start` of them: near misses (4 bullets asked of a response with 3) come last.
    Responses are verified in `verify_workers` processes of their own; 0 does it in this one.
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
    on_invisible: str = "refuse"
    max_constraints: int = 2
    system_prompt: str = "template"
    max_prompt_tokens: int = 112
    bootstrap_responses: int = 576
    responses_per_task: int = 6
    edited_fraction: float = 0.5
    pairs: int = 700
    pairs_heldout: int = 96
    prompts: int = 1200
    preference: str = "prompts"
    curriculum: float = 0.0
    curriculum_start: float = 0.25
    verify_workers: int = 0


@dataclasses.dataclass
class SamplingConfig(Section):
    """How responses are sampled for rollouts. `batch_size` rows are decoded at once, until the
    longest has ended; with `slots` that many, where a row that has ended makes room for the next
    one (looked for every `chunk` tokens): faster where responses differ much in length and there
    are several times as many as slots, on one process.

    `top_k`, `top_p` and `min_p` (a share of the best token's probability) restrict what is drawn;
    0, 1 and 0 restrict nothing. A response that ends in `repetition_times` copies of one block of
    at most `repetition_period` tokens is broken off (0: never). With `stop` (several strings) a
    response ends with the token that completes one of them, and its text before the string.
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_period: int = 0
    repetition_times: int = 4
    stop: tuple[str, ...] = _tuple()
    batch_size: int = 96
    slots: int = 0
    chunk: int = 8


@dataclasses.dataclass
class EvalConfig(Section):
    """Held-out evaluation by the verifiers, before, during and after training.

    The discriminator is measured on its held-out pairs after the warm-up, every `pairs_every`
    rounds and after the last one.
    """

    prompts_per_set: int = 96
    samples_per_prompt: int = 2
    every_rounds: int = 0
    pairs_every: int = 1
    prompts_during: int = 48
    temperature: float = 0.8
    resamples: int = 2000


@dataclasses.dataclass
class CheckpointConfig(Section):
    """Checkpoints at round boundaries: every how many rounds, how many are kept, and in which
    `directory`: one that all processes of a run see, or `gs://BUCKET/FOLDER`; empty for
    `checkpoints` in the workdir.
    """

    directory: str = ""
    every_rounds: int = 1
    keep: int = 2


@dataclasses.dataclass
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
    sampling_tensor: int = 0


@dataclasses.dataclass
class Config(Section):
    """One run. `finalize(config)` checks and freezes it."""

    method: str = "gapo"
    name: str = "gapo"
    seed: int = 0
    rounds: int = 10
    export: bool = True
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    grpo: GRPOConfig = dataclasses.field(default_factory=GRPOConfig)
    offline: OfflineConfig = dataclasses.field(default_factory=OfflineConfig)
    dpo: DPOConfig = dataclasses.field(default_factory=DPOConfig)
    kto: KTOConfig = dataclasses.field(default_factory=KTOConfig)
    simpo: SimPOConfig = dataclasses.field(default_factory=SimPOConfig)
    orpo: ORPOConfig = dataclasses.field(default_factory=ORPOConfig)
    rpo: RPOConfig = dataclasses.field(default_factory=RPOConfig)
    inverse_q: InverseQConfig = dataclasses.field(default_factory=InverseQConfig)
    sgpo: SGPOConfig = dataclasses.field(default_factory=SGPOConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


_CHOICES: dict[str, tuple[str, ...]] = (
    {
        "method": METHODS,
        "model.critic": ("reference", "policy", "decoder"),
        "model.dtype": ("float32", "bfloat16"),
        "model.remat": ("none", "dots", "full"),
        "model.attention": ("auto", "xla", "cudnn", "splash"),
        "model.pooling": ("mean", "cls", "hf"),
        "data.on_invisible": ("refuse", "drop"),
    }
    | OFFLINE_CHOICES
    | ONLINE_CHOICES
)

_RANGES: dict[str, tuple[float, float]] = (
    {
        "seed": (0, math.inf),
        "rounds": (0, math.inf),
        "model.critic_hidden": (0, math.inf),
        "model.trainable_layers": (0, math.inf),
        "lora.rank": (0, math.inf),
        "lora.alpha": (1e-6, math.inf),
        "data.max_constraints": (1, 8),
        "data.max_prompt_tokens": (1, math.inf),
        "data.bootstrap_responses": (1, math.inf),
        "data.responses_per_task": (2, math.inf),
        "data.edited_fraction": (0, 1),
        "data.pairs": (2, math.inf),
        "data.pairs_heldout": (2, math.inf),
        "data.prompts": (1, math.inf),
        "data.curriculum": (0, 1),
        "data.curriculum_start": (1e-6, 1),
        "sampling.max_new_tokens": (1, math.inf),
        "data.verify_workers": (0, 256),
        "sampling.temperature": (1e-3, 100),
        "sampling.top_k": (0, math.inf),
        "sampling.top_p": (1e-6, 1),
        "sampling.min_p": (0, 1),
        "sampling.repetition_period": (0, math.inf),
        "sampling.repetition_times": (2, math.inf),
        "sampling.batch_size": (1, math.inf),
        "sampling.slots": (0, math.inf),
        "sampling.chunk": (1, math.inf),
        "eval.prompts_per_set": (1, math.inf),
        "eval.samples_per_prompt": (1, math.inf),
        "eval.every_rounds": (0, math.inf),
        "eval.pairs_every": (1, math.inf),
        "eval.prompts_during": (1, math.inf),
        "eval.temperature": (0, 100),
        "eval.resamples": (1, math.inf),
        "checkpoint.every_rounds": (1, math.inf),
        "checkpoint.keep": (1, math.inf),
        "mesh.sampling_tensor": (0, math.inf),
    }
    | OFFLINE_RANGES
    | ONLINE_RANGES
)


def lookup(config: Any, path: str) -> Any:
    """Return the field at a dotted path, such as `ppo.clip_low`."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def check_path(path: str) -> None:
    """Raise ValueError when no field lies at a dotted path; names the nearest one."""
    section: Any = Config()
    parts = path.split(".")
    for depth, part in enumerate(parts):
        names = list(vars(section)) if isinstance(section, Section) else []
        if part not in names:
            where = ".".join(["config", *parts[:depth]])
            raise ValueError(
                f"there is no config.{path}: {where} has no {part!r}{nearest(part, names)}"
            )
        section = getattr(section, part)


def change(config: Config, changes: Mapping[str, Any]) -> Config:
    """Set the fields at dotted paths; return the configuration.

    Raises:
        ValueError: no field lies there.
    """
    for path, value in changes.items():
        check_path(path)
        *sections, name = path.split(".")
        setattr(lookup(config, ".".join(sections)) if sections else config, name, value)
    return config


def _check_choices(config: Config) -> None:
    for path, allowed in _CHOICES.items():
        value = lookup(config, path)
        if value not in allowed:
            raise ValueError(f"config.{path} cannot be {value!r}{nearest(value, allowed)}")


def _check_ranges(config: Config) -> None:
    for path, (low, high) in _RANGES.items():
        value = lookup(config, path)
        if not low <= value <= high:
            raise ValueError(f"config.{path} must lie in [{low}, {high}], got {value!r}")


def system_text(config: Config) -> str | None:
    """Return the system turn that replaces the chat template's own, or None to keep that."""
    return None if config.data.system_prompt == "template" else config.data.system_prompt


def updates_per_round(config: Config) -> int:
    """Return the updates of one round; the `step` of a metrics line counts them."""
    if config.method in OFFLINE_METHODS:
        return config.offline.steps_per_round
    return config.ppo.epochs * (trained_rows(config) // config.ppo.minibatch_size)


def trained_rows(config: Config) -> int:
    """Return the number of responses that one round of policy updates learns from."""
    return config.ppo.prompts_per_round * group_size(config)


def _check_together(config: Config) -> None:
    """Check what involves more than one field."""
    if config.sampling.batch_size % config.ppo.samples_per_prompt:
        raise ValueError(
            f"config.sampling.batch_size={config.sampling.batch_size} must be a multiple of "
            f"ppo.samples_per_prompt={config.ppo.samples_per_prompt}: samples of a prompt are "
            "decoded together"
        )
    if config.sampling.batch_size % config.eval.samples_per_prompt:
        raise ValueError(
            f"config.sampling.batch_size={config.sampling.batch_size} must be a multiple of "
            f"eval.samples_per_prompt={config.eval.samples_per_prompt}"
        )
    if config.model.train_embeddings and config.model.trainable_layers:
        raise ValueError(
            "config.model.train_embeddings=True trains the bottom of the decoder, but "
            f"config.model.trainable_layers={config.model.trainable_layers} freezes its lower "
            "layers; set trainable_layers=0 or train_embeddings=False"
        )
    if not all(config.sampling.stop):
        raise ValueError(
            f"config.sampling.stop={config.sampling.stop!r} has an empty string, which every text "
            "holds; leave it out"
        )
    if not config.data.types:
        raise ValueError("config.data.types is empty; name at least one constraint type")
    check_trained_parts(config)
    _check_curriculum(config)
    check_offline(config)
    check_online(config)


def _check_curriculum(config: Config) -> None:
    """A curriculum needs pairs with a rejected side, and something that learns from them."""
    if not config.data.curriculum:
        return
    reasons = {
        "sft": "sft learns from accepted texts alone, which are neither near nor far misses",
        "sgpo": "sgpo makes its own pairs",
    }
    reason = reasons.get(config.method)
    if config.method == "inverse_q" and config.inverse_q.contrast != "prompts":
        reason = "inverse_q learns from its own samples; config.inverse_q.contrast='prompts' works"
    if config.method in ONLINE_METHODS and not asks_discriminator(config):
        reason = "no discriminator learns from pairs where config.reward.source='verifier'"
    if reason:
        raise ValueError(
            f"config.data.curriculum={config.data.curriculum} orders preferential pairs by "
            f"difficulty, but {reason}; set curriculum=0"
        )


def finalize(config: Config) -> Config:
    """Return a checked copy that can no longer be changed.

    Raises:
        ValueError: a field is out of range, or two fields contradict each other; the message
            names the field, what it holds and what would be accepted.
    """
    config = from_json(to_json(config))
    _check_types(config, Config(), "config")
    _check_choices(config)
    _check_ranges(config)
    _check_together(config)
    _freeze(config)
    return config


def _check_types(config: Any, reference: Any, path: str) -> None:
    for field in dataclasses.fields(reference):
        value, wanted = getattr(config, field.name), getattr(reference, field.name)
        if dataclasses.is_dataclass(wanted):
            _check_types(value, wanted, f"{path}.{field.name}")
            continue
        kinds = (int, float) if isinstance(wanted, float) else type(wanted)
        wrong_bool = isinstance(value, bool) != isinstance(wanted, bool)
        if not isinstance(value, kinds) or wrong_bool:
            raise ValueError(
                f"{path}.{field.name} must be of type {field.type}, got {value!r} "
                f"({type(value).__name__})"
            )


def _freeze(section: Section) -> None:
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        if isinstance(value, Section):
            _freeze(value)
    section.__dict__["_final"] = True


def to_json(config: Config) -> dict[str, Any]:
    """Return the configuration as nested JSON-ready dictionaries."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(record: Mapping[str, Any]) -> Config:
    """Rebuild a configuration from `to_json`; unknown keys raise with the nearest valid key."""
    return _fill(Config(), record, "config")


def _fill(section: Any, record: Mapping[str, Any], path: str) -> Any:
    names = [field.name for field in dataclasses.fields(section)]
    for key, value in record.items():
        if key not in names:
            raise ValueError(f"unknown key {path}.{key}{nearest(key, names)}")
        current = getattr(section, key)
        if dataclasses.is_dataclass(current):
            _fill(current, value, f"{path}.{key}")
        else:
            setattr(section, key, tuple(value) if isinstance(current, tuple) else value)
    return section


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """List the leaves in which two `to_json` records differ, as `key: old -> new`."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        name = f"{path}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines


# A longer run, a later export or another mesh is still the same run.
_NOT_IDENTITY = ("name", "export", "rounds", "checkpoint", "mesh")


def identity(config: Config) -> dict[str, Any]:
    """Return the part of a configuration that a continued run must share with its beginning."""
    record = to_json(config)
    del record["data"]["verify_workers"]  # as many as the machine has use for
    return {key: value for key, value in record.items() if key not in _NOT_IDENTITY}


def fingerprint(config: Config) -> str:
    """Return a short hash of `identity(config)`."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
