"""Hugging Face tensors <-> parameters, by `decoder_tables` and `encoder_tables`, both ways.

A row (`Rule`) names a tensor and the parameter or parameters that it fills. Import uses every
tensor exactly once and fills every parameter exactly once, or raises with both lists; export is the
same table read backwards, so import then export gives the source tensors bit for bit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.encoder_config import EncoderConfig
from gapo_jax.models.hf.architecture import Architecture, Config, Rule, TensorSource
from gapo_jax.models.hf.decoder_tables import DECODERS, reward_architecture
from gapo_jax.models.hf.encoder_tables import CLASSIFIERS, ENCODERS

__all__ = ["Architecture", "Config", "Rule", "TensorSource", "reward_architecture"]

# Takes (path, float32 array) of a parameter that has just been read, returns what the tree holds.
Put = Callable[[str, np.ndarray], Any]


ARCHITECTURES = {**{arch.model_type: arch for arch in DECODERS}, **ENCODERS}


def architecture(model_type: str | None, kind: str) -> Architecture:
    """Return the table of `model_type`, which must be of `kind` ("decoder" or "encoder").

    Raises ValueError naming the nearest supported architecture.
    """
    known = {name: arch for name, arch in ARCHITECTURES.items() if arch.kind == kind}
    if model_type in known:
        return known[model_type]
    asked = str(model_type)
    close = [name for name in known if name.startswith(asked) or asked.startswith(name)]
    close = close or difflib.get_close_matches(asked, known, 1, 0.5) or list(known)
    raise ValueError(
        f"Wanted {_article(kind)} of type {sorted(known)}, got model_type "
        f"{model_type!r}. The nearest supported choice is {close[0]!r}: give a model of that type."
    )


def _article(kind: str) -> str:
    return f"{'an' if kind == 'encoder' else 'a'} {kind}"


def architecture_of(config: Config) -> Architecture:
    """Return the architecture that a config of ours is written as."""
    return ARCHITECTURES[config.family]


def classifier_of(config: EncoderConfig) -> Architecture:
    """Return the sequence classifier of an encoder's family: a `Discriminator` of pooling "hf"."""
    return CLASSIFIERS[config.family]


def _sizes(config: Config) -> dict[str, int]:
    """Sizes of the letters that the tables' shapes use."""
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
    """Return the HF names of a row: one, or one per layer."""
    if "{layer}" not in rule.hf:
        return [rule.hf]
    return [rule.hf.format(layer=layer) for layer in range(rule.first_layer, config.num_layers)]


def _dimensions(rule: Rule, config: Config) -> list[list[int]]:
    """Return the length of each axis of the HF tensor; of a fused axis, that of each part."""
    sizes = _sizes(config)
    return [[sizes[letter] for letter in axis.split("+")] for axis in rule.shape.split()]


def hf_shape(rule: Rule, config: Config) -> tuple[int, ...]:
    """Return the shape that one HF tensor of the row must have."""
    return tuple(sum(parts) for parts in _dimensions(rule, config))


def _split(rule: Rule, config: Config) -> tuple[int, list[int]]:
    """Return the fused axis of the row's HF tensor (0 if none is) and the ends of its parts but
    the last."""
    fused = [(axis, x) for axis, x in enumerate(_dimensions(rule, config)) if len(x) > 1]
    axis, parts = fused[0] if fused else (0, [])
    return axis, np.cumsum(parts, dtype=int)[:-1].tolist()


def param_shapes(rule: Rule, config: Config) -> list[tuple[int, ...]]:
    """Return the shapes of the parameters that the row fills, with their leading L axis."""
    axes = _dimensions(rule, config)
    shapes = []
    for index in range(len(rule.paths)):
        shape = [parts[index] if len(parts) > 1 else parts[0] for parts in axes]
        shape = shape[::-1] if rule.transpose else shape
        shapes.append((config.num_layers, *shape) if "{layer}" in rule.hf else tuple(shape))
    return shapes


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:20]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{len(names)} ({', '.join(shown)}{more})" if names else "none"


def match(arch: Architecture, config: Config, source: TensorSource) -> dict[str, str]:
    """Return {table's HF name: source's name}, having checked names and shapes, reading nothing.

    Raises ValueError with both lists unless each tensor is used once and each parameter filled
    once, and ValueError on a shape that contradicts the config.
    """
    ignored = list(arch.ignored)
    if isinstance(config, DecoderConfig) and config.tie_embeddings:
        # A tied file may repeat the embedding as lm_head; transformers does not read it either.
        ignored.append(r"lm_head\.weight")
    wanted = {name: rule for rule in rules_of(arch, config) for name in expand(rule, config)}
    found: dict[str, str] = {}
    unused = []
    for name in source.shapes:
        canonical = name
        for pattern, replacement in arch.aliases:
            canonical = re.sub(pattern, replacement, canonical)
        if canonical in wanted and canonical not in found:
            found[canonical] = name
        elif not any(re.fullmatch(pattern, canonical) for pattern in ignored):
            unused.append(name)
    missing = wanted.keys() - found.keys()
    if missing or unused:
        raise ValueError(
            f"Wanted each {arch.model_type} tensor used once and each parameter filled once, got "
            f"tensors without a parameter: {_listed(unused)}; parameters without a tensor: "
            f"{_listed(missing)}. The file is incomplete, or config.json is of another model."
        )
    for canonical, name in found.items():
        want = hf_shape(wanted[canonical], config)
        if tuple(source.shapes[name]) != want:
            raise ValueError(
                f"Wanted shape {want} for {name} ({wanted[canonical].shape}), got "
                f"{tuple(source.shapes[name])}. The config does not belong to these weights."
            )
    return found


def import_params(
    arch: Architecture, config: Config, source: TensorSource, put: Put | None = None
) -> dict[str, Any]:
    """Return the float32 parameter tree read from `source`, one tensor at a time.

    Everything is checked by `match` before the first tensor is read. Each parameter goes through
    `put(path, array)` as soon as it is whole, for example to its devices; what `put` returns takes
    its place in the tree. The host then holds one tensor and one parameter at a time.
    """
    names = match(arch, config, source)
    params: dict[str, Any] = {}
    for rule in rules_of(arch, config):
        for path, leaf in _read_row(rule, config, source, names):
            node = params
            *parents, last = path.split("/")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = leaf if put is None else put(path, leaf)
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
            target = leaf[layer : layer + 1] if "{layer}" in rule.hf else leaf[None]
            target[0] = part.T if rule.transpose else part
    for path in rule.paths:
        yield path, leaves.pop(0)


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a/b/c", leaf) of a nested dictionary."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def export_tensors(
    arch: Architecture, config: Config, params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (HF name, array in the parameter's dtype) of a whole tree; the table read backwards.

    Raises ValueError with both lists unless each parameter is used once and each tensor is filled
    once, and on a shape that contradicts the config, before anything is yielded.
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
    rules: Sequence[Rule], config: Config, leaves: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    for rule in rules:
        arrays = [np.asarray(leaves[path]) for path in rule.paths]
        if "{layer}" not in rule.hf:
            arrays = [array[None] for array in arrays]
        axis, _ = _split(rule, config)
        for layer, name in enumerate(expand(rule, config), start=rule.first_layer):
            parts = [array[layer].T if rule.transpose else array[layer] for array in arrays]
            yield name, np.ascontiguousarray(np.concatenate(parts, axis))
