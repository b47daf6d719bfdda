"""Prefill and decode with a key/value cache: the decoder's forward, laid out for sampling.

The training forward scans over stacked layers. Decoding one token at a time that way copies a
slice of every weight and the whole cache in each step, so here the layers are unstacked once,
before the loop over tokens, and unrolled; matrices that read the same input become one; and each
layer has its own cache buffers, which the loop updates in place.

The cache has two parts. The prompt's keys and values are written once and never change, so the
samples of one prompt share them (one prefill for G samples, and G queries per read of the cache).
The response part is a ring of S columns; since prompts are padded on the left, all rows write their
next token into one column, and one slice update serves the batch. A row at its token number `step`
sees the last `step` + 1 columns, so rows that started at different times may share the ring, and a
new row inherits nothing from the one before it. Keys lie as [B, K, H, S] and values as
[B, K, S, H], so that neither product has to transpose the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gapo_jax.models.attention import MASKED
from gapo_jax.models.decoder import (
    choose_sight,
    positions_of,
    rope_of,
    scale_embeddings,
    self_attention,
    sights_of,
)
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.layers import ACTIVATIONS, apply_rope, normalize, soft_cap


class Linear(NamedTuple):
    """A matrix [in, out] and its bias [out], if it has one."""

    kernel: jax.Array
    bias: jax.Array | None


class LayerWeights(NamedTuple):
    """Weights of one layer: query, key and value side by side, gate and up too; `norms` by the
    names that the decoder gives them."""

    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    norms: dict[str, Mapping[str, jax.Array]]


class DecodeWeights(NamedTuple):
    """The parameters of a decoder, rearranged by `decode_weights`."""

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


def decode_weights(params: Mapping[str, Any], config: DecoderConfig) -> DecodeWeights:
    """Unstack and join the decoder parameters `params`, in the dtype of the computation.

    A copy of all matrices: do it once per call of the sampler, outside the loop over tokens.
    """
    dtype = jnp.dtype(config.dtype)
    leaves, structure = jax.tree.flatten(params["layers"])
    slices = [[stacked[layer] for stacked in leaves] for layer in range(config.num_layers)]
    layers = tuple(_layer_weights(structure.unflatten(part), dtype) for part in slices)
    embedding_VD = params["embed"]["embedding"].astype(dtype)
    tied = "lm_head" not in params
    unembedding_VD = embedding_VD if tied else params["lm_head"]["kernel"].T.astype(dtype)
    learned = config.positions == "learned"
    position_PD = params["position"]["embedding"].astype(dtype) if learned else None
    return DecodeWeights(embedding_VD, position_PD, layers, params["final_norm"], unembedding_VD)


def prefill(
    params: Mapping[str, Any], config: DecoderConfig, tokens_BP: jax.Array, mask_BP: jax.Array
) -> tuple[jax.Array, Cache]:
    """Run the prompts, padded on the left (`tokens_BP`, `mask_BP` int32), through the decoder.

    Returns the final hidden state [B, D] of the last column and the prompt part of the cache.
    The layers are scanned: at many tokens a copied slice costs little, and compiling them
    unrolled would double the compile time of the sampler.
    """
    dtype = jnp.dtype(config.dtype)
    positions_BP = positions_of(mask_BP)
    sights = sights_of(config, mask_BP, positions_BP)

    def apply_layer(x_BPD: jax.Array, inputs: tuple[Mapping[str, Any], jax.Array]):
        stack_slice, is_local = inputs
        layer, sight = _layer_weights(stack_slice, dtype), choose_sight(sights, is_local)
        q_BPNH, k_BPKH, v_BPKH = _qkv(layer, config, x_BPD, sight.cos_BTH, sight.sin_BTH)
        cache = LayerCache(k_BPKH.transpose(0, 2, 3, 1), v_BPKH.transpose(0, 2, 1, 3))
        mixed_BPNH = self_attention(config, q_BPNH, k_BPKH, v_BPKH, sight, is_local)
        return _finish_layer(layer, config, x_BPD, mixed_BPNH), cache

    x_BPD = scale_embeddings(params["embed"]["embedding"].astype(dtype)[tokens_BP], config)
    if config.positions == "learned":
        x_BPD = x_BPD + params["position"]["embedding"].astype(dtype)[positions_BP]
    local_L = jnp.asarray(config.local_layers)
    x_BPD, stacked = jax.lax.scan(apply_layer, x_BPD, (params["layers"], local_L))
    caches = tuple(LayerCache(k, v) for k, v in zip(*stacked, strict=True))
    hidden_BD = normalize(x_BPD[:, -1], params["final_norm"], config.norm, config.norm_eps)
    return hidden_BD, caches


def empty_cache(config: DecoderConfig, batch: int, columns: int) -> Cache:
    """A response cache of zeros for `batch` rows: a ring of `columns`, one for each new token."""
    heads, width, dtype = config.num_kv_heads, config.head_dim, config.dtype
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
    """Append response token number `step` (`tokens_B` int32) to every row.

    `step` is an int32 scalar or, where the rows started at different times, [B]; then every row has
    its own prompt, and `column` (int32 scalar, below S) says where in the ring the tokens go: the
    column after that of the step before. The prompt mask and cache have A rows; row b of the batch
    continues prompt b // (B / A).
    Returns the final hidden state [B, D], which predicts the next token, and the response cache.
    """
    step, samples = jnp.asarray(step), tokens_B.shape[0] // prompt_mask_AP.shape[0]
    positions_B = jnp.repeat(prompt_mask_AP.sum(axis=1), samples) + step
    column = step if column is None else column
    columns = response_cache[0].v_BKSH.shape[2]
    age_S = (column - jnp.arange(columns)) % columns
    views = {
        local: _view(config, positions_B, prompt_mask_AP, step, age_S, local)
        for local in sorted(set(config.local_layers))
    }
    x_BD = scale_embeddings(weights.embedding_VD[tokens_B], config)
    if weights.position_PD is not None:
        x_BD = x_BD + weights.position_PD[positions_B]
    updated = []
    for layer, local, prompt, response in zip(
        weights.layers, config.local_layers, prompt_cache, response_cache, strict=True
    ):
        view = views[local]
        q_BNH, k_BKH, v_BKH = _qkv(layer, config, x_BD, view.cos_BH, view.sin_BH)
        write = jax.lax.dynamic_update_slice_in_dim
        response = LayerCache(
            write(response.k_BKHS, k_BKH[..., None], column, axis=3),
            write(response.v_BKSH, v_BKH[:, :, None], column, axis=2),
        )
        mixed_BNH = _attend_cached(config, q_BNH, prompt, response, view)
        x_BD = _finish_layer(layer, config, x_BD, mixed_BNH)
        updated.append(response)
    return normalize(x_BD, weights.final_norm, config.norm, config.norm_eps), tuple(updated)


def next_logits(
    weights: DecodeWeights,
    hidden_BD: jax.Array,
    temperature: float | jax.Array = 1.0,
    softcap: float = 0.0,
) -> jax.Array:
    """Logits [B, V] float32 of the final hidden states, bounded by `softcap` (0: not), divided by
    the temperature (> 0)."""
    if not softcap:
        # Dividing the hidden states costs D operations a row, dividing the logits V.
        hidden_BD = (hidden_BD / temperature).astype(hidden_BD.dtype)
    logits_BV = jax.lax.dot_general(
        hidden_BD, weights.unembedding_VD, (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return soft_cap(logits_BV, softcap) / temperature if softcap else logits_BV


class _View(NamedTuple):
    """What one new token sees in the layers of one kind: rotary tables [B, H] of its position and
    the additive biases of the two parts of the cache, the second [1, S] or [B, S]."""

    cos_BH: jax.Array | None
    sin_BH: jax.Array | None
    prompt_bias_AP: jax.Array
    response_bias_BS: jax.Array


def _view(
    config: DecoderConfig,
    positions_B: jax.Array,
    prompt_mask_AP: jax.Array,
    step: jax.Array,
    age_S: jax.Array,
    local: bool,
) -> _View:
    """`age_S` says how many tokens ago each column of the ring was written."""
    width = prompt_mask_AP.shape[1]
    in_prompt_AP = prompt_mask_AP > 0
    in_response_BS = jnp.atleast_2d(age_S <= step[..., None])
    if local:
        # Column p of the prompt lies width + step - p tokens back.
        in_prompt_AP &= width + step[..., None] - jnp.arange(width) < config.window
        in_response_BS &= age_S < config.window
    return _View(
        *rope_of(config, positions_B, local),
        jnp.where(in_prompt_AP, 0.0, MASKED),
        jnp.where(in_response_BS, 0.0, MASKED),
    )


def _layer_weights(stack_slice: Mapping[str, Any], dtype: jnp.dtype) -> LayerWeights:
    """The weights of one layer, joined, from its slice of the stacked parameters."""

    def joined(group: str, *names: str) -> Linear:
        parts = [stack_slice[group][name] for name in names if name in stack_slice[group]]
        kernel = jnp.concatenate([part["kernel"] for part in parts], axis=1).astype(dtype)
        if "bias" not in parts[0]:
            return Linear(kernel, None)
        return Linear(kernel, jnp.concatenate([part["bias"] for part in parts]).astype(dtype))

    both = {**stack_slice, **stack_slice["attn"]}
    return LayerWeights(
        qkv=joined("attn", "q", "k", "v"),
        o=joined("attn", "o"),
        gate_up=joined("mlp", "gate", "up"),
        down=joined("mlp", "down"),
        norms={name: value for name, value in both.items() if name.endswith("_norm")},
    )


def _apply(linear: Linear, x_D: jax.Array) -> jax.Array:
    product = x_D @ linear.kernel
    return product if linear.bias is None else product + linear.bias


def _norm(layer: LayerWeights, config: DecoderConfig, name: str, x_D: jax.Array) -> jax.Array:
    """Apply the norm `name`, if the layer has it."""
    if name not in layer.norms:
        return x_D
    return normalize(x_D, layer.norms[name], config.norm, config.norm_eps)


def _qkv(layer: LayerWeights, config: DecoderConfig, x_D, cos_H, sin_H):
    """Rotated queries and keys, and values, [..., heads, H], of the residual stream [..., D]."""
    num_heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
    joined = _apply(layer.qkv, _norm(layer, config, "attn_norm", x_D))
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
    if cos_H is not None:
        rotated = apply_rope(rotated, cos_H, sin_H)
    return rotated[..., :num_heads, :], rotated[..., num_heads:, :], values


def _finish_layer(layer: LayerWeights, config: DecoderConfig, x_D, mixed_NH):
    """Add the attention output and the feed-forward to the residual stream [..., D]."""
    mixed_D = _apply(layer.o, mixed_NH.reshape(*x_D.shape[:-1], -1))
    x_D = x_D + _norm(layer, config, "attn_post_norm", mixed_D)
    inner_F = _apply(layer.gate_up, _norm(layer, config, "mlp_norm", x_D))
    activate = ACTIVATIONS[config.activation]
    if config.gated:
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
    view: _View,
) -> jax.Array:
    """Attention of one query per row over both parts of the cache, under one softmax."""
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
    on_prompt = soft_cap(on_prompt, config.attn_softcap) + view.prompt_bias_AP[:, None, None, :]
    on_response = product("bkgh,bkhs->bkgs", q_BKGH, response.k_BKHS)
    on_response = soft_cap(on_response, config.attn_softcap)
    on_response += view.response_bias_BS[:, None, None, :]

    top_BKG1 = jnp.maximum(by_row(on_prompt.max(axis=-1)), on_response.max(axis=-1, keepdims=True))
    on_prompt = jnp.exp(on_prompt - by_prompt(top_BKG1))
    on_response = jnp.exp(on_response - top_BKG1)
    total_BKG1 = by_row(on_prompt.sum(axis=-1)) + on_response.sum(axis=-1, keepdims=True)

    dtype = q_BNH.dtype
    mixed_BKGH = by_row(product("akjp,akph->akjh", on_prompt.astype(dtype), prompt.v_BKSH))
    mixed_BKGH += product("bkgs,bksh->bkgh", on_response.astype(dtype), response.v_BKSH)
    return (mixed_BKGH / total_BKG1).astype(dtype).reshape(q_BNH.shape)
