"""Prefill and decode with a key/value cache: the decoder's forward, laid out for sampling.

The training forward scans over stacked layers. Decoding one token at a time that way copies a
slice of every weight and the whole cache in each step, so here the layers are unstacked once,
before the loop over tokens, and unrolled; matrices that read the same input become one; and each
layer has its own cache buffers, which the loop updates in place.

The cache has two parts. The prompt's keys and values are written once and never change, so the
samples of one prompt share them (one prefill for G samples, and G queries per read of the cache).
The response part has one slot per new token; since prompts are padded on the left, response token
r of every row has slot r, and one slice update serves the batch. Keys lie as [B, K, H, S] and
values as [B, K, S, H], so that neither product has to transpose the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gapo_jax.models.attention import MASKED, attend, causal_bias
from gapo_jax.models.decoder import DecoderConfig, positions_of
from gapo_jax.models.layers import apply_rope, rms_norm, rope_tables


class LayerWeights(NamedTuple):
    """Matrices of one layer, [in, out]: query, key and value side by side, gate and up too."""

    attn_norm_D: jax.Array
    qkv: jax.Array
    o: jax.Array
    mlp_norm_D: jax.Array
    gate_up: jax.Array
    down: jax.Array


class DecodeWeights(NamedTuple):
    """The parameters of a decoder, rearranged by `decode_weights`."""

    embedding_VD: jax.Array
    layers: tuple[LayerWeights, ...]
    final_norm_D: jax.Array
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
    return DecodeWeights(embedding_VD, layers, params["final_norm"]["scale"], unembedding_VD)


def prefill(
    params: Mapping[str, Any], config: DecoderConfig, tokens_BP: jax.Array, mask_BP: jax.Array
) -> tuple[jax.Array, Cache]:
    """Run the prompts, padded on the left (`tokens_BP`, `mask_BP` int32), through the decoder.

    Returns the final hidden state [B, D] of the last column and the prompt part of the cache.
    The layers are scanned: at many tokens a copied slice costs little, and compiling them
    unrolled would double the compile time of the sampler.
    """
    dtype = jnp.dtype(config.dtype)
    cos_BPH, sin_BPH = _rope(positions_of(mask_BP), config)
    bias_BPP = causal_bias(mask_BP)

    def apply_layer(x_BPD: jax.Array, stack_slice: Mapping[str, Any]):
        layer = _layer_weights(stack_slice, dtype)
        q_BPNH, k_BPKH, v_BPKH = _qkv(layer, config, x_BPD, cos_BPH, sin_BPH)
        cache = LayerCache(k_BPKH.transpose(0, 2, 3, 1), v_BPKH.transpose(0, 2, 1, 3))
        mixed_BPNH = attend(q_BPNH, k_BPKH, v_BPKH, bias_BPP)
        return _finish_layer(layer, config, x_BPD, mixed_BPNH), cache

    x_BPD = params["embed"]["embedding"].astype(dtype)[tokens_BP]
    x_BPD, stacked = jax.lax.scan(apply_layer, x_BPD, params["layers"])
    caches = tuple(LayerCache(k, v) for k, v in zip(*stacked, strict=True))
    hidden_BD = rms_norm(x_BPD[:, -1], params["final_norm"]["scale"], config.norm_eps)
    return hidden_BD, caches


def empty_cache(config: DecoderConfig, batch: int, slots: int) -> Cache:
    """A response cache of zeros for `batch` rows of up to `slots` new tokens."""
    heads, width, dtype = config.num_kv_heads, config.head_dim, config.dtype
    return tuple(
        LayerCache(
            jnp.zeros((batch, heads, width, slots), dtype),
            jnp.zeros((batch, heads, slots, width), dtype),
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
) -> tuple[jax.Array, Cache]:
    """Append response token number `step` (int32 scalar, `tokens_B` int32) to every row.

    The prompt mask and cache have A rows; row b of the batch continues prompt b // (B / A).
    Returns the final hidden state [B, D], which predicts the next token, and the response cache.
    """
    samples = tokens_B.shape[0] // prompt_mask_AP.shape[0]
    positions_B = jnp.repeat(prompt_mask_AP.sum(axis=1), samples) + step
    cos_BH, sin_BH = _rope(positions_B, config)
    prompt_bias_AP = jnp.where(prompt_mask_AP > 0, 0.0, MASKED)
    slots = response_cache[0].v_BKSH.shape[2]
    response_bias_S = jnp.where(jnp.arange(slots) <= step, 0.0, MASKED)

    x_BD = weights.embedding_VD[tokens_B]
    updated = []
    for layer, prompt, response in zip(weights.layers, prompt_cache, response_cache, strict=True):
        q_BNH, k_BKH, v_BKH = _qkv(layer, config, x_BD, cos_BH, sin_BH)
        write = jax.lax.dynamic_update_slice_in_dim
        response = LayerCache(
            write(response.k_BKHS, k_BKH[..., None], step, axis=3),
            write(response.v_BKSH, v_BKH[:, :, None], step, axis=2),
        )
        mixed_BNH = _attend_cached(q_BNH, prompt, prompt_bias_AP, response, response_bias_S)
        x_BD = _finish_layer(layer, config, x_BD, mixed_BNH)
        updated.append(response)
    return rms_norm(x_BD, weights.final_norm_D, config.norm_eps), tuple(updated)


def next_logits(weights: DecodeWeights, hidden_BD: jax.Array) -> jax.Array:
    """Logits [B, V] float32 of the final hidden states."""
    return jax.lax.dot_general(
        hidden_BD, weights.unembedding_VD, (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )  # fmt: skip


def _layer_weights(stack_slice: Mapping[str, Any], dtype: jnp.dtype) -> LayerWeights:
    """The matrices of one layer, joined, from its slice of the stacked parameters."""

    def joined(group: str, *names: str) -> jax.Array:
        kernels = [stack_slice[group][name]["kernel"] for name in names]
        return jnp.concatenate(kernels, axis=1).astype(dtype)

    return LayerWeights(
        attn_norm_D=stack_slice["attn_norm"]["scale"],
        qkv=joined("attn", "q", "k", "v"),
        o=joined("attn", "o"),
        mlp_norm_D=stack_slice["mlp_norm"]["scale"],
        gate_up=joined("mlp", "gate", "up"),
        down=joined("mlp", "down"),
    )


def _rope(positions: jax.Array, config: DecoderConfig) -> tuple[jax.Array, jax.Array]:
    cos, sin = rope_tables(positions, config.head_dim, config.rope_theta)
    return cos.astype(config.dtype), sin.astype(config.dtype)


def _qkv(layer: LayerWeights, config: DecoderConfig, x_D, cos_H, sin_H):
    """Rotated queries and keys, and values, [..., heads, H], of the residual stream [..., D]."""
    num_heads, kv_heads = config.num_heads, config.num_kv_heads
    joined = rms_norm(x_D, layer.attn_norm_D, config.norm_eps) @ layer.qkv
    joined = joined.reshape(*x_D.shape[:-1], num_heads + 2 * kv_heads, config.head_dim)
    rotated = apply_rope(joined[..., : num_heads + kv_heads, :], cos_H, sin_H)
    values = joined[..., num_heads + kv_heads :, :]
    return rotated[..., :num_heads, :], rotated[..., num_heads:, :], values


def _finish_layer(layer: LayerWeights, config: DecoderConfig, x_D, mixed_NH):
    """Add the attention output and the feed-forward to the residual stream [..., D]."""
    x_D = x_D + mixed_NH.reshape(*x_D.shape[:-1], -1) @ layer.o
    gate_up = rms_norm(x_D, layer.mlp_norm_D, config.norm_eps) @ layer.gate_up
    gate_F, up_F = jnp.split(gate_up, 2, axis=-1)
    return x_D + (jax.nn.silu(gate_F) * up_F) @ layer.down


def _attend_cached(
    q_BNH: jax.Array,
    prompt: LayerCache,
    prompt_bias_AP: jax.Array,
    response: LayerCache,
    response_bias_S: jax.Array,
) -> jax.Array:
    """Attention of one query per row over both parts of the cache, under one softmax."""
    batch, num_heads, head_dim = q_BNH.shape
    prompts, kv_heads = prompt.k_BKHS.shape[:2]
    samples, group = batch // prompts, num_heads // kv_heads
    # Letters: a prompt, j query of the prompt's kv head k (from any sample and query head),
    # g query head of kv head k in row b.
    q_BKGH = (q_BNH * head_dim**-0.5).reshape(batch, kv_heads, group, head_dim)

    def by_prompt(x_BKG: jax.Array) -> jax.Array:
        x_AMKG = x_BKG.reshape(prompts, samples, kv_heads, group, -1)
        return x_AMKG.swapaxes(1, 2).reshape(prompts, kv_heads, samples * group, -1)

    def by_row(x_AKJ: jax.Array) -> jax.Array:
        x_AKMG = x_AKJ.reshape(prompts, kv_heads, samples, group, -1)
        return x_AKMG.swapaxes(1, 2).reshape(batch, kv_heads, group, -1)

    def product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)

    on_prompt = product("akjh,akhp->akjp", by_prompt(q_BKGH), prompt.k_BKHS)
    on_prompt = on_prompt + prompt_bias_AP[:, None, None, :]
    on_response = product("bkgh,bkhs->bkgs", q_BKGH, response.k_BKHS) + response_bias_S

    top_BKG1 = jnp.maximum(by_row(on_prompt.max(axis=-1)), on_response.max(axis=-1, keepdims=True))
    on_prompt = jnp.exp(on_prompt - by_prompt(top_BKG1))
    on_response = jnp.exp(on_response - top_BKG1)
    total_BKG1 = by_row(on_prompt.sum(axis=-1)) + on_response.sum(axis=-1, keepdims=True)

    dtype = q_BNH.dtype
    mixed_BKGH = by_row(product("akjp,akph->akjh", on_prompt.astype(dtype), prompt.v_BKSH))
    mixed_BKGH += product("bkgs,bksh->bkgh", on_response.astype(dtype), response.v_BKSH)
    return (mixed_BKGH / total_BKG1).astype(dtype).reshape(q_BNH.shape)
