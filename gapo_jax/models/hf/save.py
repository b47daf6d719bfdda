"""Write networks as Hugging Face folders.

Everything goes into a temporary folder beside the target, which takes its name when it is complete.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flax import linen as nn

from gapo_jax import io
from gapo_jax.models.decoder import Decoder
from gapo_jax.models.encoder import Encoder
from gapo_jax.models.heads import Discriminator, RewardModel
from gapo_jax.models.hf import model_card, parameter_map
from gapo_jax.models.hf.architecture import Architecture, Config, Json
from gapo_jax.models.hf.decoder_tables import reward_architecture
from gapo_jax.models.hf.files import (
    DTYPES,
    read_json,
    replacing_folder,
    save_tensors,
    write_shards,
)
from gapo_jax.models.hf.head_code import AUTO_MAP, CODE, HEAD_FILE, MODULE
from gapo_jax.types import Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def save_hf(
    module: nn.Module,
    params: Params,
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    dtype: str = "float32",
    method: str | None = None,
    base: str | None = None,
    metrics: Json | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write a `Decoder`, `Encoder`, `Discriminator` or `RewardModel` for transformers to load.

    The folder gets config.json, safetensors, tokenizer files with the chat template,
    generation_config.json for decoders, and a README.md. It appears when it is complete, and
    replaces an earlier export.

    A discriminator with pooling "hf" (or with a head that is the same function) becomes the
    AutoModelForSequenceClassification of its family. Any other one is written as its encoder,
    without pooler, and discriminator_head.safetensors, which the card explains, with the Python
    file by which AutoModelForSequenceClassification loads both under `trust_remote_code=True`.

    Args:
        module: the network.
        params: its parameters.
        folder: where to write.
        tokenizer: goes into the folder too.
        dtype: of the weights, one of `files.DTYPES`.
        method, base, metrics: for the card, see `model_card.write`.
        max_shard_bytes: above it the weights are split into files with an index.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown dtype, parameters that are not the module's, a tokenizer whose
            vocabulary is larger than the embedding, or a folder that holds something else.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Wanted dtype in {sorted(DTYPES)}, got {dtype!r}.")
    arch, config, trees = _layout(module, params)
    if tokenizer is not None:
        _check_vocabulary(tokenizer, config.vocab_size)
    raw = {
        "architectures": [arch.class_name],
        "model_type": arch.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,
        **arch.from_config(config),
    }
    _check_family(arch, config, raw)
    if isinstance(module, (RewardModel, Discriminator)):
        raw |= {"id2label": {"0": "OBEYS"}, "label2id": {"OBEYS": 0}}
    if "head" in trees:
        raw["auto_map"] = AUTO_MAP
    with replacing_folder(Path(folder)) as target:
        tensors = parameter_map.export_tensors(arch, config, trees["model"])
        write_shards(target, tensors, np.dtype(DTYPES[dtype]), max_shard_bytes)
        io.write_json(target / "config.json", raw)
        if isinstance(module, Decoder):
            keys = ("eos_token_id", "pad_token_id", "bos_token_id")
            io.write_json(target / "generation_config.json", {key: raw[key] for key in keys})
        if tokenizer is not None:
            _write_tokenizer(target, tokenizer)
        if isinstance(module, Discriminator) and "head" in trees:
            head = {path: np.asarray(leaf) for path, leaf in parameter_map.flatten(trees["head"])}
            save_tensors(target / HEAD_FILE, head, "np", pooling=module.pooling)
            io.write_text(target / f"{MODULE}.py", CODE)
        card = model_card.write(module, arch, dtype, method, base, metrics)
        io.write_text(target / "README.md", card)
    return Path(folder)


def _check_vocabulary(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer is of a model with more embeddings.

    Added tokens may exceed them: Gemma 3's text models have one for images, which no text gives.
    """
    ids = tokenizer.get_vocab()
    largest = max(
        (i for token, i in ids.items() if token not in tokenizer.get_added_vocab()), default=0
    )
    if largest >= vocab_size:
        raise ValueError(
            f"Wanted token ids below the vocabulary of {vocab_size}, got a tokenizer with id "
            f"{largest}. Pass the tokenizer that belongs to the model."
        )


def _layout(module: nn.Module, params: Params) -> tuple[Architecture, Config, dict[str, Params]]:
    """Return the architecture to write as, the config, and the trees {"model"[, "head"]}."""
    if isinstance(module, (Decoder, Encoder)):
        return parameter_map.architecture_of(module.config), module.config, {"model": params}
    if isinstance(module, RewardModel):
        arch = reward_architecture(parameter_map.architecture_of(module.config))
        return arch, module.config, {"model": params}
    if not isinstance(module, Discriminator):
        raise ValueError(
            "Wanted a Decoder, Encoder, Discriminator or RewardModel, got a "
            f"{type(module).__name__}. Pass the network and its own parameter tree."
        )
    config = dataclasses.replace(module.config, pooler=False)
    encoder = {name: leaf for name, leaf in params["encoder"].items() if name != "pooler"}
    head = params["head"]
    if module.is_hf:
        return (
            parameter_map.classifier_of(config),
            config,
            {"model": {"encoder": encoder, "head": head}},
        )
    return parameter_map.architecture_of(config), config, {"model": encoder, "head": head}


def _check_family(arch: Architecture, config: Config, raw: Json) -> None:
    """Raise ValueError if config.json of the family cannot express the network's config."""
    back = arch.to_config(raw)
    # Fields that no config.json holds.
    skipped = ("dtype", "remat", "scan_unroll", "attention", "pooler")
    lost = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in skipped and getattr(config, field.name) != getattr(back, field.name)
    }
    if lost:
        raise ValueError(
            f"Wanted a network that config.json of {arch.model_type!r} can describe, got {lost}, "
            f"which it cannot. Set `family` of the {type(config).__name__} to the one that has it."
        )


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write tokenizer files, under a class name that both transformers 4 and 5 know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        io.write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
