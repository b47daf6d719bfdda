"""The causal decoder of every supported family; `DecoderConfig` says how they differ.

Parameters (kernels [in, out]; the layers are stacked on a leading L axis):

    embed/embedding [V, D]           position/embedding [P, D]  (learned positions)
    layers/attn/{q,k,v,o}/kernel [L, in, out]       with bias [L, out] by `attn_bias`
    layers/attn/{q,k}_norm/scale                    by `qk_norm`
    layers/mlp/{gate,up,down}/kernel [L, in, out]   no gate if not `gated`; bias by `mlp_bias`
    layers/{attn,mlp}_norm/scale [L, D]             before the sublayer } by `norm_placement`,
    layers/{attn,mlp}_post_norm/scale [L, D]        after it            } bias for layer norm
    final_norm/scale [D]             lm_head/kernel [D, V]      (only if not tied)
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax.models import attention_kernels
from gapo_jax.models.attention import AttentionInputs, attend, causal_bias
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.layers import (
    ACTIVATIONS,
    Embed,
    Norm,
    RopeTables,
    apply_rope,
    dense,
    kernel_init,
    remat,
    rope_tables,
    scan_layers,
    soft_cap,
    wide,
)
from gapo_jax.types import Params


def positions_of(mask_BT: jax.Array) -> jax.Array:
    """Return the positions [B, T] int32 of the real tokens: 0, 1, 2, ... wherever padding is."""
    return jnp.clip(jnp.cumsum(mask_BT, axis=-1) - 1, 0).astype(jnp.int32)


def scale_embeddings(hidden_D: jax.Array, config: DecoderConfig) -> jax.Array:
    """Multiply embeddings [..., D] by sqrt(D) where the family does so (Gemma).

    The factor is rounded to the dtype of the computation, as in Gemma's release; the dtype is kept.
    """
    if not config.scale_embeddings:
        return hidden_D
    return hidden_D * jnp.asarray(config.d_model**0.5, hidden_D.dtype)


def unembedding(params: Params) -> jax.Array:
    """Return the matrix [D, V] that maps final hidden states to logits, tied or not."""
    if "lm_head" in params:
        return params["lm_head"]["kernel"]
    return params["embed"]["embedding"].T


def rope_of(config: DecoderConfig, positions_BT: jax.Array, local: bool) -> RopeTables | None:
    """Return the rotary tables [..., T, H] of the layers with (`local`) or without a window.

    They are in the dtype of the computation; None with learned positions.
    """
    if config.positions != "rope":
        return None
    theta, scaling = config.rope_theta, config.rope_scaling
    if local and config.rope_local_theta is not None:
        # Only layers without a window have stretched wavelengths.
        theta, scaling = config.rope_local_theta, ()
    cos_BTH, sin_BTH = rope_tables(positions_BT, config.head_dim, theta, scaling)
    return cos_BTH.astype(config.dtype), sin_BTH.astype(config.dtype)


def attention_inputs(
    config: DecoderConfig, mask_BT: jax.Array, positions_BT: jax.Array
) -> tuple[AttentionInputs, ...]:
    """Return the inputs of each kind of layer, in the order of `config.layer_kinds`."""
    plain = kernel_of(config) == "xla"
    return tuple(
        AttentionInputs(
            rope_of(config, positions_BT, local),
            (causal_bias(mask_BT, config.window if local else 0),) if plain else (),
            None if plain else mask_BT,
        )
        for local in config.layer_kinds
    )


def inputs_of_layer(kinds: Sequence[AttentionInputs], is_local: jax.Array) -> AttentionInputs:
    """Choose the inputs of one layer by its entry `is_local` (bool) of `config.local_layers`."""
    if len(kinds) == 1:
        return kinds[0]
    return jax.tree.map(lambda full, local: jnp.where(is_local, local, full), *kinds)


def kernel_of(config: DecoderConfig) -> attention_kernels.AttentionKernel:
    """Return the attention kernel of the forward over whole rows (`attention_kernels.choose`)."""
    return attention_kernels.choose(
        config.attention,
        dtype=config.dtype,
        head_dim=config.head_dim,
        softcap=config.attn_softcap,
    )


def self_attention(
    config: DecoderConfig,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    inputs: AttentionInputs,
    is_local: jax.Array,
) -> jax.Array:
    """Compute the attention of one layer, [B, T, N, H]; `inputs` were chosen by `is_local`."""
    scale, softcap = config.query_scale, config.attn_softcap
    if inputs.biases:
        (bias_BTT,) = inputs.biases
        return attend(q_BTNH, k_BTKH, v_BTKH, bias_BTT, scale=scale, softcap=softcap)
    assert inputs.mask_BT is not None
    return attention_kernels.causal_attention(
        kernel_of(config),
        q_BTNH,
        k_BTKH,
        v_BTKH,
        inputs.mask_BT,
        windows=[config.window if local else 0 for local in config.layer_kinds],
        index=is_local.astype(jnp.int32),
        scale=scale,
        softcap=softcap,
    )


class Attention(nn.Module):
    """Causal self-attention of one layer."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, inputs: AttentionInputs, is_local: jax.Array) -> jax.Array:
        """Mix the tokens of `x_BTD`; returns [B, T, D]."""
        cfg = self.config
        batch, length = x_BTD.shape[:2]

        def heads(name: str, count: int, norm: bool, rotate: bool) -> jax.Array:
            has_bias = cfg.attn_bias != "none"
            x_BTF = dense(count * cfg.head_dim, name, cfg.dtype, has_bias)(x_BTD)
            if norm and cfg.qk_norm == "all":
                x_BTF = Norm(cfg.norm_eps, cfg.norm, name=f"{name}_norm")(x_BTF)
            x_BTNH = x_BTF.reshape(batch, length, count, cfg.head_dim)
            if norm and cfg.qk_norm == "head":
                x_BTNH = Norm(cfg.norm_eps, cfg.norm, name=f"{name}_norm")(x_BTNH)
            if rotate and inputs.rope is not None:
                x_BTNH = apply_rope(x_BTNH, inputs.rope)
            return x_BTNH

        out_BTNH = self_attention(
            cfg,
            heads("q", cfg.num_heads, True, True),
            heads("k", cfg.num_kv_heads, True, True),
            heads("v", cfg.num_kv_heads, False, False),
            inputs,
            is_local,
        )
        out_BTF = out_BTNH.reshape(batch, length, -1)
        return dense(cfg.d_model, "o", cfg.dtype, cfg.attn_bias == "all")(out_BTF)


class MLP(nn.Module):
    """Feed-forward: gated (arXiv 2002.05202, Eq. 6), down(act(gate(x)) * up(x)), or plain."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Map `x_BTD` to the same shape."""
        cfg = self.config
        activate = ACTIVATIONS[cfg.activation]
        if cfg.gated:
            gate_BTF = dense(cfg.d_ff, "gate", cfg.dtype, cfg.mlp_bias)(x_BTD)
            up_BTF = dense(cfg.d_ff, "up", cfg.dtype, cfg.mlp_bias)(x_BTD)
            inner_BTF = activate(gate_BTF) * up_BTF
        else:
            inner_BTF = activate(dense(cfg.d_ff, "up", cfg.dtype, cfg.mlp_bias)(x_BTD))
        return dense(cfg.d_model, "down", cfg.dtype, cfg.mlp_bias)(inner_BTF)


class DecoderLayer(nn.Module):
    """One layer: attention, then feed-forward, each on the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, kinds: Sequence[AttentionInputs], is_local: jax.Array
    ) -> tuple[jax.Array, None]:
        """Return (x_BTD, None): the carry of the scan over layers and no output."""
        cfg = self.config

        def norm(name: str, x_BTD: jax.Array, *placements: str) -> jax.Array:
            if cfg.norm_placement not in placements:
                return x_BTD
            return Norm(cfg.norm_eps, cfg.norm, name=name)(x_BTD)

        inputs = inputs_of_layer(kinds, is_local)
        normed_BTD = norm("attn_norm", x_BTD, "pre", "both")
        mixed_BTD = Attention(cfg, name="attn")(normed_BTD, inputs, is_local)
        x_BTD = x_BTD + norm("attn_post_norm", mixed_BTD, "post", "both")
        mapped_BTD = MLP(cfg, name="mlp")(norm("mlp_norm", x_BTD, "pre", "both"))
        return x_BTD + norm("mlp_post_norm", mapped_BTD, "post", "both"), None


class LayerStack(nn.Module):
    """The layers of a decoder, scanned.

    Their parameters carry a leading L axis, so that a slice of them runs by itself under
    `LayerStack(config.part(start, stop))`.
    """

    config: DecoderConfig

    def setup(self) -> None:
        """Put the scanned layer's parameters directly under this module's name."""
        cfg = self.config
        layer = remat(DecoderLayer, cfg.remat)
        self.stack = scan_layers(layer, cfg.num_layers, 1, cfg.scan_unroll)(cfg)
        nn.share_scope(self, self.stack)

    def __call__(
        self, hidden_BTD: jax.Array, mask_BT: jax.Array, positions_BT: jax.Array
    ) -> jax.Array:
        """Apply the layers to `hidden_BTD` (any float); `mask_BT`, `positions_BT` int32."""
        cfg = self.config
        kinds = attention_inputs(cfg, mask_BT, positions_BT)
        hidden_BTD, _ = self.stack(
            hidden_BTD.astype(cfg.dtype), kinds, jnp.asarray(cfg.local_layers)
        )
        return hidden_BTD


class Decoder(nn.Module):
    """A causal language model. Call it through `decoder.apply({"params": params}, ...)`."""

    config: DecoderConfig

    def setup(self) -> None:
        """Declare embedding, layers, final norm and, if not tied, the output matrix."""
        cfg = self.config
        self.embed = Embed(cfg.vocab_size, cfg.d_model, dtype=cfg.dtype)
        if cfg.positions == "learned":
            self.position = Embed(cfg.max_positions, cfg.d_model, dtype=cfg.dtype)
        self.layers = LayerStack(cfg)
        self.final_norm = Norm(cfg.norm_eps, cfg.norm)
        if not cfg.tie_embeddings:
            self.lm_head = nn.Dense(
                cfg.vocab_size, use_bias=False, dtype=cfg.dtype, kernel_init=kernel_init
            )

    def __call__(
        self, tokens_BT: jax.Array, mask_BT: jax.Array, positions_BT: jax.Array | None = None
    ) -> jax.Array:
        """Return logits [B, T, V] float32 of the token after each column of `tokens_BT` (int32).

        `mask_BT` int32, 1 = real token; padding may be on either side. `positions_BT` defaults
        to `positions_of(mask_BT)`.
        """
        return self.logits(self.hidden(tokens_BT, mask_BT, positions_BT))

    def embed_tokens(
        self, tokens_BT: jax.Array, positions_BT: jax.Array | None = None
    ) -> jax.Array:
        """Return the input [B, T, D] of the first layer.

        Raises:
            ValueError: positions are learned and `positions_BT` is None.
        """
        cfg = self.config
        hidden_BTD = scale_embeddings(self.embed(tokens_BT), cfg)
        if cfg.positions == "learned":
            if positions_BT is None:
                raise ValueError("Wanted positions_BT for learned positions, got None. Pass them.")
            hidden_BTD = hidden_BTD + self.position(positions_BT)
        return hidden_BTD

    def hidden(
        self, tokens_BT: jax.Array, mask_BT: jax.Array, positions_BT: jax.Array | None = None
    ) -> jax.Array:
        """Return hidden states [B, T, D] after the final norm; arguments as in `__call__`."""
        if positions_BT is None:
            positions_BT = positions_of(mask_BT)
        hidden_BTD = self.embed_tokens(tokens_BT, positions_BT)
        return self.final(self.layers(hidden_BTD, mask_BT, positions_BT))

    def final(self, hidden_BTD: jax.Array) -> jax.Array:
        """Apply the final norm, to hidden states that came out of a `LayerStack`."""
        return self.final_norm(hidden_BTD)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Return logits [..., V] float32 of final hidden states."""
        if self.config.tie_embeddings:
            logits_BTV = self.embed.attend(hidden_BTD)
        else:
            logits_BTV = self.lm_head(hidden_BTD)
        return soft_cap(logits_BTV.astype(wide(logits_BTV.dtype)), self.config.final_softcap)
