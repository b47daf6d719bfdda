"""Models in from HF folders, hub ids and GGUF files, and out as HF folders.

Reading checks config, vocabulary, tensor names and shapes before the first weight is read. Writing
goes to a folder beside the target, which is renamed when whole.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gapo_jax import hub
from gapo_jax.models.decoder import Decoder
from gapo_jax.models.encoder import Encoder
from gapo_jax.models.heads import Discriminator, RewardModel
from gapo_jax.models.hf import gguf_file, parameter_map
from gapo_jax.models.hf.files import (
    SafetensorsSource,
    open_safetensors,
    read_json,
)
from gapo_jax.models.hf.head_code import HEAD_FILE

_Module = TypeVar("_Module")


def _largest_id(folder: Path) -> tuple[int, str]:
    """Return the largest token id in a folder's tokenizer files and the file that has it; -1 if
    there is none that can be read without its library."""
    found = [(-1, "no file")]
    if (folder / "tokenizer.json").is_file():
        record = read_json(folder / "tokenizer.json")
        vocab = record.get("model", {}).get("vocab", {})
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        added = [token["id"] for token in record.get("added_tokens") or []]
        # It holds all that the older files hold.
        return max([-1, *ids, *added]), "tokenizer.json"
    for name in ("vocab.json", "added_tokens.json"):
        if (folder / name).is_file():
            found.append((max(read_json(folder / name).values(), default=-1), name))
    if (folder / "vocab.txt").is_file():
        with (folder / "vocab.txt").open(encoding="utf-8") as lines:
            found.append((sum(1 for _ in lines) - 1, "vocab.txt"))
    return max(found)


def _check_vocabulary(folder: Path, vocab_size: int) -> None:
    """Raise ValueError if the folder's tokenizer has an id outside the embedding."""
    largest, name = _largest_id(folder)
    if largest >= vocab_size:
        raise ValueError(
            f"Wanted token ids below vocab_size {vocab_size} of {folder / 'config.json'}, got id "
            f"{largest} in {name}. Use the tokenizer that belongs to the model."
        )


def _open_folder(
    folder: Path, kind: str
) -> tuple[parameter_map.Architecture, parameter_map.Config, SafetensorsSource]:
    """Return architecture, config and tensors of an HF folder, having read no weight."""
    raw = read_json(folder / "config.json")
    arch = parameter_map.architecture(raw.get("model_type"), kind)
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise ValueError(
            f"Wanted weights in float32, float16 or bfloat16, got {method!r} quantisation in "
            f"{folder / 'config.json'}. Give the unquantised model or a .gguf file of it."
        )
    generation = folder / "generation_config.json"
    if kind == "decoder" and generation.is_file():
        # Chat models list their end-of-turn tokens here and often not in config.json.
        stops = read_json(generation)
        raw |= {k: v for k in ("eos_token_id", "pad_token_id") if (v := stops.get(k)) is not None}
    config = arch.to_config(raw)
    _check_vocabulary(folder, config.vocab_size)
    return arch, config, SafetensorsSource(folder)


def inspect(src: str | os.PathLike[str]) -> tuple[parameter_map.Config, str]:
    """Return the config of an HF folder, a hub id or a `.gguf` file, and the one of `DTYPES` that
    all its weights have, having read no weight.

    Weights of several dtypes and GGUF files, whose blocks are expanded, count as "float32". Raises
    as `load_decoder`.
    """
    path = hub.resolve(src)
    if path.is_file():
        return gguf_file.read_config(hub.open_gguf(path))[1], "float32"
    arch = parameter_map.ARCHITECTURES.get(str(read_json(path / "config.json").get("model_type")))
    _, config, source = _open_folder(path, arch.kind if arch else "decoder")
    # Old BERT checkpoints also hold their positions, which are integers.
    found = {kind for kind in source.dtypes if kind.startswith(("F", "BF"))}
    half = {"BF16": "bfloat16", "F16": "float16"}
    return config, half.get(found.pop(), "float32") if len(found) == 1 else "float32"


def network_of(src: str | os.PathLike[str]) -> str | None:
    """Return "decoder", "encoder", "reward model" (a decoder that is a sequence classifier) or
    "discriminator" (an encoder with a scalar head), by what the folder holds; None if it is no
    architecture of ours, and "decoder" for a GGUF file. Raises as `hub.resolve`."""
    path = hub.resolve(src)
    if path.is_file():
        return "decoder"
    raw = read_json(path / "config.json")
    arch = parameter_map.ARCHITECTURES.get(str(raw.get("model_type")))
    verifiers = (raw.get("architectures") or [""])[0].endswith("ForSequenceClassification")
    if arch is None:
        return None
    if arch.kind == "encoder":
        verifiers = _head_of(path, arch, SafetensorsSource(path)) is not None
        return "discriminator" if verifiers else "encoder"
    return "reward model" if verifiers else "decoder"


def _head_of(path: Path, arch: parameter_map.Architecture, source: SafetensorsSource) -> str | None:
    """Return whose scalar head an encoder's folder has: "own" (`HEAD_FILE`), "hf", or None."""
    if (path / HEAD_FILE).is_file():
        return "own"
    rules = parameter_map.CLASSIFIERS[arch.model_type].rules
    (last,) = (rule.hf for rule in rules if rule.path == "head/out/kernel")
    return "hf" if source.shapes.get(last, ())[:1] == (1,) else None


def load_decoder(
    src: str | os.PathLike[str], put: parameter_map.Put | None = None, **overrides: Any
) -> tuple[Decoder, dict[str, Any]]:
    """Return `(decoder, params)` of an HF folder, a hub id or a `.gguf` file.

    `params` is a float32 numpy tree, read one tensor at a time; with `put(path, array)` each
    parameter is handed over as soon as it is whole (for example to be placed on devices) and what
    it returns stands in the tree. `overrides` replace fields of the `DecoderConfig` (`dtype`,
    `remat`). Raises FileNotFoundError for a missing source or file, and ValueError for an unknown
    architecture, an unsupported feature or quantisation, a truncated file, a vocabulary larger than
    the embedding, or tensors that do not fit the table one to one.
    """
    path = hub.resolve(src)
    if path.is_file():
        config, params = gguf_file.load_gguf(path, put)
    else:
        arch, config, source = _open_folder(path, "decoder")
        params = parameter_map.import_params(arch, config, source, put)
    return Decoder(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def load_reward_model(
    src: str | os.PathLike[str],
    put: parameter_map.Put | None = None,
    seed: int = 0,
    **overrides: Any,
) -> tuple[RewardModel, dict[str, Any]]:
    """Return `(reward model, params)`: a decoder with a scalar head on its last real token.

    An HF sequence classifier of one label brings its head; any other decoder, as `load_decoder`
    takes them, gets a fresh one, normal with deviation 0.02 by `seed`. Raises as `load_decoder`.
    """
    path = hub.resolve(src)
    if path.is_file():

        def place(name: str, leaf: np.ndarray) -> Any:
            # The output matrix has no use here.
            if put is None or name.startswith("lm_head/"):
                return leaf
            return put(f"decoder/{name}", leaf)

        config, decoder = gguf_file.load_gguf(path, place)
        decoder.pop("lm_head", None)
        params: dict[str, Any] = {"decoder": decoder}
    else:
        arch, config, source = _open_folder(path, "decoder")
        arch = parameter_map.reward_architecture(arch)
        if "score.weight" not in source.shapes:
            rules = tuple(rule for rule in arch.rules if rule.hf != "score.weight")
            arch = dataclasses.replace(arch, rules=rules)
        params = parameter_map.import_params(arch, config, source, put)
    if "head" not in params:
        kernel = np.random.default_rng(seed).normal(0.0, 0.02, (config.d_model, 1))
        leaf = kernel.astype(np.float32)
        params["head"] = {"out": {"kernel": put("head/out/kernel", leaf) if put else leaf}}
    return RewardModel(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def load_encoder(
    src: str | os.PathLike[str], put: parameter_map.Put | None = None, **overrides: Any
) -> tuple[Encoder, dict[str, Any]]:
    """Return `(encoder, params)` of an HF folder or hub id; as `load_decoder`, no GGUF.

    BERT's pooler and task heads are left out: the encoder ends with its hidden states.
    """
    arch, config, source = _open_folder(_encoder_folder(src), "encoder")
    params = parameter_map.import_params(arch, config, source, put)
    return Encoder(dataclasses.replace(config, **overrides)), params  # type: ignore[arg-type]


def _encoder_folder(src: str | os.PathLike[str]) -> Path:
    """Return the folder of a source, which no encoder has in one file."""
    path = hub.resolve(src)
    if path.is_file():
        raise ValueError(f"Wanted an HF folder or hub id of an encoder, got the file {path}.")
    return path


def load_discriminator(
    src: str | os.PathLike[str],
    put: parameter_map.Put | None = None,
    pooling: str = "mean",
    hidden_dim: int | None = None,
    **overrides: Any,
) -> tuple[Discriminator, dict[str, Any]]:
    """Return `(discriminator, params)` of an HF folder or hub id of an encoder; as `load_encoder`.

    What has a scalar head brings it: a sequence classifier of one label, and the encoder with
    discriminator_head.safetensors that `save_hf` writes. Its `pooling` and `hidden_dim` are then
    those of the source. Any other encoder (also a classifier of several labels) gets the given
    ones, and `params` lacks `head`: take that from `Discriminator.init`.
    """
    path = _encoder_folder(src)
    arch, config, source = _open_folder(path, "encoder")
    head = _head_of(path, arch, source)
    fields = dataclasses.replace(config, **overrides)
    if head == "hf":
        params = parameter_map.import_params(
            parameter_map.CLASSIFIERS[arch.model_type], config, source, put
        )
        return Discriminator(fields, "hf"), params  # type: ignore[arg-type]
    params: dict[str, Any] = {}
    if head == "own":
        params["head"], pooling, hidden_dim = _read_head(path / HEAD_FILE, put)
    place = None if put is None else lambda name, leaf: put(f"encoder/{name}", leaf)
    params["encoder"] = parameter_map.import_params(arch, config, source, place)
    return Discriminator(fields, pooling, hidden_dim), params  # type: ignore[arg-type]


def _read_head(path: Path, put: parameter_map.Put | None) -> tuple[dict[str, Any], str, int | None]:
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
