"""Write networks as Hugging Face folders."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from gapo_jax import io
from gapo_jax.models.decoder import Decoder
from gapo_jax.models.encoder import Encoder
from gapo_jax.models.heads import Discriminator, RewardModel
from gapo_jax.models.hf import model_card, parameter_map
from gapo_jax.models.hf.files import (
    DTYPES,
    read_json,
    replacing_folder,
    save_tensors,
    write_shards,
)
from gapo_jax.models.hf.head_code import AUTO_MAP, CODE, HEAD_FILE, MODULE


def save_hf(
    module: nn.Module,
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    dtype: str = "float32",
    method: str | None = None,
    base: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> Path:
    """Write a `Decoder`, `Encoder`, `Discriminator` or `RewardModel` for transformers to load.

    config.json, safetensors in `dtype` (sharded with an index above `max_shard_bytes`), tokenizer
    files with the chat template, generation_config.json for decoders, and a README.md that names
    `method`, `base` and `metrics`. The folder appears when whole; an earlier export there is
    replaced. A discriminator with pooling "hf" (or a head that is the same function) becomes the
    AutoModelForSequenceClassification of its family; any other one is written as its encoder
    (without pooler), discriminator_head.safetensors, which the card explains, and the Python file
    with which AutoModelForSequenceClassification loads both under `trust_remote_code=True`. Returns
    the folder.

    Raises ValueError for an unknown dtype, parameters that are not the module's, a tokenizer with
    ids outside the embedding, or a folder that holds something else.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Wanted dtype in {sorted(DTYPES)}, got {dtype!r}.")
    arch, config, trees = _layout(module, params)
    if tokenizer is not None and max(tokenizer.get_vocab().values()) >= config.vocab_size:
        raise ValueError(
            f"Wanted token ids below the vocabulary of {config.vocab_size}, got a tokenizer "
            f"of {len(tokenizer)} tokens. Pass the tokenizer that belongs to the model."
        )
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
        if "head" in trees:
            head = {path: np.asarray(leaf) for path, leaf in parameter_map.flatten(trees["head"])}
            save_tensors(target / HEAD_FILE, head, "np", pooling=module.pooling)
            (target / f"{MODULE}.py").write_text(CODE, encoding="utf-8")
        card = model_card.write(module, arch, dtype, method, base, metrics)
        (target / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)


def _layout(
    module: nn.Module, params: Mapping[str, Any]
) -> tuple[parameter_map.Architecture, parameter_map.Config, dict[str, Any]]:
    """Return the architecture to write as, the config, and the trees {"model"[, "head"]}."""
    if isinstance(module, (Decoder, Encoder)):
        return parameter_map.architecture_of(module.config), module.config, {"model": params}
    if isinstance(module, RewardModel):
        arch = parameter_map.reward_architecture(parameter_map.architecture_of(module.config))
        return arch, module.config, {"model": params}
    if not isinstance(module, Discriminator):
        raise ValueError(
            "Wanted a Decoder, Encoder, Discriminator or RewardModel, got a "
            f"{type(module).__name__}. Pass the network and its own parameter tree."
        )
    if module.is_hf:
        return parameter_map.classifier_of(module.config), module.config, {"model": params}
    trees = {"model": params["encoder"], "head": params["head"]}
    return parameter_map.architecture_of(module.config), module.config, trees


def _check_family(
    arch: parameter_map.Architecture, config: parameter_map.Config, raw: Mapping[str, Any]
) -> None:
    """Raise ValueError if config.json of the family cannot say what the network's config says."""
    back = arch.to_config(raw)
    # How to compute, which no config.json holds.
    skipped = ("dtype", "remat", "scan_unroll", "attention")
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


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write tokenizer files, under the class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        io.write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
