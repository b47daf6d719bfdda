"""Networks back from wherever they lie: a run's workdir, an imported checkpoint, or any source
that `models.load_decoder` reads."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax import config as configuration
from gapo_jax import hub, models
from gapo_jax.checkpoint import Checkpointer
from gapo_jax.data.tokenizer import load_tokenizer
from gapo_jax.data.weights import WEIGHTS, locate
from gapo_jax.train.setup import build_training, initial_state, load_players
from gapo_jax.train.state import merge_trainable

IMPORTED = "model.json"
_KINDS = {
    "decoder": (models.Decoder, models.DecoderConfig),
    "encoder": (models.Encoder, models.EncoderConfig),
    "rewardmodel": (models.RewardModel, models.DecoderConfig),
}


class Loaded(NamedTuple):
    """A network, its parameters, its tokenizer, and the method and base that made it."""

    module: nn.Module
    params: Any
    tokenizer: Any
    method: str | None
    base: str


def is_run(path: Path) -> bool:
    """Whether a folder is the workdir of a run."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def load_any(
    src: str | os.PathLike[str], *, network: str = "generator", step: int | None = None
) -> Loaded:
    """Return a network of `src`: a run's workdir or one of its checkpoints (`WORKDIR/checkpoints/
    STEP`), a folder written by `save_imported`, an HF folder, a hub id, a `.gguf` file, or the name
    of cached weights.

    `network` is "generator" or "discriminator" (runs only); `step` picks a run's checkpoint, the
    newest by default. Raises FileNotFoundError or ValueError saying what was wanted.
    """
    path = Path(src)
    if path.parent.name == "checkpoints" and path.name.isdigit() and path.is_dir():
        path, step = path.parent.parent, int(path.name)
    if (path / IMPORTED).is_file():
        return _load_imported(path)
    if is_run(path):
        return _load_run(path, network, step)
    if network != "generator":
        raise ValueError(
            f"Wanted the workdir of a run, which holds its {network}, got {src}. "
            "Give the --workdir of a training run."
        )
    source = locate(str(src)) if str(src) in WEIGHTS else hub.resolve(src)
    load: Any = {
        "encoder": models.load_encoder,
        "reward model": models.load_reward_model,
    }.get(models.network_of(source), models.load_decoder)  # pyright: ignore
    module, params = load(source)
    # A model card names what it was made from, not where that lay.
    base = str(src) if not Path(src).expanduser().exists() else Path(src).expanduser().name
    return Loaded(module, params, load_tokenizer(source), None, base)


def _load_run(workdir: Path, network: str, step: int | None) -> Loaded:
    """Restore a run's checkpoint and return one of its networks."""
    record = json.loads((workdir / "config.json").read_text())
    config = configuration.from_json(record)
    players = load_players(config)
    # The size of the warm-up sets schedules only, no shape.
    training = build_training(config, players, num_pairs=1)
    abstract = jax.eval_shape(lambda: initial_state(config, players, training))
    with Checkpointer(workdir / "checkpoints", keep=config.checkpoint.keep) as checkpointer:
        state, _ = checkpointer.restore(abstract, step)
    if network == "discriminator":
        return Loaded(
            players.discriminator,
            state.discriminator.params,
            players.disc_tokenizer,
            config.method,
            config.model.discriminator,
        )
    params = merge_trainable(players.base, state.policy.params, players.spec.first)
    return Loaded(players.decoder, params, players.tokenizer, config.method, config.model.generator)


def save_imported(
    module: nn.Module, params: Mapping[str, Any], tokenizer: Any, folder: Path, base: str
) -> None:
    """Write parameters as an Orbax checkpoint beside their config and tokenizer."""
    kind = type(module).__name__.lower()
    if kind not in _KINDS:
        raise ValueError(f"Wanted a module of kind {sorted(_KINDS)}, got {kind}.")
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(0, {"params": params}, {"base": base}, wait=True)
    tokenizer.save_pretrained(folder)
    record = {"kind": kind, "base": base, "config": dataclasses.asdict(module.config)}
    (folder / IMPORTED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _load_imported(folder: Path) -> Loaded:
    """Read what `save_imported` wrote."""
    record = json.loads((folder / IMPORTED).read_text(encoding="utf-8"))
    make, make_config = _KINDS[record["kind"]]
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    module = make(make_config(**fields))
    tokens = jnp.zeros((1, 2), jnp.int32)
    variables = jax.eval_shape(module.init, jax.random.key(0), tokens, jnp.ones_like(tokens))
    with Checkpointer(folder / "checkpoints") as checkpointer:
        state, _ = checkpointer.restore({"params": variables["params"]})
    return Loaded(module, state["params"], load_tokenizer(folder), None, record["base"])
