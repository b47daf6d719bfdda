"""Back from the disk: a run that goes on, and networks from wherever they lie (a run's workdir, an
imported checkpoint, or any source that `models.load_decoder` reads)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerFast

from gapo_jax import config as configuration
from gapo_jax import hub, io, rng
from gapo_jax import models as networks
from gapo_jax.checkpoint import Checkpointer
from gapo_jax.data.tokenizer import load_tokenizer
from gapo_jax.data.weights import WEIGHTS, locate
from gapo_jax.records import JsonObject
from gapo_jax.sharding import ONE_DEVICE
from gapo_jax.train.build import Models, build_models, build_steps, initial_state
from gapo_jax.train.datasets.self_generated import reads_discriminator
from gapo_jax.train.discriminator.texts import replay_from_json
from gapo_jax.train.export import card_metrics
from gapo_jax.train.sources import tokenizer_and_shape
from gapo_jax.train.state import FORMER_NAMES, GAPOState, merge_trainable
from gapo_jax.train.workdir import CHECKPOINTS, CONFIG, SUMMARY
from gapo_jax.types import Params

IMPORTED = "model.json"
_KINDS = {
    "decoder": (networks.Decoder, networks.DecoderConfig),
    "encoder": (networks.Encoder, networks.EncoderConfig),
    "discriminator": (networks.Discriminator, networks.EncoderConfig),
    "rewardmodel": (networks.RewardModel, networks.DecoderConfig),
}


class Loaded(NamedTuple):
    """A network, its parameters (float32), its tokenizer, the method and base that made it, what a
    run measured of it at its end (as `models.save_hf` takes it), and the dtype that its weights had
    where they were read, in which an export gives them back bit for bit; None if trained."""

    module: nn.Module
    params: Params
    tokenizer: PreTrainedTokenizerFast
    method: str | None
    base: str
    metrics: Mapping[str, object] | None = None
    dtype: str | None = None


def restore_state(
    checkpointer: Checkpointer, abstract: GAPOState, step: int | None = None
) -> tuple[GAPOState, JsonObject]:
    """Return a checkpoint's state, replay buffer and all, and what else lies beside its arrays.

    Arrays are placed as those of `abstract` are; `step` as in `Checkpointer.restore`. Checkpoints
    of earlier versions, with other names for some parts, are read too.
    """
    state, host = checkpointer.restore(abstract, step, FORMER_NAMES)
    # A network that this version has no use for was not read: it is as it starts.
    state = jax.tree.map(
        lambda read, start: start if isinstance(read, jax.ShapeDtypeStruct) else read,
        state,
        abstract,
    )
    replay = replay_from_json(host.get("replay", host.get("store", ())))
    return state.replace(replay=replay, last_saved=int(state.round)), host


def is_run(path: Path) -> bool:
    """Return whether a folder is the workdir of a run."""
    if not (path / CONFIG).is_file():
        return False
    return (path / CHECKPOINTS).is_dir() or (path / "metrics.jsonl").is_file()


def load_any(
    src: str | os.PathLike[str],
    *,
    network: str = "generator",
    step: int | None = None,
    base: str | None = None,
    tokenizer: str | None = None,
) -> Loaded:
    """Return a network of `src`: a run's workdir or one of its checkpoints (`WORKDIR/checkpoints/
    STEP`), a folder written by `save_imported`, an HF folder, a hub id, a `.gguf` file, the name of
    cached weights, or a PEFT adapter (folder or hub id), which is merged into its base.

    `network` is "generator" or "discriminator", of a run; a folder is what it is, and asking it for
    a discriminator makes sure that it has a head of its own. `step` picks a run's checkpoint, the
    newest by default; `base` replaces the base that an adapter names; `tokenizer` is the source of
    one for a model that brings none that can be read (some `.gguf` files). The tokenizer is read
    before the weights. Raises FileNotFoundError or ValueError saying what was wanted.
    """
    path, step = _checkpoint_of(Path(src), step)
    own = (path / IMPORTED).is_file() or is_run(path)
    source = path if own else locate(str(src)) if str(src) in WEIGHTS else hub.resolve(src)
    adapts = not own and networks.is_adapter(source)
    if tokenizer is not None and (own or adapts):
        raise ValueError(
            f"Wanted a tokenizer for a model that lacks one, got {tokenizer} for {src}, which has "
            "the one that it was trained with. Leave --tokenizer out."
        )
    if (path / IMPORTED).is_file():
        record = io.read_json(path / IMPORTED)
        return _load_imported(path)._replace(dtype=record.get("dtype"))
    if own:
        return _load_run(path, network, step)
    kind = None if adapts else networks.network_of(source)
    if network != "generator" and kind not in ("discriminator", "reward model"):
        raise ValueError(
            f"Wanted the workdir of a run, which holds its {network}, or a discriminator exported "
            f"with its head, got {src}. Give the --workdir of a training run."
        )
    if adapts:
        # Merging has changed the weights.
        return _load_adapter(source, base)._replace(dtype=None)
    loaded_tokenizer, _, dtype = tokenizer_and_shape(source, tokenizer)
    load: Any = {
        "encoder": networks.load_encoder,
        "discriminator": networks.load_discriminator,
        "reward model": networks.load_reward_model,
    }.get(kind, networks.load_decoder)  # pyright: ignore
    module, params = load(source)
    # A model card names what it was made from, not where that lay.
    base = str(src) if not Path(src).expanduser().exists() else Path(src).expanduser().name
    return Loaded(module, params, loaded_tokenizer, None, base, dtype=dtype)


def trained_system(src: str | os.PathLike[str]) -> str | None:
    """Return the system turn that a run was trained with, `src` as in `load_any`; None where it
    left that to the chat template, or `src` is no run."""
    path, _ = _checkpoint_of(Path(src), None)
    return configuration.system_text(_read_config(path)) if is_run(path) else None


def load_trained_adapters(
    src: str | os.PathLike[str], step: int | None = None
) -> tuple[networks.Decoder, networks.Adapters, str, str]:
    """Return (decoder, adapters, base, method) of a run that trained adapters, `src` and `step` as
    in `load_any`.

    Raises:
        ValueError: `src` is not such a run.
    """
    path, step = _checkpoint_of(Path(src), step)
    config = _read_config(path) if is_run(path) else None
    if config is None or not config.lora.rank:
        raise ValueError(
            f"Wanted the workdir of a run that trained adapters (config.lora.rank above 0), got "
            f"{src}. Leave out --adapter to export whole weights."
        )
    models, state = _restore(path, config, step)
    adapters = state.policy.params["lora"]
    return models.decoder, adapters, config.model.generator, config.method


def _checkpoint_of(path: Path, step: int | None) -> tuple[Path, int | None]:
    """Return workdir and step of `WORKDIR/checkpoints/STEP`; anything else as it is."""
    if path.parent.name == CHECKPOINTS and path.name.isdigit() and path.is_dir():
        return path.parent.parent, int(path.name)
    return path, step


def _load_adapter(folder: Path, base: str | None) -> Loaded:
    """Return the base of a PEFT adapter with the adapter merged into it."""
    record = io.read_json(folder / networks.ADAPTER_CONFIG)
    base = base or record.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"Wanted the base of the adapter {folder}, which names none. Give --base.")
    loaded = load_any(base)
    if not isinstance(loaded.module, networks.Decoder):
        raise ValueError(f"Wanted a decoder as base of the adapter {folder}, got {base}.")
    adapters, _ = networks.load_adapter(folder, loaded.module)
    layers = networks.merge_adapters(loaded.params["layers"], adapters)
    return loaded._replace(params=dict(loaded.params) | {"layers": layers})


def _load_run(workdir: Path, network: str, step: int | None) -> Loaded:
    """Restore a run's checkpoint and return one of its networks."""
    config = _read_config(workdir)
    models, state = _restore(workdir, config, step)
    if network == "discriminator":
        return Loaded(
            models.discriminator,
            state.discriminator.params,
            models.disc_tokenizer,
            config.method,
            config.model.discriminator,
        )
    params = merge_trainable(
        models.ref_params, state.policy.params, models.spec.first_trainable_layer
    )
    summary, metrics = workdir / SUMMARY, None
    if step is None and summary.is_file():
        metrics = card_metrics(io.read_json(summary))
    base = config.model.generator
    return Loaded(models.decoder, params, models.tokenizer, config.method, base, metrics)


def _read_config(workdir: Path) -> configuration.Config:
    return configuration.from_json(io.read_json(workdir / CONFIG))


def _restore(
    workdir: Path, config: configuration.Config, step: int | None
) -> tuple[Models, GAPOState]:
    """Return what is fixed in a run, and a checkpoint of what is not."""
    # On one device, whatever mesh it was trained on.
    asked = reads_discriminator(config, workdir)
    models = build_models(config, ONE_DEVICE, discriminator=asked)
    # The size of the warm-up sets schedules only, no shape.
    steps = build_steps(config, models, num_pairs=1)
    abstract = jax.eval_shape(lambda: initial_state(config, models, steps))
    directory = config.checkpoint.directory or workdir / CHECKPOINTS
    # The run may be going on.
    with Checkpointer(directory, read_only=True) as checkpointer:
        state, _ = restore_state(checkpointer, abstract, step)
    return models, state


def save_imported(
    module: nn.Module,
    params: Params,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    base: str,
    dtype: str | None = None,
) -> None:
    """Write parameters as an Orbax checkpoint beside their config and tokenizer; `dtype` is that of
    `Loaded`."""
    kind = type(module).__name__.lower()
    if kind not in _KINDS:
        raise ValueError(f"Wanted a module of kind {sorted(_KINDS)}, got {kind}.")
    with Checkpointer(folder / CHECKPOINTS) as checkpointer:
        checkpointer.save(0, {"params": params}, {"base": base}, wait=True)
    tokenizer.save_pretrained(folder)
    config = dataclasses.asdict(module.config)
    record = {"kind": kind, "base": base, "dtype": dtype, "config": config}
    if isinstance(module, networks.Discriminator):
        record["head"] = {"pooling": module.pooling, "hidden_dim": module.hidden_dim}
    io.write_json(folder / IMPORTED, record)


def _load_imported(folder: Path) -> Loaded:
    """Read what `save_imported` wrote."""
    record = io.read_json(folder / IMPORTED)
    make, make_config = _KINDS[record["kind"]]
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    module = make(make_config(**fields), **record.get("head", {}))
    tokens = jnp.zeros((1, 2), jnp.int32)
    variables = jax.eval_shape(module.init, rng.key_shape(), tokens, jnp.ones_like(tokens))
    with Checkpointer(folder / CHECKPOINTS, read_only=True) as checkpointer:
        state, _ = checkpointer.restore({"params": variables["params"]})
    return Loaded(module, state["params"], load_tokenizer(folder), None, record["base"])
