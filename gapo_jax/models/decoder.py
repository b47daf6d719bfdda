"""Llama-type causal decoder: RMSNorm, rotary positions, grouped heads, SwiGLU, tied embeddings.

Parameters (kernels [in, out]; the layers are stacked on a leading L axis):

    embed/embedding [V, D]
    layers/attn_norm/scale [L, D]    layers/attn/{q,k,v,o}/kernel [L, in, out]
    layers/mlp_norm/scale [L, D]     layers/mlp/{gate,up,down}/kernel [L, in, out]
    final_norm/scale [D]             lm_head/kernel [D, V]   (only if not tied)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax.models.attention import attend, causal_bias
from gapo_jax.models.layers import (
    REMAT_POLICIES,
    RMSNorm,
    apply_rope,
    dense,
    kernel_init,
    remat,
    rope_tables,
    scan_layers,
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder.

    `dtype` is the dtype of the computation (parameters and logits stay float32). `remat` says
    what the backward pass recomputes (see `layers.remat`); `scan_unroll` is the number of layers
    that the scan over layers puts into one iteration.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 2048
    tie_embeddings: bool = True
    eos_ids: tuple[int, ...] = ()
    pad_id: int = 0
    bos_id: int | None = None
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError on shapes that cannot be built."""
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads, got {self.num_kv_heads} and {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat must be one of {REMAT_POLICIES}, got {self.remat!r}")


def positions_of(mask_BT: jax.Array) -> jax.Array:
    """Positions [B, T] int32 of the real tokens: 0, 1, 2, ... wherever the padding lies."""
    return jnp.clip(jnp.cumsum(mask_BT, axis=-1) - 1, 0).astype(jnp.int32)


def unembedding(params: Mapping[str, Any]) -> jax.Array:
    """Matrix [D, V] that takes the final hidden states to logits, tied or not."""
    if "lm_head" in params:
        return params["lm_head"]["kernel"]
    return params["embed"]["embedding"].T


class Attention(nn.Module):
    """Causal self-attention of one layer."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BTD, cos_BTH, sin_BTH, bias_BTT):
        """Mix tokens under `bias_BTT` (see `attention.causal_bias`); returns [B, T, D]."""
        cfg = self.config
        batch, length = x_BTD.shape[:2]

        def heads(name: str, count: int) -> jax.Array:
            projected = dense(count * cfg.head_dim, name, cfg.dtype)(x_BTD)
            return projected.reshape(batch, length, count, cfg.head_dim)

        q_BTNH = apply_rope(heads("q", cfg.num_heads), cos_BTH, sin_BTH)
        k_BTKH = apply_rope(heads("k", cfg.num_kv_heads), cos_BTH, sin_BTH)
        out_BTNH = attend(q_BTNH, k_BTKH, heads("v", cfg.num_kv_heads), bias_BTT)
        return dense(cfg.d_model, "o", cfg.dtype)(out_BTNH.reshape(batch, length, -1))


class GatedMLP(nn.Module):
    """SwiGLU feed-forward (arXiv 2002.05202, Eq. 6): down(silu(gate(x)) * up(x))."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Map `x_BTD` to the same shape."""
        cfg = self.config
        gate_BTF = dense(cfg.d_ff, "gate", cfg.dtype)(x_BTD)
        up_BTF = dense(cfg.d_ff, "up", cfg.dtype)(x_BTD)
        return dense(cfg.d_model, "down", cfg.dtype)(nn.silu(gate_BTF) * up_BTF)


class DecoderLayer(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each on the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x_BTD, cos_BTH, sin_BTH, bias_BTT):
        """Returns (x_BTD, None): the carry of the scan over layers and no output."""
        cfg = self.config
        normed_BTD = RMSNorm(cfg.norm_eps, name="attn_norm")(x_BTD)
        x_BTD = x_BTD + Attention(cfg, name="attn")(normed_BTD, cos_BTH, sin_BTH, bias_BTT)
        normed_BTD = RMSNorm(cfg.norm_eps, name="mlp_norm")(x_BTD)
        return x_BTD + GatedMLP(cfg, name="mlp")(normed_BTD), None


class LayerStack(nn.Module):
    """The layers of a decoder, scanned. Its parameters carry a leading L axis, so a slice of
    them runs on its own under `LayerStack(replace(config, num_layers=n))`."""

    config: DecoderConfig

    def setup(self) -> None:
        """Put the scanned layer's parameters directly under this module's name."""
        cfg = self.config
        layer = remat(DecoderLayer, cfg.remat)
        self.stack = scan_layers(layer, cfg.num_layers, 3, cfg.scan_unroll)(cfg)
        nn.share_scope(self, self.stack)

    def __call__(
        self, hidden_BTD: jax.Array, mask_BT: jax.Array, positions_BT: jax.Array
    ) -> jax.Array:
        """Apply the layers to `hidden_BTD` (any float); `mask_BT`, `positions_BT` int32."""
        cfg = self.config
        cos_BTH, sin_BTH = rope_tables(positions_BT, cfg.head_dim, cfg.rope_theta)
        dtype = jnp.dtype(cfg.dtype)
        bias_BTT = causal_bias(mask_BT)
        hidden_BTD, _ = self.stack(
            hidden_BTD.astype(dtype), cos_BTH.astype(dtype), sin_BTH.astype(dtype), bias_BTT
        )
        return hidden_BTD


class Decoder(nn.Module):
    """A causal language model. Call it through `decoder.apply({"params": params}, ...)`."""

    config: DecoderConfig

    def setup(self) -> None:
        """Declare embedding, layers, final norm and, if not tied, the output matrix."""
        cfg = self.config
        self.embed = nn.Embed(
            cfg.vocab_size, cfg.d_model, dtype=cfg.dtype, embedding_init=kernel_init
        )
        self.layers = LayerStack(cfg)
        self.final_norm = RMSNorm(cfg.norm_eps)
        if not cfg.tie_embeddings:
            self.lm_head = nn.Dense(
                cfg.vocab_size, use_bias=False, dtype=cfg.dtype, kernel_init=kernel_init
            )

    def __call__(
        self, tokens_BT: jax.Array, mask_BT: jax.Array, positions_BT: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, T, V] float32 of the token after each column of `tokens_BT` (int32).

        `mask_BT` int32, 1 = real token; padding may lie on either side. `positions_BT` defaults
        to `positions_of(mask_BT)`.
        """
        hidden_BTD = self.hidden(tokens_BT, mask_BT, positions_BT)
        if self.config.tie_embeddings:
            return self.embed.attend(hidden_BTD).astype(jnp.float32)
        return self.lm_head(hidden_BTD).astype(jnp.float32)

    def embed_tokens(self, tokens_BT: jax.Array) -> jax.Array:
        """Embeddings [B, T, D] of `tokens_BT` (int32), the input of the first layer."""
        return self.embed(tokens_BT)

    def hidden(
        self, tokens_BT: jax.Array, mask_BT: jax.Array, positions_BT: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states [B, T, D] after the final norm; arguments as in `__call__`."""
        if positions_BT is None:
            positions_BT = positions_of(mask_BT)
        return self.final(self.layers(self.embed(tokens_BT), mask_BT, positions_BT))

    def final(self, hidden_BTD: jax.Array) -> jax.Array:
        """The final norm, for hidden states that came out of a `LayerStack`."""
        return self.final_norm(hidden_BTD)
