"""LoRA adapters in and out in the format of PEFT: adapter_config.json, adapter_model.safetensors.

The names come from the architecture's table, as they do for whole models. PEFT stores
`lora_A.weight` [E, in] and `lora_B.weight` [out, E] per layer and multiplies by alpha / E in the
forward.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gapo_jax import io, rng
from gapo_jax.models.decoder import Decoder
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.hf.architecture import FLOATS, Json
from gapo_jax.models.hf.files import (
    MARK,
    open_safetensors,
    read_json,
    replacing_folder,
    save_tensors,
)
from gapo_jax.models.hf.model_card import plain
from gapo_jax.models.hf.parameter_map import architecture_of, rules_of
from gapo_jax.models.lora import Adapters, kernels, put
from gapo_jax.records import JsonObject

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Options that may have any value. They are read here, or say where the tensors in the file belong
# (their names say so too), or matter in training alone, or belong to a way of starting that
# `_STARTS` lacks. Any other option must be off: a newer PEFT may have one that changes the forward.
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Values of `init_lora_weights` that leave the base as it is. The others (pissa, olora, corda,
# loftq, ...) subtract the adapter from the base when PEFT loads it.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_CARD = """---
library_name: peft
tags:
- gapo_jax
- lora
---

# LoRA adapter{trained}

{mark} (JAX/Flax).

- method: {method}
- base: {base}

The adapter belongs to exactly the weights that it was trained on. Load it with

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
```

where `base` is the base above as a Hugging Face folder (`python scripts/convert.py export BASE DST`
writes one).
"""


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds an adapter of PEFT."""
    return (Path(folder) / CONFIG).is_file()


def _modules(config: DecoderConfig) -> dict[str, list[str]]:
    """Return {"model.layers.{layer}.self_attn.q_proj": ["attn/q"]} of all matrices of a layer.

    A matrix that the Hugging Face model stores joined lists its parts in order.
    """
    modules = {}
    for rule in rules_of(architecture_of(config), config):
        parts = [re.fullmatch(r"layers/(.+)/kernel", path) for path in rule.path.split()]
        if rule.per_layer and all(parts):
            modules[rule.hf.removesuffix(".weight")] = [part[1] for part in parts if part]
    return modules


def _suffixes(modules: Iterable[str]) -> dict[str, str]:
    """Return the shortest ending of each module's name that no other module of a layer has."""
    inner = {module: module.split("{layer}.")[1] for module in modules}
    lasts = [name.split(".")[-1] for name in inner.values()]
    return {
        module: name.split(".")[-1] if lasts.count(name.split(".")[-1]) == 1 else name
        for module, name in inner.items()
    }


def _widths(decoder: Decoder) -> dict[str, tuple[int, int]]:
    """Return {"attn/q": (in, out)} of all matrices of a layer."""
    tokens = jax.ShapeDtypeStruct((1, 2), np.int32)
    variables = jax.eval_shape(decoder.init, rng.key_shape(), tokens, tokens)
    stacks = kernels(variables["params"]["layers"]).items()
    return {path: (leaf.shape[1], leaf.shape[2]) for path, leaf in stacks}


def save_adapter(
    decoder: Decoder,
    adapters: Adapters,
    folder: str | os.PathLike[str],
    *,
    base: str | None = None,
    method: str | None = None,
) -> Path:
    """Write adapters of `decoder` as a folder that `peft.PeftModel.from_pretrained` loads.

    Adapters of fewer layers than the decoder has belong to its upper ones. The weights are float32.
    As in `save_hf` the folder appears when it is complete, and replaces an earlier export.

    Args:
        decoder: what the adapters belong to.
        adapters: the adapters.
        folder: where to write.
        base: where PEFT finds the base model, a hub id or a folder.
        method: how they were trained, for the card.

    Returns:
        The folder.

    Raises:
        ValueError: the adapters are of another decoder, or the folder holds something else.
    """
    config, modules, widths = decoder.config, _modules(decoder.config), _widths(decoder)
    for path, pair in adapters.pairs.items():
        count, got = pair["a"].shape[0], (pair["a"].shape[1], pair["b"].shape[2])
        if count > config.num_layers or got != widths.get(path):
            raise ValueError(
                f"Wanted adapters of at most {config.num_layers} layers for matrices [in, out] of "
                f"{widths}, got {count} layers and {got} for {path}. They are of another decoder."
            )
    first = config.num_layers - next(iter(adapters.pairs.values()))["a"].shape[0]
    card = _CARD.format(
        mark=MARK,
        trained=f" trained by {plain(method)}" if method else "",
        method=plain(method or "not stated"),
        base=plain(base or "not stated"),
    )
    with replacing_folder(Path(folder)) as target:
        joined = _join(adapters, modules, widths)
        save_tensors(target / WEIGHTS, _tensors(joined, first), "pt")
        io.write_json(target / CONFIG, _record(config, adapters, joined, first, base))
        io.write_text(target / "README.md", card)
    return Path(folder)


def _join(
    adapters: Adapters, modules: Mapping[str, list[str]], widths: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {module: (A [L, in, nE], B [L, nE, out])} of the adapted modules.

    For n adapted parts of a joined matrix the As are side by side and the Bs on the diagonal.
    """
    joined = {}
    for module, paths in modules.items():
        pairs = {path: adapters.pairs[path] for path in paths if path in adapters.pairs}
        if not pairs:
            continue
        a_LDE = np.concatenate([np.asarray(pair["a"]) for pair in pairs.values()], axis=-1)
        b_LEF = np.zeros((*a_LDE.shape[::2], sum(widths[path][1] for path in paths)), np.float32)
        row = column = 0
        for path in paths:
            width = widths[path][1]
            if path in pairs:
                block = np.asarray(pairs[path]["b"])
                b_LEF[:, row : row + block.shape[1], column : column + width] = block
                row += block.shape[1]
            column += width
        joined[module] = (a_LDE, b_LEF)
    return joined


def _tensors(
    joined: Mapping[str, tuple[np.ndarray, np.ndarray]], first: int
) -> dict[str, np.ndarray]:
    """Return the tensors under PEFT's names."""
    tensors = {}
    for module, pair in joined.items():
        for letter, stack in zip("AB", pair):
            for layer, matrix in enumerate(stack, start=first):
                name = f"{_PREFIX}{module.format(layer=layer)}.lora_{letter}.weight"
                tensors[name] = np.ascontiguousarray(matrix.T)
    return tensors


def _record(
    config: DecoderConfig,
    adapters: Adapters,
    joined: Mapping[str, tuple[np.ndarray, np.ndarray]],
    first: int,
    base: str | None,
) -> JsonObject:
    """Return the contents of adapter_config.json."""
    arch = architecture_of(config)
    rank = next(iter(adapters.pairs.values()))["a"].shape[-1]
    suffixes = _suffixes(_modules(config))
    ranks = {suffixes[module]: a_LDE.shape[-1] for module, (a_LDE, _) in joined.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": adapters.alpha,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: adapters.scale * own for name, own in ranks.items() if own != rank},
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "layers_to_transform": list(range(first, config.num_layers)) if first else None,
        # Only GPT-2's Conv1D stores its matrices as we do, [in, out].
        "fan_in_fan_out": not any(rule.transpose for rule in arch.rules if rule.per_layer),
    }


def load_adapter(folder: str | os.PathLike[str], decoder: Decoder) -> tuple[Adapters, int]:
    """Read an adapter of PEFT for `decoder`; return it and the lowest layer that it covers.

    Layers above that one without an adapter get zeros. Projections with a smaller rank or another
    alpha (rank_pattern, alpha_pattern) are padded with zeros and scaled, so that one rank and one
    scale hold for all. The parts of a joined matrix share their A.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not LoRA, an option that is not supported, tensors that do not fit the decoder
            one to one, or a damaged file.
    """
    record = _read_config(Path(folder))
    modules, widths = _modules(decoder.config), _widths(decoder)
    placed = _place(_read_tensors(Path(folder)), modules, decoder.config.num_layers)
    first = min(layer for _, layer in placed)
    count = decoder.config.num_layers - first
    rank = max(pair["A"].shape[0] for pair in placed.values())
    scale = _scale(record, record["r"], record["lora_alpha"])
    tree: dict[str, Any] = {}
    for module in dict.fromkeys(module for module, _ in placed):
        paths = modules[module]
        width_in = widths[paths[0]][0]
        ends = np.cumsum([widths[path][1] for path in paths])
        a_LDE = np.zeros((count, width_in, rank), np.float32)
        b_LEF = np.zeros((count, rank, ends[-1]), np.float32)
        for layer in range(count):
            if (module, first + layer) not in placed:
                continue
            name, pair = module.format(layer=first + layer), placed[module, first + layer]
            own = pair["A"].shape[0]
            if pair["A"].shape != (own, width_in) or pair["B"].shape != (ends[-1], own):
                raise ValueError(
                    f"Wanted lora_A [rank, {width_in}] and lora_B [{ends[-1]}, rank] for {name}, "
                    f"got {pair['A'].shape} and {pair['B'].shape}. The adapter is of another base."
                )
            alpha = _pattern(record.get("alpha_pattern"), name, record["lora_alpha"])
            a_LDE[layer, :, :own] = pair["A"].T
            b_LEF[layer, :own] = pair["B"].T * np.float32(_scale(record, own, alpha) / scale)
        for path, part in zip(paths, np.split(b_LEF, ends[:-1], axis=-1)):
            put(tree, path, {"a": a_LDE, "b": part})
    return Adapters(tree, scale * rank), first


def _scale(record: Json, rank: int, alpha: float) -> float:
    """Return the factor of B A: alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    return alpha / rank**0.5 if record.get("use_rslora") else alpha / rank


def _pattern(patterns: Mapping[str, float] | None, name: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _read_config(folder: Path) -> Json:
    """Return the contents of adapter_config.json, having checked that it is plain LoRA."""
    path = folder / CONFIG
    record = read_json(path)
    if record.get("peft_type") != "LORA":
        raise ValueError(
            f"Wanted an adapter of type LORA, got {record.get('peft_type')!r} in {path}. Give a "
            "LoRA adapter."
        )
    for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern"):
        value = record.get(key)
        # A pattern maps names to numbers, and may be empty or absent.
        numbers = (value or {}) if key.endswith("pattern") else {key: value}
        if not isinstance(numbers, dict) or not all(map(_is_positive, numbers.values())):
            raise ValueError(
                f"Wanted numbers above 0 as {key} in {path}, got {value!r}. Save the adapter again."
            )
    _check_options(record, path)
    return record


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _check_options(record: Json, path: Path) -> None:
    """Raise ValueError if an option of an adapter might change what it computes."""
    allowed = {"init_lora_weights": _STARTS, "bias": (None, "none")}
    odd = [
        f"{key}={value!r}"
        for key, value in record.items()
        if key not in _HARMLESS and (value not in allowed[key] if key in allowed else value)
    ]
    if odd:
        raise ValueError(
            f"Wanted plain LoRA, got {', '.join(odd)} in {path}. "
            "Merge the adapter with PEFT (merge_and_unload, save_pretrained) and give that folder."
        )


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of adapter_model.safetensors."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"Wanted {WEIGHTS} in {folder}, got no such file. Save the adapter with "
            "safe_serialization=True."
        )
    with open_safetensors(path) as file:
        packed = [n for n in file.keys() if file.get_slice(n).get_dtype() not in FLOATS]
        if packed:
            raise ValueError(
                f"Wanted float32, float16 or bfloat16 in {path}, got "
                f"{file.get_slice(packed[0]).get_dtype()} in {packed[0]}. Save the adapter again."
            )
        return {name: file.get_tensor(name) for name in file.keys()}


def _place(
    tensors: Mapping[str, np.ndarray], modules: Mapping[str, list[str]], num_layers: int
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Return {(module, layer): {"A", "B"}}; ValueError unless every tensor has its place."""
    places = {
        _PREFIX + module.format(layer=layer): (module, layer)
        for module in modules
        for layer in range(num_layers)
    }
    placed: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    unused = []
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match and match[1] in places:
            placed.setdefault(places[match[1]], {})[match[2]] = tensor
        else:
            unused.append(name)
    halves = [module.format(layer=n) for (module, n), pair in placed.items() if len(pair) < 2]
    if unused or halves or not placed:
        raise ValueError(
            f"Wanted lora_A and lora_B for matrices of the base's {num_layers} layers "
            f"({', '.join(modules)}), got tensors that fit none: {unused[:8]}; pairs that lack "
            f"one: {halves[:8]}. The adapter is of another base, or adapts embeddings: merge it "
            "with PEFT (merge_and_unload) and give that folder."
        )
    return placed
