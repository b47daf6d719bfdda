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
values as [B, K, S, H], so that neither product transposes the cache. How the weights lie:
`decode_weights.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gapo_jax.models.attention import MASKED, AttentionInputs
from gapo_jax.models.decode_weights import (
    DecodeWeights,
    LayerWeights,
    Linear,
    decode_weights,
    head_parts,
    key_repeats,
    layer_weights,
    quantised,
)
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


class LayerCache(NamedTuple):
    """Keys [B, K, H, S] and values [B, K, S, H] of one layer."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array


Cache = tuple[LayerCache, ...]
__all__ = [
    "Cache", "DecodeWeights", "LayerCache", "LayerWeights", "Linear", "decode_step",
    "decode_weights", "empty_cache", "head_parts", "next_logits", "prefill", "quantised",
]  # fmt: skip


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
        layer = layer_weights(stack_slice, config, place)
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
    heads = config.num_kv_heads * key_repeats(config, place)
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


def _apply(linear: Linear, x_D: jax.Array) -> jax.Array:
    # Whole numbers of 8 bits are exact in bfloat16; the product reads them as they are stored.
    kernel = linear.kernel if linear.scale is None else linear.kernel.astype(x_D.dtype)
    product = jnp.tensordot(x_D, kernel, 1) if kernel.ndim > 2 else x_D @ kernel
    if linear.scale is not None:
        product = (product * linear.scale).astype(x_D.dtype)
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
