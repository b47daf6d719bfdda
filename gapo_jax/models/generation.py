"""Prefill and decode with a key/value cache: the decoder's forward, laid out for sampling.

The training forward scans over stacked layers. Decoding one token at a time that way would copy a
slice of every weight and the whole cache in each step. Here the layers are unstacked once, before
the loop over tokens, and unrolled; matrices that read the same input are joined; and each layer has
its own cache buffers, which the loop updates in place.

The cache has two parts. The prompt's keys and values are written once and never change, so the
samples of one prompt share them: one prefill for G samples, and G queries per read of the cache.
The response part is a ring of S columns. As prompts are padded on the left, all rows write their
next token into the same column, and one slice update serves the batch. A row at its token number
`step` sees the last `step` + 1 columns, so rows that started at different times can share the ring,
and a new row sees nothing of the one that had its place before. Keys are stored as [B, K, H, S] and
values as [B, K, S, H], so that neither product transposes the cache.

On a mesh that splits heads and feed-forward over its axis `tensor`, matrices that stand side by
side would be split across that border, and each token would move half of them to a neighbour.
There they are joined along an axis of their own, so that each device has its part of every one of
them: gate and up as [D, 2, F], and query, key and value by key head, [D, K, G + 2, H] with the G
queries of each. Where there are more devices than key heads, keys and values are repeated until
every device has one; where heads do not divide at all, every device computes all heads of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gapo_jax.models.attention import MASKED, AttentionInputs
from gapo_jax.models.decoder import (
    attention_inputs,
    inputs_of_layer,
    positions_of,
    rope_of,
    scale_embeddings,
    self_attention,
)
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.layers import ACTIVATIONS, RopeTables, apply_rope, normalize, soft_cap
from gapo_jax.sharding import ONE_DEVICE, Placement
from gapo_jax.types import Params


class Linear(NamedTuple):
    """A matrix [in, out] and its bias [out], if it has one; on a mesh `out` can be several axes."""

    kernel: jax.Array
    bias: jax.Array | None


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


class LayerCache(NamedTuple):
    """Keys [B, K, H, S] and values [B, K, S, H] of one layer."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array


Cache = tuple[LayerCache, ...]


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
    layers = tuple(_layer_weights(structure.unflatten(part), config, place) for part in slices)
    embedding_VD = params["embed"]["embedding"].astype(dtype)
    tied = "lm_head" not in params
    unembedding_VD = embedding_VD if tied else params["lm_head"]["kernel"].T.astype(dtype)
    learned = config.positions == "learned"
    position_PD = params["position"]["embedding"].astype(dtype) if learned else None
    return DecodeWeights(embedding_VD, position_PD, layers, params["final_norm"], unembedding_VD)


def prefill(
    params: Params,
    config: DecoderConfig,
    tokens_BP: jax.Array,
    mask_BP: jax.Array,
    place: Placement = ONE_DEVICE,
) -> tuple[jax.Array, Cache]:
    """Run the prompts, padded on the left (`tokens_BP`, `mask_BP` int32), through the decoder.

    `place` is where the parameters lie. Returns the final hidden state [B, D] of the last column
    and the prompt part of the cache. The layers are scanned: with many tokens a copied slice costs
    little, and unrolling them here too would double the compile time of the sampler.
    """
    dtype = jnp.dtype(config.dtype)
    positions_BP = positions_of(mask_BP)
    kinds = attention_inputs(config, mask_BP, positions_BP)

    def apply_layer(x_BPD: jax.Array, scanned: tuple[Params, jax.Array]):
        stack_slice, is_local = scanned
        layer = _layer_weights(stack_slice, config, place)
        inputs = inputs_of_layer(kinds, is_local)
        q_BPNH, k_BPKH, v_BPKH = _qkv(layer, config, x_BPD, inputs.rope)
        cache = LayerCache(k_BPKH.transpose(0, 2, 3, 1), v_BPKH.transpose(0, 2, 1, 3))
        mixed_BPNH = self_attention(config, q_BPNH, k_BPKH, v_BPKH, inputs, is_local)
        return _finish_layer(layer, config, x_BPD, mixed_BPNH), cache

    x_BPD = scale_embeddings(params["embed"]["embedding"].astype(dtype)[tokens_BP], config)
    if config.positions == "learned":
        x_BPD = x_BPD + params["position"]["embedding"].astype(dtype)[positions_BP]
    local_L = jnp.asarray(config.local_layers)
    x_BPD, stacked = jax.lax.scan(apply_layer, x_BPD, (params["layers"], local_L))
    caches = tuple(LayerCache(k, v) for k, v in zip(*stacked, strict=True))
    hidden_BD = normalize(x_BPD[:, -1], params["final_norm"], config.norm, config.norm_eps)
    return hidden_BD, caches


def empty_cache(
    config: DecoderConfig, batch: int, columns: int, place: Placement = ONE_DEVICE
) -> Cache:
    """Return a response cache of zeros: a ring of `columns` for each of `batch` rows."""
    heads = config.num_kv_heads * _key_repeats(config, place)
    width, dtype = config.head_dim, config.dtype
    return tuple(
        LayerCache(
            jnp.zeros((batch, heads, width, columns), dtype),
            jnp.zeros((batch, heads, columns, width), dtype),
        )
        for _ in range(config.num_layers)
    )


def decode_step(
    weights: DecodeWeights,
    config: DecoderConfig,
    tokens_B: jax.Array,
    step: jax.Array,
    prompt_mask_AP: jax.Array,
    prompt_cache: Cache,
    response_cache: Cache,
    column: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Append one response token to every row.

    Args:
        weights: see `decode_weights`.
        config: the decoder's.
        tokens_B: the tokens, int32.
        step: their number in the response: an int32 scalar or, where rows started at different
            times, [B]. In that case every row has its own prompt.
        prompt_mask_AP: the real tokens of A prompts; row b continues prompt b // (B / A).
        prompt_cache: of the A prompts, from `prefill`.
        response_cache: of the B rows.
        column: where in the ring the tokens go, an int32 scalar below S: the column after that of
            the step before. `step` if None.

    Returns:
        The final hidden state [B, D], which predicts the next token, and the response cache.
    """
    step, samples = jnp.asarray(step), tokens_B.shape[0] // prompt_mask_AP.shape[0]
    positions_B = jnp.repeat(prompt_mask_AP.sum(axis=1), samples) + step
    column = step if column is None else column
    columns = response_cache[0].v_BKSH.shape[2]
    age_S = (column - jnp.arange(columns)) % columns
    kinds = {
        local: _cached_inputs(config, positions_B, prompt_mask_AP, step, age_S, local)
        for local in config.layer_kinds
    }
    x_BD = scale_embeddings(weights.embedding_VD[tokens_B], config)
    if weights.position_PD is not None:
        x_BD = x_BD + weights.position_PD[positions_B]
    updated = []
    for layer, local, prompt, response in zip(
        weights.layers, config.local_layers, prompt_cache, response_cache, strict=True
    ):
        q_BNH, k_BKH, v_BKH = _qkv(layer, config, x_BD, kinds[local].rope)
        write = jax.lax.dynamic_update_slice_in_dim
        response = LayerCache(
            write(response.k_BKHS, k_BKH[..., None], column, axis=3),
            write(response.v_BKSH, v_BKH[:, :, None], column, axis=2),
        )
        mixed_BNH = _attend_cached(config, q_BNH, prompt, response, kinds[local])
        x_BD = _finish_layer(layer, config, x_BD, mixed_BNH)
        updated.append(response)
    return normalize(x_BD, weights.final_norm, config.norm, config.norm_eps), tuple(updated)


def next_logits(
    weights: DecodeWeights,
    hidden_BD: jax.Array,
    temperature: float | jax.Array = 1.0,
    softcap: float = 0.0,
) -> jax.Array:
    """Return logits [B, V] float32 of final hidden states, divided by the temperature (> 0).

    Before that they are bounded by `softcap`, unless it is 0.
    """
    if not softcap:
        # Dividing the hidden states costs D operations per row, dividing the logits V.
        hidden_BD = (hidden_BD / temperature).astype(hidden_BD.dtype)
    logits_BV = jax.lax.dot_general(
        hidden_BD, weights.unembedding_VD, (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return soft_cap(logits_BV, softcap) / temperature if softcap else logits_BV


def _cached_inputs(
    config: DecoderConfig,
    positions_B: jax.Array,
    prompt_mask_AP: jax.Array,
    step: jax.Array,
    age_S: jax.Array,
    local: bool,
) -> AttentionInputs:
    """Return what one new token's attention needs in the layers with or without a window.

    `age_S` is how many tokens ago each column of the ring was written. The biases are [A, P] over
    the prompt and [1, S] or [B, S] over the response.
    """
    width = prompt_mask_AP.shape[1]
    in_prompt_AP = prompt_mask_AP > 0
    in_response_BS = jnp.atleast_2d(age_S <= step[..., None])
    if local:
        # Column p of the prompt is width + step - p tokens back.
        in_prompt_AP &= width + step[..., None] - jnp.arange(width) < config.window
        in_response_BS &= age_S < config.window
    biases = (jnp.where(in_prompt_AP, 0.0, MASKED), jnp.where(in_response_BS, 0.0, MASKED))
    return AttentionInputs(rope_of(config, positions_B, local), biases)


def head_parts(config: DecoderConfig, place: Placement) -> int:
    """Return over how many devices the heads of one row are split: those of the axis `tensor`, or
    1 where neither the key heads divide among them nor they among the key heads."""
    parts, kv_heads = place.tensor_parts, config.num_kv_heads
    even = kv_heads % parts == 0 or parts % kv_heads == 0
    return parts if even and config.num_heads % parts == 0 else 1


def _layer_weights(stack_slice: Params, config: DecoderConfig, place: Placement) -> LayerWeights:
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
    if config.qk_norm == "all" and (repeats := _key_repeats(config, place)) > 1:
        norms["k_norm"] = {
            name: jnp.repeat(leaf.reshape(config.num_kv_heads, -1), repeats, axis=0).reshape(-1)
            for name, leaf in norms["k_norm"].items()
        }
    return LayerWeights(**jax.tree.map(lambda leaf: leaf.astype(dtype), linears), norms=norms)


def _joined(group: Params, *names: str) -> Linear:
    """Put the matrices of the names that `group` has side by side."""
    parts = [group[name] for name in names if name in group]
    kernel = jnp.concatenate([part["kernel"] for part in parts], axis=1)
    if "bias" not in parts[0]:
        return Linear(kernel, None)
    return Linear(kernel, jnp.concatenate([part["bias"] for part in parts]))


def _stacked(mlp: Params, place: Placement) -> Linear:
    """Join gate and up as [D, 2, F], or [D, F] without a gate, split over F."""
    parts = [mlp[name] for name in ("gate", "up") if name in mlp]
    if len(parts) == 1:
        return _joined(mlp, "up")

    def stacked(name: str, *axes: str) -> jax.Array:
        stack = jnp.stack([part[name] for part in parts], axis=-2)
        return place.keep_axes(stack, (*axes, None, "mlp"))

    return Linear(stacked("kernel", "embed"), stacked("bias") if "bias" in parts[0] else None)


def _key_repeats(config: DecoderConfig, place: Placement) -> int:
    return max(1, head_parts(config, place) // config.num_kv_heads)


def _heads_joined(attn: Params, config: DecoderConfig, place: Placement) -> Linear:
    """Join query, key and value as [D, K, G + 2, H], split over the key heads K."""
    parts, repeats = head_parts(config, place), _key_repeats(config, place)
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

    def joined(name: str, *lead: str) -> jax.Array:
        heads = [by_head(attn[letter][name], letter == "q", lead) for letter in "qkv"]
        return place.keep_axes(jnp.concatenate(heads, axis=-2), (*lead, axis, None, None))

    return Linear(joined("kernel", "embed"), joined("bias") if "bias" in attn["q"] else None)


def _apply(linear: Linear, x_D: jax.Array) -> jax.Array:
    product = (
        jnp.tensordot(x_D, linear.kernel, 1) if linear.kernel.ndim > 2 else x_D @ linear.kernel
    )
    return product if linear.bias is None else product + linear.bias


def _norm(layer: LayerWeights, config: DecoderConfig, name: str, x_D: jax.Array) -> jax.Array:
    """Apply the norm `name`, if the layer has it."""
    if name not in layer.norms:
        return x_D
    return normalize(x_D, layer.norms[name], config.norm, config.norm_eps)


def _qkv(
    layer: LayerWeights, config: DecoderConfig, x_D: jax.Array, rope: RopeTables | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return rotated queries and keys, and values, [..., heads, H], of the residual stream."""
    num_heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
    joined = _apply(layer.qkv, _norm(layer, config, "attn_norm", x_D))
    if layer.qkv.kernel.ndim > 2:
        return _split_heads(layer, config, joined, rope)
    if config.qk_norm == "all":
        parts = jnp.split(joined, [num_heads * width, (num_heads + kv_heads) * width], axis=-1)
        q, k = (_norm(layer, config, f"{name}_norm", x) for name, x in zip("qk", parts))
        joined = jnp.concatenate([q, k, parts[2]], axis=-1)
    joined = joined.reshape(*x_D.shape[:-1], num_heads + 2 * kv_heads, width)
    rotated, values = jnp.split(joined, [num_heads + kv_heads], axis=-2)
    if config.qk_norm == "head":
        parts = jnp.split(rotated, [num_heads], axis=-2)
        heads = [_norm(layer, config, f"{name}_norm", x) for name, x in zip("qk", parts)]
        rotated = jnp.concatenate(heads, axis=-2)
    if rope is not None:
        rotated = apply_rope(rotated, rope)
    return rotated[..., :num_heads, :], rotated[..., num_heads:, :], values


def _split_heads(
    layer: LayerWeights, config: DecoderConfig, joined_KMH: jax.Array, rope: RopeTables | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Do what `_qkv` does behind the product, for [..., K, G + 2, H]."""
    *lead, _, joined, width = joined_KMH.shape

    def finish(x_KMH: jax.Array, norm: str) -> jax.Array:
        if norm and config.qk_norm == "all":
            flat = _norm(layer, config, norm, x_KMH.reshape(*lead, -1))
            x_KMH = flat.reshape(x_KMH.shape)
        x_NH = x_KMH.reshape(*lead, -1, width)
        if norm and config.qk_norm == "head":
            x_NH = _norm(layer, config, norm, x_NH)
        return apply_rope(x_NH, rope) if norm and rope is not None else x_NH

    q, k, v = jnp.split(joined_KMH, [joined - 2, joined - 1], axis=-2)
    return finish(q, "q_norm"), finish(k, "k_norm"), finish(v, "")


def _finish_layer(
    layer: LayerWeights, config: DecoderConfig, x_D: jax.Array, mixed_NH: jax.Array
) -> jax.Array:
    """Add the attention output and the feed-forward to the residual stream [..., D]."""
    mixed_D = _apply(layer.o, mixed_NH.reshape(*x_D.shape[:-1], -1))
    x_D = x_D + _norm(layer, config, "attn_post_norm", mixed_D)
    inner_F = _apply(layer.gate_up, _norm(layer, config, "mlp_norm", x_D))
    activate = ACTIVATIONS[config.activation]
    if config.gated:
        if layer.gate_up.kernel.ndim > 2:
            gate_F, up_F = inner_F[..., 0, :], inner_F[..., 1, :]
        else:
            gate_F, up_F = jnp.split(inner_F, 2, axis=-1)
        inner_F = activate(gate_F) * up_F
    else:
        inner_F = activate(inner_F)
    return x_D + _norm(layer, config, "mlp_post_norm", _apply(layer.down, inner_F))


def _attend_cached(
    config: DecoderConfig,
    q_BNH: jax.Array,
    prompt: LayerCache,
    response: LayerCache,
    inputs: AttentionInputs,
) -> jax.Array:
    """Attend from one query per row to both parts of the cache, under one softmax."""
    prompt_bias_AP, response_bias_BS = inputs.biases
    batch, num_heads, head_dim = q_BNH.shape
    prompts, kv_heads = prompt.k_BKHS.shape[:2]
    samples, group = batch // prompts, num_heads // kv_heads
    # Letters: a prompt, j query of the prompt's kv head k (from any sample and query head),
    # g query head of kv head k in row b.
    q_BKGH = (q_BNH * config.query_scale).reshape(batch, kv_heads, group, head_dim)

    def by_prompt(x_BKG: jax.Array) -> jax.Array:
        x_AMKG = x_BKG.reshape(prompts, samples, kv_heads, group, -1)
        return x_AMKG.swapaxes(1, 2).reshape(prompts, kv_heads, samples * group, -1)

    def by_row(x_AKJ: jax.Array) -> jax.Array:
        x_AKMG = x_AKJ.reshape(prompts, kv_heads, samples, group, -1)
        return x_AKMG.swapaxes(1, 2).reshape(batch, kv_heads, group, -1)

    def product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)

    on_prompt = product("akjh,akhp->akjp", by_prompt(q_BKGH), prompt.k_BKHS)
    on_prompt = soft_cap(on_prompt, config.attn_softcap) + prompt_bias_AP[:, None, None, :]
    on_response = product("bkgh,bkhs->bkgs", q_BKGH, response.k_BKHS)
    on_response = soft_cap(on_response, config.attn_softcap)
    on_response += response_bias_BS[:, None, None, :]

    top_BKG1 = jnp.maximum(by_row(on_prompt.max(axis=-1)), on_response.max(axis=-1, keepdims=True))
    on_prompt = jnp.exp(on_prompt - by_prompt(top_BKG1))
    on_response = jnp.exp(on_response - top_BKG1)
    total_BKG1 = by_row(on_prompt.sum(axis=-1)) + on_response.sum(axis=-1, keepdims=True)

    dtype = q_BNH.dtype
    mixed_BKGH = by_row(product("akjp,akph->akjh", on_prompt.astype(dtype), prompt.v_BKSH))
    mixed_BKGH += product("bkgs,bksh->bkgh", on_response.astype(dtype), response.v_BKSH)
    return (mixed_BKGH / total_BKG1).astype(dtype).reshape(q_BNH.shape)
