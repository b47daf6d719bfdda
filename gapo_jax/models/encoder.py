"""The encoder: BERT, RoBERTa, Longformer, ModernBERT and DeBERTa-v3 by configuration.

Parameters (kernels [in, out]; the layers are stacked on a leading L axis; what a family lacks is
not there):

    embed/{word,position,type,relative}/embedding    embed/{norm,relative_norm}/{scale,bias}
    layers/attn/{q,k,v,o}/{kernel,bias}              layers/attn/{q,k,v}_global/{kernel,bias}
    layers/mlp/{gate,up,down}/{kernel,bias}          layers/{attn,mlp}_norm/{scale,bias}
    final_norm/{scale,bias}
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax.models import attention_kernels
from gapo_jax.models import encoder_attention as attention
from gapo_jax.models.attention import padding_bias
from gapo_jax.models.encoder_config import EncoderConfig
from gapo_jax.models.layers import (
    apply_rope,
    dense,
    gelu,
    kernel_init,
    remat,
    rope_tables,
    scan_layers,
)

RopeTables = tuple[jax.Array, jax.Array]


class LayerInputs(NamedTuple):
    """What differs from layer to layer, stacked on L for the scan: how far attention reaches (0 is
    everywhere), int32, and whether it is the very first layer, bool."""

    window: jax.Array
    is_first: jax.Array


class Context(NamedTuple):
    """What all layers share: the mask [B, T] and its bias [B, 1, T]; rotary tables of layers
    without and with a window; DeBERTa's normalised relative embeddings [R, D]."""

    mask_BT: jax.Array
    bias_B1T: jax.Array
    ropes: tuple[RopeTables, RopeTables] | None = None
    relative_RD: jax.Array | None = None


def layer_norm(config: EncoderConfig, name: str | None = None) -> nn.LayerNorm:
    """Layer norm; two-pass variance, since eps 1e-12 forgives no rounding."""
    return nn.LayerNorm(
        epsilon=config.norm_eps,
        use_bias=config.use_bias,
        dtype=config.dtype,
        use_fast_variance=False,
        name=name,
    )


def linear(config: EncoderConfig, features: int, name: str) -> nn.Dense:
    """A linear layer, with bias where the family has them."""
    return dense(features, name, config.dtype, use_bias=config.use_bias)


class EncoderEmbedding(nn.Module):
    """Sum of word, position and segment embeddings, normalised; DeBERTa's relative embeddings."""

    config: EncoderConfig

    def setup(self) -> None:
        """Declare the tables that the family has."""
        cfg = self.config

        def table(size: int) -> nn.Embed:
            return nn.Embed(size, cfg.d_model, dtype=cfg.dtype, embedding_init=kernel_init)

        self.word = table(cfg.vocab_size)
        if cfg.type_vocab_size:
            self.type = table(cfg.type_vocab_size)
        if cfg.positions == "learned":
            self.position = table(cfg.max_positions + cfg.position_offset)
        self.norm = layer_norm(cfg)
        self.dropout = nn.Dropout(cfg.dropout)
        if cfg.positions == "relative":
            self.relative = table(2 * cfg.relative_buckets)
            self.relative_norm = layer_norm(cfg)

    def __call__(self, tokens_BT, mask_BT, type_ids_BT, deterministic):
        """Embed `tokens_BT` (int32); returns [B, T, D]."""
        cfg = self.config
        summed_BTD = self.word(tokens_BT)
        if cfg.type_vocab_size:
            # The data side numbers two segments; RoBERTa has one.
            summed_BTD += self.type(jnp.minimum(type_ids_BT, cfg.type_vocab_size - 1))
        if cfg.positions == "learned":
            places_BT = jnp.arange(tokens_BT.shape[1])[None]
            if cfg.position_offset:
                # The row before the offset is that of padding.
                places_BT = jnp.cumsum(mask_BT, axis=1) * mask_BT + cfg.position_offset - 1
            summed_BTD += self.position(places_BT)
        return self.dropout(self.norm(summed_BTD), deterministic)

    def relative_table(self) -> jax.Array:
        """The relative embeddings [R, D], normalised."""
        return self.relative_norm(self.relative.embedding)


class SelfAttention(nn.Module):
    """Bidirectional self-attention of one layer, in the family's kind."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BTD, context: Context, deterministic, inputs: LayerInputs):
        """Mix the tokens of `x_BTD`; returns [B, T, D]."""
        cfg = self.config
        active = cfg.dropout > 0 and not deterministic
        drop = attention.make_drop(cfg.dropout, self.make_rng("dropout") if active else None)
        project = {name: linear(cfg, cfg.d_model, name) for name in "qkv"}
        q, k, v = (self._heads(project[name](x_BTD)) for name in "qkv")
        if context.ropes is not None:
            everywhere, near = context.ropes
            cos, sin = (jnp.where(inputs.window > 0, b, a) for a, b in zip(everywhere, near))
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if context.relative_RD is not None:
            relative_RD = nn.Dropout(cfg.dropout)(context.relative_RD, deterministic)
            relative_q, relative_k = (self._heads(project[name](relative_RD)) for name in "qk")
            out_BTNH = attention.disentangled_attention(
                q, k, v, relative_q, relative_k, context.bias_B1T, cfg.max_positions, drop
            )
        elif cfg.global_first:
            first_BT = attention.first_tokens(context.mask_BT)
            out_BTNH = self._by_content(q, k, v, context, inputs, drop, active, first_BT)
            first_B1NH = self._global_row(x_BTD, first_BT, context, drop)
            out_BTNH = jnp.where(first_BT[..., None, None], first_B1NH, out_BTNH)
        else:
            out_BTNH = self._by_content(q, k, v, context, inputs, drop, active)
        return linear(cfg, cfg.d_model, "o")(out_BTNH.reshape(x_BTD.shape))

    def _by_content(
        self,
        q_BTNH,
        k_BTNH,
        v_BTNH,
        context: Context,
        inputs: LayerInputs,
        drop,
        active,
        first_BT=None,
    ) -> jax.Array:
        """Attention of all tokens by content, in this layer's window: [B, T, N, H]."""
        cfg, mask_BT = self.config, context.mask_BT
        kernel = attention_kernels.choose(
            cfg.attention,
            dtype=cfg.dtype,
            head_dim=cfg.head_dim,
            two_sided_windows=bool(cfg.windows),
            plain_only="no dropout of attention weights" if active else "",
        )
        if kernel != "xla":
            kinds = sorted(set(cfg.windows)) or [0]
            return attention_kernels.bidirectional_attention(
                kernel,
                q_BTNH,
                k_BTNH,
                v_BTNH,
                mask_BT,
                windows=kinds,
                index=jnp.searchsorted(jnp.array(kinds), inputs.window),
                see_first=first_BT is not None,
            )
        if cfg.windows:
            return attention.windowed_attention(
                q_BTNH, k_BTNH, v_BTNH, mask_BT, inputs.window, cfg.windows, drop, first_BT
            )
        return attention.biased_attention(q_BTNH, k_BTNH, v_BTNH, context.bias_B1T, drop)

    def _heads(self, x_BTD: jax.Array) -> jax.Array:
        """Split the last axis into heads: [..., N, H]."""
        return x_BTD.reshape(*x_BTD.shape[:-1], self.config.num_heads, self.config.head_dim)

    def _global_row(self, x_BTD, first_BT, context: Context, drop: attention.Drop) -> jax.Array:
        """What the first token sees of the whole text, by its own projections: [B, 1, N, H]."""
        cfg = self.config
        q_B1NH = self._heads(
            linear(cfg, cfg.d_model, "q_global")(attention.take_first(x_BTD, first_BT))
        )
        k_BTNH, v_BTNH = (
            self._heads(linear(cfg, cfg.d_model, name)(x_BTD)) for name in ("k_global", "v_global")
        )
        return attention.biased_attention(
            q_B1NH, k_BTNH, v_BTNH, context.bias_B1T, lambda weights, _: drop(weights, 1)
        )


class MLP(nn.Module):
    """Feed-forward with the exact (erf) gelu, gated or not."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Map `x_BTD` to the same shape."""
        cfg = self.config
        up_BTF = linear(cfg, cfg.d_ff, "up")(x_BTD)
        if cfg.gated:
            gate_BTF = linear(cfg, cfg.d_ff, "gate")(x_BTD)
            up_BTF = gelu(gate_BTF) * up_BTF
        else:
            up_BTF = gelu(up_BTF)
        return linear(cfg, cfg.d_model, "down")(up_BTF)


class EncoderLayer(nn.Module):
    """One layer: norm(x + sublayer(x)) for attention and feed-forward, or x + sublayer(norm(x))."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_BTD, context: Context, deterministic, inputs: LayerInputs):
        """Returns (x_BTD, None): the carry of the scan over layers and no output."""
        cfg = self.config
        attn, mlp = SelfAttention(cfg, name="attn"), MLP(cfg, name="mlp")
        attn_norm, mlp_norm = layer_norm(cfg, "attn_norm"), layer_norm(cfg, "mlp_norm")

        def drop(out_BTD: jax.Array) -> jax.Array:
            return nn.Dropout(cfg.dropout)(out_BTD, deterministic)

        if cfg.pre_norm:
            # The embeddings are normalised already; the scale of the first layer has no use.
            normed_BTD = jnp.where(inputs.is_first, x_BTD, attn_norm(x_BTD))
            x_BTD = x_BTD + drop(attn(normed_BTD, context, deterministic, inputs))
            return x_BTD + drop(mlp(mlp_norm(x_BTD))), None
        x_BTD = attn_norm(x_BTD + drop(attn(x_BTD, context, deterministic, inputs)))
        return mlp_norm(x_BTD + drop(mlp(x_BTD))), None


class Encoder(nn.Module):
    """A bidirectional text encoder. Call it through `encoder.apply({"params": params}, ...)`.

    `span` takes the layers from `span[0]` up to `span[1]` alone, for `encode_above`; the norm
    behind the last layer belongs to that layer.
    """

    config: EncoderConfig
    span: tuple[int, int] | None = None

    def setup(self) -> None:
        """Declare the embeddings and the scanned layers."""
        cfg = self.config
        self.first, self.stop = self.span or (0, cfg.num_layers)
        count = self.stop - self.first
        self.embed = EncoderEmbedding(cfg)
        layer = remat(EncoderLayer, cfg.remat, static_argnums=(3,))
        unroll = min(cfg.scan_unroll, count)
        self.layers = scan_layers(layer, count, 2, unroll, num_scanned=1)(cfg)
        if cfg.pre_norm and self.stop == cfg.num_layers:
            self.final_norm = layer_norm(cfg)

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
        hidden_BTD = self.embed(tokens_BT, mask_BT, type_ids_BT, deterministic)
        return self.run_layers(hidden_BTD, mask_BT, deterministic)

    def run_layers(
        self, hidden_BTD: jax.Array, mask_BT: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Apply the layers alone to `hidden_BTD` [B, T, D], for a slice of a deeper stack."""
        cfg = self.config
        windows = cfg.windows or (0,) * cfg.num_layers
        inputs = LayerInputs(
            window=jnp.array(windows[self.first : self.stop], jnp.int32),
            is_first=jnp.arange(self.first, self.stop) == 0,
        )
        ropes = relative_RD = None
        if cfg.positions == "rope":
            places_1T = jnp.arange(hidden_BTD.shape[1])[None]
            everywhere, near = (rope_tables(places_1T, cfg.head_dim, x) for x in cfg.rope_thetas)
            ropes = everywhere, near
        if cfg.positions == "relative":
            relative_RD = self.embed.relative_table()
        context = Context(mask_BT, padding_bias(mask_BT), ropes, relative_RD)
        hidden_BTD, _ = self.layers(hidden_BTD, context, deterministic, inputs)
        if cfg.pre_norm and self.stop == cfg.num_layers:
            hidden_BTD = self.final_norm(hidden_BTD)
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
    embed = jax.lax.stop_gradient(params["embed"])
    low = jax.lax.stop_gradient(jax.tree.map(lambda x: x[:first], layers))
    high = jax.tree.map(lambda x: x[first:], layers)
    hidden: Any = Encoder(config, (0, first)).apply(
        {"params": {"embed": embed, "layers": low}}, tokens_BT, mask_BT, type_ids_BT, **options
    )
    return Encoder(config, (first, config.num_layers)).apply(  # pyright: ignore[reportReturnType]
        {"params": {**params, "embed": embed, "layers": high}},
        hidden,
        mask_BT,
        method="run_layers",
        **options,
    )
