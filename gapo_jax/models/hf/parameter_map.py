"""Hugging Face tensors <-> parameters, by `decoder_tables` and `encoder_tables`, both ways.

A row (`Rule`) names a tensor and the parameters that it fills. Import uses every tensor exactly
once and fills every parameter exactly once, or raises with both lists. Export reads the same table
backwards, so that import followed by export gives the source tensors bit for bit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.encoder_config import EncoderConfig
from gapo_jax.models.hf.architecture import FLOATS, Architecture, Config, Rule, TensorSource
from gapo_jax.models.hf.decoder_tables import DECODERS
from gapo_jax.models.hf.encoder_tables import CLASSIFIERS, ENCODERS
from gapo_jax.models.lora import put as put_leaf
from gapo_jax.records import Json, JsonObject
from gapo_jax.types import Params

# Takes (path, float32 array) of a parameter that has just been read and returns what stands in the
# tree for it, for example the array on its devices.
Put = Callable[[str, np.ndarray], Any]

ARCHITECTURES = {arch.model_type: arch for arch in DECODERS} | ENCODERS


def architecture(model_type: object, kind: str) -> Architecture:
    """Return the table of `model_type`, which must be of `kind` ("decoder" or "encoder").

    Raises:
        ValueError: there is none; the message has the nearest supported architecture.
    """
    known = {name: arch for name, arch in ARCHITECTURES.items() if arch.kind == kind}
    asked = str(model_type)
    if asked in known:
        return known[asked]
    close = [name for name in known if name.startswith(asked) or asked.startswith(name)]
    close = close or difflib.get_close_matches(asked, known, 1, 0.5) or list(known)
    article = "an" if kind == "encoder" else "a"
    raise ValueError(
        f"Wanted {article} {kind} of type {sorted(known)}, got model_type {model_type!r}. The "
        f"nearest supported choice is {close[0]!r}: give a model of that type."
    )


def architecture_of(config: Config) -> Architecture:
    """Return the architecture that a network of this config is written as."""
    return ARCHITECTURES[config.family]


def classifier_of(config: EncoderConfig) -> Architecture:
    """Return the sequence classifier of an encoder's family: a `Discriminator` of pooling "hf"."""
    return CLASSIFIERS[config.family]


def _sizes(config: Config) -> dict[str, int]:
    """Return the sizes of the letters in the tables' shapes."""
    sizes = {"V": config.vocab_size, "D": config.d_model, "F": config.d_ff, "1": 1}
    if isinstance(config, DecoderConfig):
        sizes |= {"H": config.head_dim, "P": config.max_positions}
        sizes["NH"] = config.num_heads * config.head_dim
        sizes["KH"] = config.num_kv_heads * config.head_dim
    else:
        sizes["P"] = config.max_positions + config.position_offset
        sizes |= {"S": config.type_vocab_size, "R": 2 * config.relative_buckets}
    return sizes


def rules_of(arch: Architecture, config: Config) -> list[Rule]:
    """Return the rows that exist for this config."""
    return [rule for rule in arch.rules if rule.when is None or rule.when(config)]


def expand(rule: Rule, config: Config) -> list[str]:
    """Return the Hugging Face names of a row: one, or one per layer."""
    if not rule.per_layer:
        return [rule.hf]
    return [rule.hf.format(layer=layer) for layer in range(rule.first_layer, config.num_layers)]


def _dimensions(rule: Rule, config: Config) -> list[list[int]]:
    """Return the length of each axis of the tensor, as a list of the lengths of its parts."""
    sizes = _sizes(config)
    return [[sizes[letter] for letter in axis.split("+")] for axis in rule.shape.split()]


def hf_shape(rule: Rule, config: Config) -> tuple[int, ...]:
    """Return the shape that a tensor of the row must have."""
    return tuple(sum(parts) for parts in _dimensions(rule, config))


def _split(rule: Rule, config: Config) -> tuple[int, list[int]]:
    """Return the axis along which the tensor joins parameters (0 if it does not), and where to
    split it."""
    joined = [(axis, x) for axis, x in enumerate(_dimensions(rule, config)) if len(x) > 1]
    axis, parts = joined[0] if joined else (0, [])
    return axis, np.cumsum(parts, dtype=int)[:-1].tolist()


def param_shapes(rule: Rule, config: Config) -> list[tuple[int, ...]]:
    """Return the shapes of the parameters that the row fills, with their leading L axis."""
    axes = _dimensions(rule, config)
    shapes = []
    for index in range(len(rule.paths)):
        shape = [parts[index] if len(parts) > 1 else parts[0] for parts in axes]
        shape = shape[::-1] if rule.transpose else shape
        shapes.append((config.num_layers, *shape) if rule.per_layer else tuple(shape))
    return shapes


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:20]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{len(names)} ({', '.join(shown)}{more})" if names else "none"


def canonical_names(arch: Architecture, source: TensorSource) -> dict[str, str]:
    """Return {name of a tensor in the source: its spelling in the table of `arch`}."""
    names = {}
    for name in source.shapes:
        names[name] = name
        for pattern, replacement in arch.aliases:
            names[name] = re.sub(pattern, replacement, names[name])
    return names


def match(arch: Architecture, config: Config, source: TensorSource) -> dict[str, str]:
    """Return {name in the table: name in the source}. It checks everything and reads no tensor.

    Raises:
        ValueError: a tensor is no plain float; a tensor is not used, or a parameter is not filled,
            exactly once (the message lists both); or a shape contradicts the config.
    """
    ignored = list(arch.ignored)
    if isinstance(config, DecoderConfig) and config.tie_embeddings:
        # A tied file may repeat the embedding as its lm_head.
        ignored.append(r"lm_head\.weight")
    wanted = {name: rule for rule in rules_of(arch, config) for name in expand(rule, config)}
    matched: dict[str, str] = {}
    unused = []
    for name, canonical in canonical_names(arch, source).items():
        if canonical in wanted and canonical not in matched:
            matched[canonical] = name
        elif not any(re.fullmatch(pattern, canonical) for pattern in ignored):
            unused.append(name)
    _check_dtypes([*matched.values(), *unused], source)
    missing = wanted.keys() - matched.keys()
    if missing or unused:
        raise ValueError(
            f"Wanted each {arch.model_type} tensor used once and each parameter filled once, got "
            f"tensors without a parameter: {_listed(unused)}; parameters without a tensor: "
            f"{_listed(missing)}. The file is incomplete, or config.json is of another model."
        )
    for canonical, name in matched.items():
        want = hf_shape(wanted[canonical], config)
        if tuple(source.shapes[name]) != want:
            raise ValueError(
                f"Wanted shape {want} for {name} ({wanted[canonical].shape}), got "
                f"{tuple(source.shapes[name])}. The config does not belong to these weights."
            )
    return matched


def is_float(source: TensorSource, name: str) -> bool:
    """Return whether the numbers of a tensor are the weights themselves, not quantised ones."""
    return source.dtypes[name] in FLOATS


def _check_dtypes(names: Collection[str], source: TensorSource) -> None:
    """Raise ValueError if a tensor is quantised: its numbers mean nothing without their scales."""
    packed = {name for name in names if not is_float(source, name)}
    if packed:
        kinds = sorted({source.dtypes[name] for name in packed})
        raise ValueError(
            f"Wanted weights in float32, float16 or bfloat16, got {', '.join(kinds)} in "
            f"{_listed(packed)}. Give the unquantised model or a .gguf file of it."
        )


def import_params(
    arch: Architecture, config: Config, source: TensorSource, put: Put | None = None
) -> JsonObject:
    """Return the float32 parameter tree read from `source`, one tensor at a time.

    `match` checks everything before the first tensor is read. As soon as a parameter is complete,
    `put(path, array)` takes it, for example to its devices, and what it returns is put into the
    tree. The host then holds one tensor and the parameters of one row at a time.
    """
    names = match(arch, config, source)
    params: dict[str, Any] = {}
    for rule in rules_of(arch, config):
        for path, leaf in _read_row(rule, config, source, names):
            put_leaf(params, path, leaf if put is None else put(path, leaf))
            del leaf
    return params


def _read_row(
    rule: Rule, config: Config, source: TensorSource, names: Mapping[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (path, array) of the parameters that one row fills."""
    leaves = [np.empty(shape, np.float32) for shape in param_shapes(rule, config)]
    for leaf in leaves:
        leaf[: rule.first_layer] = 1.0
    axis, ends = _split(rule, config)
    for layer, name in enumerate(expand(rule, config), start=rule.first_layer):
        tensor = source.read(names[name])
        for leaf, part in zip(leaves, np.split(tensor, ends, axis), strict=True):
            target = leaf[layer : layer + 1] if rule.per_layer else leaf[None]
            target[0] = part.T if rule.transpose else part
    for path in rule.paths:
        yield path, leaves.pop(0)


def flatten(params: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a/b/c", leaf) of a nested dictionary."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def export_tensors(
    arch: Architecture, config: Config, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, array in the parameter's dtype) of a whole tree.

    Raises:
        ValueError: before anything is yielded, if a parameter is not used, or a tensor not filled,
            exactly once (the message lists both), or a shape contradicts the config.
    """
    leaves = dict(flatten(params))
    rules = rules_of(arch, config)
    wanted = {
        path: shape
        for rule in rules
        for path, shape in zip(rule.paths, param_shapes(rule, config), strict=True)
    }
    extra, missing = leaves.keys() - wanted.keys(), wanted.keys() - leaves.keys()
    if extra or missing:
        raise ValueError(
            f"Wanted the parameters of {arch.class_name}, got parameters without a tensor: "
            f"{_listed(extra)}; tensors without a parameter: {_listed(missing)}. Merge adapters "
            "and pass the tree of one network."
        )
    for path, want in wanted.items():
        if tuple(leaves[path].shape) != want:
            raise ValueError(
                f"Wanted shape {want} for parameter {path}, got {tuple(leaves[path].shape)}. "
                "The config does not belong to these parameters."
            )
    return _exported(rules, config, leaves)


def _exported(
    rules: Sequence[Rule], config: Config, leaves: Json
) -> Iterator[tuple[str, np.ndarray]]:
    for rule in rules:
        arrays = [np.asarray(leaves[path]) for path in rule.paths]
        if not rule.per_layer:
            arrays = [array[None] for array in arrays]
        axis, _ = _split(rule, config)
        for layer, name in enumerate(expand(rule, config), start=rule.first_layer):
            parts = [array[layer].T if rule.transpose else array[layer] for array in arrays]
            yield name, np.ascontiguousarray(np.concatenate(parts, axis))
