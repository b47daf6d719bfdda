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
    stack = params["layers"]
    dtype = jnp.dtype(config.dtype)

    def joined(group: str, names: tuple[str, ...], layer: int) -> jax.Array:
        kernels = [stack[group][name]["kernel"][layer] for name in names]
        return jnp.concatenate(kernels, axis=1).astype(dtype)

    layers = tuple(
        LayerWeights(
            attn_norm_D=stack["attn_norm"]["scale"][layer],
            qkv=joined("attn", ("q", "k", "v"), layer),
            o=joined("attn", ("o",), layer),
            mlp_norm_D=stack["mlp_norm"]["scale"][layer],
            gate_up=joined("mlp", ("gate", "up"), layer),
            down=joined("mlp", ("down",), layer),
        )
        for layer in range(config.num_layers)
    )
    embedding_VD = params["embed"]["embedding"].astype(dtype)
    tied = "lm_head" not in params
    unembedding_VD = embedding_VD if tied else params["lm_head"]["kernel"].T.astype(dtype)
    return DecodeWeights(embedding_VD, layers, params["final_norm"]["scale"], unembedding_VD)


def prefill(
    weights: DecodeWeights, config: DecoderConfig, tokens_BP: jax.Array, mask_BP: jax.Array
) -> tuple[jax.Array, Cache]:
    """Run the prompts, padded on the left (`tokens_BP`, `mask_BP` int32).

    Returns the final hidden state [B, D] of the last column and the prompt part of the cache.
    """
    cos_BPH, sin_BPH = _rope(positions_of(mask_BP), config)
    bias_BPP = causal_bias(mask_BP)
    x_BPD = weights.embedding_VD[tokens_BP]
    caches = []
    for layer in weights.layers:
        q_BPNH, k_BPKH, v_BPKH = _qkv(layer, config, x_BPD, cos_BPH, sin_BPH)
        caches.append(LayerCache(k_BPKH.transpose(0, 2, 3, 1), v_BPKH.transpose(0, 2, 1, 3)))
        x_BPD = _finish_layer(layer, config, x_BPD, attend(q_BPNH, k_BPKH, v_BPKH, bias_BPP))
    return rms_norm(x_BPD[:, -1], weights.final_norm_D, config.norm_eps), tuple(caches)


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
    logits_BV = jax.lax.dot_general(
        hidden_BD, weights.unembedding_VD, (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return logits_BV


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
    group = num_heads // kv_heads
    # Letters: a prompt, j sample of the prompt, b = (a, j) row, g query head of a kv head.
    split = (prompts, batch // prompts, kv_heads, group)
    q_BKGH = (q_BNH * head_dim**-0.5).reshape(batch, kv_heads, group, head_dim)
    q_AJKGH = q_BKGH.reshape(*split, head_dim)

    def product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)

    on_prompt = product("ajkgh,akhp->ajkgp", q_AJKGH, prompt.k_BKHS)
    on_prompt = on_prompt + prompt_bias_AP[:, None, None, None, :]
    on_response = product("bkgh,bkhs->bkgs", q_BKGH, response.k_BKHS) + response_bias_S

    top_BKG = jnp.maximum(
        on_prompt.max(axis=-1).reshape(batch, kv_heads, group), on_response.max(axis=-1)
    )
    on_prompt = jnp.exp(on_prompt - top_BKG.reshape(*split, 1))
    on_response = jnp.exp(on_response - top_BKG[..., None])
    total_BKG = on_prompt.sum(axis=-1).reshape(batch, kv_heads, group) + on_response.sum(axis=-1)

    dtype = q_BNH.dtype
    mixed = product("ajkgp,akph->ajkgh", on_prompt.astype(dtype), prompt.v_BKSH)
    mixed = mixed.reshape(q_BKGH.shape) + product(
        "bkgs,bksh->bkgh", on_response.astype(dtype), response.v_BKSH
    )
    return (mixed / total_BKG[..., None]).astype(dtype).reshape(q_BNH.shape)
