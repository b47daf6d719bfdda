"""A decoder's weights as sampling reads them: unstacked, joined, laid out for a mesh, in int8.

On a mesh that splits heads and feed-forward over its axis `tensor`, matrices that stand side by
side would be split across that border, and each token would move half of them to a neighbour.
There they are joined along an axis of their own, so that each device has its part of every one of
them: gate and up as [D, 2, F], and query, key and value by key head, [D, K, G + 2, H] with the G
queries of each. Where there are more devices than key heads, keys and values are repeated until
every device has one; where heads do not divide at all, every device computes all heads of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.sharding import ONE_DEVICE, Placement
from gapo_jax.types import Params


class Linear(NamedTuple):
    """A matrix [in, out]; its bias [out] and the scale [out] of its columns (`quantised`), if it
    has them; on a mesh `out` can be several axes."""

    kernel: jax.Array
    bias: jax.Array | None
    scale: jax.Array | None = None


class LayerWeights(NamedTuple):
    """Weights of one layer: query, key and value in one matrix, and gate and up in another.

    `norms` has the decoder's names.
    """

    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    norms: dict[str, Mapping[str, jax.Array]]


class DecodeWeights(NamedTuple):
    """The parameters of a decoder as `decode_weights` lays them out."""

    embedding_VD: jax.Array
    position_PD: jax.Array | None
    layers: tuple[LayerWeights, ...]
    final_norm: Mapping[str, jax.Array]
    unembedding_VD: jax.Array


def decode_weights(
    params: Params, config: DecoderConfig, place: Placement = ONE_DEVICE
) -> DecodeWeights:
    """Unstack and join the parameters of a decoder, in the dtype of the computation.

    It copies all matrices: call it once per call of the sampler, outside the loop over tokens.
    `place` is where they lie.
    """
    dtype = jnp.dtype(config.dtype)
    leaves, structure = jax.tree.flatten(params["layers"])
    slices = [[stacked[layer] for stacked in leaves] for layer in range(config.num_layers)]
    layers = tuple(layer_weights(structure.unflatten(part), config, place) for part in slices)
    embedding_VD = params["embed"]["embedding"].astype(dtype)
    tied = "lm_head" not in params
    unembedding_VD = embedding_VD if tied else params["lm_head"]["kernel"].T.astype(dtype)
    learned = config.positions == "learned"
    position_PD = params["position"]["embedding"].astype(dtype) if learned else None
    return DecodeWeights(embedding_VD, position_PD, layers, params["final_norm"], unembedding_VD)


def quantised(params: Params) -> Params:
    """Return the parameters of a decoder with the matrices of its layers in int8.

    A column of a matrix becomes whole numbers of -127 to 127 times the `scale` beside it, its
    largest absolute value over 127, float32 (LLM.int8(), arXiv 2208.07339, section 2.1, of the
    weights alone). Biases, norms, embedding and output matrix stay as they are.
    """

    def of_group(group: Params) -> Params:
        if "kernel" not in group:
            return group
        kernel = group["kernel"].astype(jnp.float32)
        scale = jnp.max(jnp.abs(kernel), axis=-2) / 127.0
        scale = jnp.where(scale > 0, scale, 1.0)
        whole = jnp.round(kernel / scale[..., None, :]).astype(jnp.int8)
        return {**group, "kernel": whole, "scale": scale}

    layers = {
        name: {key: of_group(value) for key, value in part.items()}
        if name in ("attn", "mlp")
        else part
        for name, part in params["layers"].items()
    }
    return {**params, "layers": layers}


def head_parts(config: DecoderConfig, place: Placement) -> int:
    """Return over how many devices the heads of one row are split: those of the axis `tensor`, or
    1 where neither the key heads divide among them nor they among the key heads."""
    parts, kv_heads = place.tensor_parts, config.num_kv_heads
    even = kv_heads % parts == 0 or parts % kv_heads == 0
    return parts if even and config.num_heads % parts == 0 else 1


def layer_weights(stack_slice: Params, config: DecoderConfig, place: Placement) -> LayerWeights:
    """Join the weights of one layer, given its slice of the stacked parameters."""
    attn, mlp = stack_slice["attn"], stack_slice["mlp"]
    dtype, split = jnp.dtype(config.dtype), place.tensor_parts > 1
    linears = {
        "qkv": _heads_joined(attn, config, place) if split else _joined(attn, "q", "k", "v"),
        "o": _joined(attn, "o"),
        "gate_up": _stacked(mlp, place) if split else _joined(mlp, "gate", "up"),
        "down": _joined(mlp, "down"),
    }
    if split and head_parts(config, place) == 1:
        linears["o"] = place.keep(linears["o"], "whole")
    both = {**stack_slice, **attn}
    norms = {name: value for name, value in both.items() if name.endswith("_norm")}
    if config.qk_norm == "all" and (repeats := key_repeats(config, place)) > 1:
        norms["k_norm"] = {
            name: jnp.repeat(leaf.reshape(config.num_kv_heads, -1), repeats, axis=0).reshape(-1)
            for name, leaf in norms["k_norm"].items()
        }
    cast = {name: _cast(linear, dtype) for name, linear in linears.items()}
    return LayerWeights(**cast, norms=norms)


def _cast(linear: Linear, dtype: jnp.dtype) -> Linear:
    """Return kernel and bias in the dtype of the computation; whole numbers stay as they are."""
    bias = None if linear.bias is None else linear.bias.astype(dtype)
    kernel = linear.kernel if linear.scale is not None else linear.kernel.astype(dtype)
    return Linear(kernel, bias, linear.scale)


def _joined(group: Params, *names: str) -> Linear:
    """Put the matrices of the names that `group` has side by side."""
    parts = [group[name] for name in names if name in group]

    def joined(name: str) -> jax.Array | None:
        if name not in parts[0]:
            return None
        return jnp.concatenate([part[name] for part in parts])

    kernel = jnp.concatenate([part["kernel"] for part in parts], axis=1)
    return Linear(kernel, joined("bias"), joined("scale"))


def _stacked(mlp: Params, place: Placement) -> Linear:
    """Join gate and up as [D, 2, F], or [D, F] without a gate, split over F."""
    parts = [mlp[name] for name in ("gate", "up") if name in mlp]
    if len(parts) == 1:
        return _joined(mlp, "up")

    def stacked(name: str, *axes: str) -> Any:
        if name not in parts[0]:
            return None
        stack = jnp.stack([part[name] for part in parts], axis=-2)
        return place.keep_axes(stack, (*axes, None, "mlp"))

    return Linear(stacked("kernel", "embed"), stacked("bias"), stacked("scale"))


def key_repeats(config: DecoderConfig, place: Placement) -> int:
    """Return how often each key head is repeated, so that every device has one."""
    return max(1, head_parts(config, place) // config.num_kv_heads)


def _heads_joined(attn: Params, config: DecoderConfig, place: Placement) -> Linear:
    """Join query, key and value as [D, K, G + 2, H], split over the key heads K."""
    parts, repeats = head_parts(config, place), key_repeats(config, place)
    kv_heads = config.num_kv_heads * repeats
    axis = "heads" if parts > 1 else None

    def by_head(leaf: jax.Array, is_query: bool, lead: tuple[str, ...]) -> jax.Array:
        if parts == 1 or (repeats > 1 and not is_query):
            # Columns may be split inside a head.
            leaf = place.keep_axes(leaf, (*lead, None))
        if repeats > 1 and not is_query:
            leaf = leaf.reshape(*leaf.shape[:-1], config.num_kv_heads, 1, config.head_dim)
            leaf = jnp.repeat(leaf, repeats, axis=-3)
        heads = leaf.reshape(*leaf.shape[: len(lead)], kv_heads, -1, config.head_dim)
        return place.keep_axes(heads, (*lead, axis, None, None))

    def joined(name: str, *lead: str) -> Any:
        if name not in attn["q"]:
            return None
        heads = [by_head(attn[letter][name], letter == "q", lead) for letter in "qkv"]
        return place.keep_axes(jnp.concatenate(heads, axis=-2), (*lead, axis, None, None))

    return Linear(joined("kernel", "embed"), joined("bias"), joined("scale"))
