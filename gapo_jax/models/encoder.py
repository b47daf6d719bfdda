"""BERT-type encoder: post-norm layers, learned positions, exact gelu.

Parameters (kernels [in, out]; the layers are stacked on a leading L axis):

    embed/{word,position,type}/embedding    embed/norm/{scale,bias}
    layers/attn/{q,k,v,o}/{kernel,bias}     layers/attn_norm/{scale,bias}
    layers/mlp/{up,down}/{kernel,bias}      layers/mlp_norm/{scale,bias}
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax.models.attention import apply_weights, attention_weights, padding_bias
from gapo_jax.models.layers import REMAT_POLICIES, dense, kernel_init, remat, scan_layers


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and numerics of an encoder. `dropout` acts on embeddings, attention weights and the
    output of each sublayer, as in BERT; the remaining fields are those of `DecoderConfig`."""

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    d_ff: int
    max_positions: int = 512
    type_vocab_size: int = 2
    norm_eps: float = 1e-12
    dropout: float = 0.0
    pad_id: int = 0
    dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError on shapes that cannot be built."""
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model, got {self.num_heads} and {self.d_model}"
            )
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat must be one of {REMAT_POLICIES}, got {self.remat!r}")


def layer_norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
    """Layer norm with scale and bias; two-pass variance, since eps 1e-12 forgives no rounding."""
    return nn.LayerNorm(
        epsilon=config.norm_eps, dtype=config.dtype, use_fast_variance=False, name=name
    )


class EncoderEmbedding(nn.Module):
    """Sum of word, position and segment embeddings, normalised."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, tokens_BT, type_ids_BT, deterministic):
        """Embed `tokens_BT` (int32); returns [B, T, D]."""
        cfg = self.config

        def table(size: int, name: str) -> nn.Embed:
            return nn.Embed(
                size, cfg.d_model, dtype=cfg.dtype, embedding_init=kernel_init, name=name
            )

        positions_1T = jnp.arange(tokens_BT.shape[1])[None]
        summed_BTD = (
            table(cfg.vocab_size, "word")(tokens_BT)
            + table(cfg.type_vocab_size, "type")(type_ids_BT)
            + table(cfg.max_positions, "position")(positions_1T)
        )
        normed_BTD = layer_norm(cfg, "norm")(summed_BTD)
        return nn.Dropout(cfg.dropout)(normed_BTD, deterministic)


class SelfAttention(nn.Module):
    """Bidirectional self-attention of one layer."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BTD, bias_B1T, deterministic):
        """Mix tokens under `bias_B1T` (see `attention.padding_bias`); returns [B, T, D]."""
        cfg = self.config
        head_dim = cfg.d_model // cfg.num_heads

        def heads(name: str) -> jax.Array:
            projected_BTD = dense(cfg.d_model, name, cfg.dtype, use_bias=True)(x_BTD)
            return projected_BTD.reshape(*x_BTD.shape[:2], cfg.num_heads, head_dim)

        weights_BKGTS = attention_weights(heads("q"), heads("k"), bias_B1T)
        weights_BKGTS = nn.Dropout(cfg.dropout)(weights_BKGTS, deterministic)
        out_BTD = apply_weights(weights_BKGTS, heads("v")).reshape(x_BTD.shape)
        return dense(cfg.d_model, "o", cfg.dtype, use_bias=True)(out_BTD)


class MLP(nn.Module):
    """Feed-forward with the exact (erf) gelu."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Map `x_BTD` to the same shape."""
        cfg = self.config
        up_BTF = dense(cfg.d_ff, "up", cfg.dtype, use_bias=True)(x_BTD)
        activated_BTF = nn.gelu(up_BTF, approximate=False)
        return dense(cfg.d_model, "down", cfg.dtype, use_bias=True)(activated_BTF)


class EncoderLayer(nn.Module):
    """One post-norm layer: norm(x + attention(x)), then norm(x + mlp(x))."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BTD, bias_B1T, deterministic):
        """Returns (x_BTD, None): the carry of the scan over layers and no output."""
        cfg = self.config
        mixed_BTD = SelfAttention(cfg, name="attn")(x_BTD, bias_B1T, deterministic)
        mixed_BTD = nn.Dropout(cfg.dropout)(mixed_BTD, deterministic)
        x_BTD = layer_norm(cfg, "attn_norm")(x_BTD + mixed_BTD)
        mapped_BTD = MLP(cfg, name="mlp")(x_BTD)
        mapped_BTD = nn.Dropout(cfg.dropout)(mapped_BTD, deterministic)
        return layer_norm(cfg, "mlp_norm")(x_BTD + mapped_BTD), None


class Encoder(nn.Module):
    """A bidirectional text encoder. Call it through `encoder.apply({"params": params}, ...)`."""

    config: EncoderConfig

    def setup(self) -> None:
        """Declare the embeddings and the scanned layers."""
        cfg = self.config
        self.embed = EncoderEmbedding(cfg)
        layer = remat(EncoderLayer, cfg.remat, static_argnums=(3,))
        self.layers = scan_layers(layer, cfg.num_layers, 2, cfg.scan_unroll)(cfg)

    def __call__(
        self,
        tokens_BT: jax.Array,
        mask_BT: jax.Array,
        type_ids_BT: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Hidden states [B, T, D] of `tokens_BT` (int32), in `config.dtype`.

        `mask_BT` int32, 1 = real token; `type_ids_BT` int32 segment ids, 0 where not given. With
        `deterministic=False` the caller passes `rngs={"dropout": key}` to `apply`. Raises
        ValueError when a text is longer than `config.max_positions`.
        """
        if tokens_BT.shape[1] > self.config.max_positions:
            raise ValueError(
                f"the encoder takes at most {self.config.max_positions} tokens, got "
                f"{tokens_BT.shape[1]}; shorten the texts (max_length of the discriminator)"
            )
        if type_ids_BT is None:
            type_ids_BT = jnp.zeros_like(tokens_BT)
        return self.run_layers(
            self.embed(tokens_BT, type_ids_BT, deterministic), mask_BT, deterministic
        )

    def run_layers(
        self, hidden_BTD: jax.Array, mask_BT: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Apply the layers alone to `hidden_BTD` [B, T, D], for a slice of a deeper stack."""
        hidden_BTD, _ = self.layers(hidden_BTD, padding_bias(mask_BT), deterministic)
        return hidden_BTD


def encode_above(
    config: EncoderConfig,
    params: Any,
    first: int,
    tokens_BT: jax.Array,
    mask_BT: jax.Array,
    type_ids_BT: jax.Array,
    **options: Any,
) -> jax.Array:
    """Return what `Encoder(config)` returns, with no gradient to the embeddings and to the layers
    below `first`: their backward pass is not computed. `options` go to `apply` (`rngs`,
    `deterministic`)."""
    if not 0 < first < config.num_layers:
        raise ValueError(f"first must lie in 1..{config.num_layers - 1}, got {first}")
    layers = params["layers"]
    below = {"embed": params["embed"], "layers": jax.tree.map(lambda x: x[:first], layers)}
    above = {"layers": jax.tree.map(lambda x: x[first:], layers)}

    def part(count: int) -> Encoder:
        unroll = min(config.scan_unroll, count)
        return Encoder(dataclasses.replace(config, num_layers=count, scan_unroll=unroll))

    hidden: Any = part(first).apply(
        {"params": jax.lax.stop_gradient(below)}, tokens_BT, mask_BT, type_ids_BT, **options
    )
    return part(config.num_layers - first).apply(  # pyright: ignore[reportReturnType]
        {"params": above}, hidden, mask_BT, method="run_layers", **options
    )
