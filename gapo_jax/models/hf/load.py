"""Read networks from Hugging Face folders, hub ids and GGUF files.

The config and the names, shapes and dtypes of all tensors are checked before the first weight is
read.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gapo_jax import hub, rng
from gapo_jax.models.decoder import Decoder
from gapo_jax.models.encoder import Encoder
from gapo_jax.models.encoder_config import EncoderConfig
from gapo_jax.models.heads import Discriminator, RewardModel
from gapo_jax.models.hf import gguf_file, parameter_map
from gapo_jax.models.hf.architecture import Architecture, Config
from gapo_jax.models.hf.config_json import read_config
from gapo_jax.models.hf.decoder_tables import reward_architecture
from gapo_jax.models.hf.files import SafetensorsSource, open_safetensors, read_json
from gapo_jax.models.hf.head_code import HEAD_FILE
from gapo_jax.models.hf.parameter_map import Put
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream

_WAY_OUT = (
    "Give a model that was trained to score texts, or let the run train it "
    "(config.discriminator.warmup_epochs above 0)."
)


class Opened(NamedTuple):
    """A folder of which no weight has been read yet."""

    arch: Architecture
    config: Any  # the `Config` of the architecture's kind
    source: SafetensorsSource


def open_folder(folder: Path, kind: str | None = None) -> Opened:
    """Open a Hugging Face folder; `kind` and errors as in `read_config` and `SafetensorsSource`."""
    arch, config, raw = read_config(folder, kind)
    source = SafetensorsSource(folder, raw.get("transformers_weights"))
    return Opened(arch, _as_stored(arch, config, source), source)


def _as_stored(arch: Architecture, config: Config, source: SafetensorsSource) -> Config:
    """Return the config, corrected by what the tensors say that config.json does not."""
    names = {table: name for name, table in parameter_map.canonical_names(arch, source).items()}
    if isinstance(config, EncoderConfig):
        has_pooler = any(rule.hf in names for rule in arch.rules if rule.path == "pooler/kernel")
        return dataclasses.replace(config, pooler=has_pooler)
    if not config.tie_embeddings:
        return config
    (embedding,) = (rule.hf for rule in arch.rules if rule.path == "embed/embedding")
    pair = [names.get(name) for name in (embedding, "lm_head.weight")]
    if not all(name and parameter_map.is_float(source, name) for name in pair):
        return config
    if source.are_equal(*map(str, pair)):
        return config
    warnings.warn(
        f"config.json ties the output matrix to the embedding, but the file has a {pair[1]} that "
        f"differs from {pair[0]}. It is read, as transformers does. Set tie_word_embeddings to "
        "false in config.json.",
        stacklevel=4,
    )
    return dataclasses.replace(config, tie_embeddings=False)


def inspect(src: str | os.PathLike[str]) -> tuple[Config, str]:
    """Return the config of a source and the dtype of its weights, having read no weight.

    The dtype is the one of `files.DTYPES` that all weights have; "float32" for weights of several
    dtypes and for GGUF files, whose blocks are expanded. Raises as `load_decoder`.
    """
    path = hub.resolve(src)
    if path.is_file():
        return gguf_file.read_config(hub.open_gguf(path))[1], "float32"
    _, config, source = open_folder(path)
    # Old BERT checkpoints also hold their positions, which are integers.
    kinds = {kind for kind in source.dtypes.values() if kind.startswith(("F", "BF"))}
    half = {"BF16": "bfloat16", "F16": "float16"}
    return config, half.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def network_of(src: str | os.PathLike[str]) -> str | None:
    """Return which network a source holds; None if it is no architecture of ours.

    It is "decoder", "encoder", "reward model" (a decoder that is a sequence classifier) or
    "discriminator" (an encoder with a scalar head). A GGUF file holds a decoder.

    Raises:
        FileNotFoundError, ValueError: as `hub.resolve` and `open_folder` do.
    """
    path = hub.resolve(src)
    if path.is_file():
        return "decoder"
    raw = read_json(path / "config.json")
    arch = parameter_map.ARCHITECTURES.get(str(raw.get("model_type")))
    if arch is None:
        return None
    if arch.kind == "encoder":
        source = SafetensorsSource(path, raw.get("transformers_weights"))
        return "encoder" if _head_of(path, arch, source) is None else "discriminator"
    return "reward model" if _is_classifier(raw) else "decoder"


def _is_classifier(raw: JsonObject) -> bool:
    names = raw.get("architectures")
    return isinstance(names, list) and str(names[:1]).endswith("ForSequenceClassification']")


def _head_of(path: Path, arch: Architecture, source: SafetensorsSource) -> str | None:
    """Return whose scalar head an encoder's folder has: "own" (`HEAD_FILE`), "hf", or None."""
    if (path / HEAD_FILE).is_file():
        return "own"
    rules = parameter_map.CLASSIFIERS[arch.model_type].rules
    (last,) = (rule.hf for rule in rules if rule.path == "head/out/kernel")
    return "hf" if source.shapes.get(last, ())[:1] == (1,) else None


def load_decoder(
    src: str | os.PathLike[str], put: Put | None = None, **overrides: object
) -> tuple[Decoder, JsonObject]:
    """Return `(decoder, params)` of a Hugging Face folder, a hub id or a `.gguf` file.

    Args:
        src: the source.
        put: takes (path, float32 array) of each parameter as soon as it has been read, for example
            to its devices; what it returns is put into the tree. Without it `params` is a tree of
            numpy arrays.
        overrides: replace fields of the `DecoderConfig`, such as `dtype` and `remat`.

    Raises:
        FileNotFoundError: the source or one of its files is missing.
        ValueError: an unknown architecture, a feature or quantisation that is not supported, a
            damaged file, or tensors that do not fit the table one to one.
    """
    path = hub.resolve(src)
    if path.is_file():
        config, params = gguf_file.load_gguf(path, put)
    else:
        arch, config, source = open_folder(path, "decoder")
        params = parameter_map.import_params(arch, config, source, put)
    return Decoder(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def load_reward_model(
    src: str | os.PathLike[str],
    put: Put | None = None,
    seed: int | None = None,
    **overrides: object,
) -> tuple[RewardModel, JsonObject]:
    """Return `(reward model, params)`: a decoder with a scalar head on its last real token.

    Args:
        src: a sequence classifier with one label, which brings its head, or any other decoder.
        put: as in `load_decoder`.
        seed: allows a new head where the source has none: normal with deviation 0.02. None asks
            for the source's own head, as a reward model needs that is not trained any more.
        overrides: as in `load_decoder`.

    Raises:
        FileNotFoundError, ValueError: as `load_decoder`, and ValueError if the head is missing and
            there is no `seed`.
    """
    path = hub.resolve(src)
    if path.is_file():
        _need_seed(seed, path, "a .gguf file, which has no head")

        def place(name: str, leaf: np.ndarray) -> Any:
            # The output matrix is not used.
            if put is None or name.startswith("lm_head/"):
                return leaf
            return put(f"decoder/{name}", leaf)

        config, decoder = gguf_file.load_gguf(path, place)
        decoder.pop("lm_head", None)
        params: dict[str, Any] = {"decoder": decoder}
    else:
        arch, config, source = open_folder(path, "decoder")
        arch = reward_architecture(arch)
        if "score.weight" not in source.shapes:
            _need_seed(seed, path, "weights without it")
            rules = tuple(rule for rule in arch.rules if rule.hf != "score.weight")
            arch = dataclasses.replace(arch, rules=rules)
        params = parameter_map.import_params(arch, config, source, put)
    if "head" not in params:
        assert seed is not None, "_need_seed has seen to it"
        kernel = rng.stream(seed, Stream.HEAD_WEIGHTS).normal(0.0, 0.02, (config.d_model, 1))
        leaf = kernel.astype(np.float32)
        params["head"] = {"out": {"kernel": put("head/out/kernel", leaf) if put else leaf}}
    return RewardModel(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def _need_seed(seed: int | None, path: Path, got: str) -> None:
    """Raise ValueError if no new head was asked for."""
    if seed is None:
        raise ValueError(
            f"Wanted a reward model with its scalar head (score.weight), got {got}: {path}. A "
            f"head made up here would score at random. {_WAY_OUT}"
        )


def load_encoder(
    src: str | os.PathLike[str], put: Put | None = None, **overrides: object
) -> tuple[Encoder, JsonObject]:
    """Return `(encoder, params)` of a Hugging Face folder or hub id; as `load_decoder`, no GGUF.

    The heads of tasks are left out. BERT's pooler, which nothing here computes, is carried along,
    so that an export has it again.
    """
    arch, config, source = open_folder(_encoder_folder(src), "encoder")
    params = parameter_map.import_params(arch, config, source, put)
    return Encoder(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def _encoder_folder(src: str | os.PathLike[str]) -> Path:
    """Return the folder of a source, which for an encoder may not be one file."""
    path = hub.resolve(src)
    if path.is_file():
        raise ValueError(f"Wanted an HF folder or hub id of an encoder, got the file {path}.")
    return path


def load_discriminator(
    src: str | os.PathLike[str],
    put: Put | None = None,
    pooling: str = "mean",
    hidden_dim: int | None = None,
    own_head: bool = False,
    **overrides: object,
) -> tuple[Discriminator, JsonObject]:
    """Return `(discriminator, params)` of a Hugging Face folder or hub id of an encoder.

    A sequence classifier with one label and an export with discriminator_head.safetensors bring
    their head, and `pooling` and `hidden_dim` with it. For any other encoder, such as a classifier
    with several labels, they are the given ones, and `params` lacks `head`: take that from
    `Discriminator.init`.

    Args:
        src, put, overrides: as in `load_decoder`.
        pooling, hidden_dim: of the new head, see `Discriminator`.
        own_head: whether the source must bring its head, as a discriminator needs that is not
            trained any more.

    Raises:
        FileNotFoundError, ValueError: as `load_decoder`, and ValueError if the head is damaged, or
            is missing under `own_head`.
    """
    path = _encoder_folder(src)
    arch, config, source = open_folder(path, "encoder")
    head = _head_of(path, arch, source)
    if own_head and head is None:
        raise ValueError(
            f"Wanted a discriminator with its scalar head, got {path}, an encoder without one. A "
            f"head made up here would score at random. {_WAY_OUT}"
        )
    config = dataclasses.replace(config, pooler=False)
    fields = dataclasses.replace(config, **overrides)  # type: ignore[arg-type]
    if head == "hf":
        classifier = parameter_map.classifier_of(config)
        params = parameter_map.import_params(classifier, config, source, put)
        return Discriminator(fields, "hf"), params
    params: dict[str, Any] = {}
    if head == "own":
        params["head"], pooling, hidden_dim = _read_head(path / HEAD_FILE, put)
    place = None if put is None else lambda name, leaf: put(f"encoder/{name}", leaf)
    params["encoder"] = parameter_map.import_params(arch, config, source, place)
    return Discriminator(fields, pooling, hidden_dim), params


def _read_head(path: Path, put: Put | None) -> tuple[JsonObject, str, int | None]:
    """Return parameters, pooling and hidden width of a head that `save_hf` wrote."""
    with open_safetensors(path) as file:
        pooling = (file.metadata() or {}).get("pooling")
        leaves = {name: file.get_tensor(name) for name in file.keys()}
    layers = {name.split("/")[0] for name in leaves}
    whole = {f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")}
    if pooling is None or leaves.keys() != whole or layers not in ({"out"}, {"up", "out"}):
        raise ValueError(
            f"Wanted the head of a discriminator with its pooling in {path}, got tensors "
            f"{sorted(leaves)} and pooling {pooling}. Export the discriminator again."
        )
    head: dict[str, Any] = {layer: {} for layer in sorted(layers)}
    for name, leaf in leaves.items():
        layer, part = name.split("/")
        head[layer][part] = leaf if put is None else put(f"head/{name}", leaf)
    return head, pooling, leaves["up/bias"].shape[0] if "up" in layers else None
