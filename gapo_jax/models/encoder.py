"""The encoder: BERT, RoBERTa, Longformer, ModernBERT and DeBERTa-v3 by configuration.

Parameters (kernels [in, out]; layers stacked on a leading L axis; a family has only some of them):

    embed/{word,position,type,relative}/embedding    embed/{norm,relative_norm}/{scale,bias}
    layers/attn/{q,k,v,o}/{kernel,bias}              layers/attn/{q,k,v}_global/{kernel,bias}
    layers/mlp/{gate,up,down}/{kernel,bias}          layers/{attn,mlp}_norm/{scale,bias}
    final_norm/{scale,bias}                          pooler/{kernel,bias}
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax import rng
from gapo_jax.models import attention_kernels
from gapo_jax.models import encoder_attention as attention
from gapo_jax.models.attention import padding_bias
from gapo_jax.models.encoder_config import EncoderConfig
from gapo_jax.models.layers import (
    RopeTables,
    apply_rope,
    dense,
    gelu,
    kernel_init,
    remat,
    rope_tables,
    scan_layers,
)
from gapo_jax.rng import Stream


class SharedInputs(NamedTuple):
    """What all layers share.

    The mask [B, T] and its additive bias [B, 1, T]; with rotary positions the tables of layers
    without and with a window; in DeBERTa the normalised relative embeddings [R, D].
    """

    mask_BT: jax.Array
    bias_B1T: jax.Array
    ropes: tuple[RopeTables, RopeTables] | None = None
    relative_RD: jax.Array | None = None


class LayerInputs(NamedTuple):
    """What differs from layer to layer, stacked on L for the scan.

    `window` is how far attention reaches to each side (int32, 0 for everywhere), `is_first` marks
    the very first layer (bool), `dropout_key` is the layer's own key, None without dropout.
    """

    window: jax.Array
    is_first: jax.Array
    dropout_key: jax.Array | None


def layer_norm(config: EncoderConfig, name: str | None = None) -> nn.LayerNorm:
    """Return a layer norm with a two-pass variance, as eps 1e-12 leaves no room for rounding."""
    return nn.LayerNorm(
        epsilon=config.norm_eps,
        use_bias=config.use_bias,
        dtype=config.dtype,
        use_fast_variance=False,
        name=name,
    )


def linear(config: EncoderConfig, features: int, name: str) -> nn.Dense:
    """Return a linear layer, with bias where the family has them."""
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
        if cfg.positions == "relative":
            self.relative = table(2 * cfg.relative_buckets)
            self.relative_norm = layer_norm(cfg)

    def __call__(
        self, tokens_BT: jax.Array, mask_BT: jax.Array, type_ids_BT: jax.Array
    ) -> jax.Array:
        """Embed `tokens_BT` (int32); returns [B, T, D], before dropout."""
        cfg = self.config
        summed_BTD = self.word(tokens_BT)
        if cfg.type_vocab_size:
            # The data side numbers two segments; RoBERTa has one.
            summed_BTD += self.type(jnp.minimum(type_ids_BT, cfg.type_vocab_size - 1))
        if cfg.positions == "learned":
            places_BT = jnp.arange(tokens_BT.shape[1])[None]
            if cfg.position_offset:
                # Padding has the row just below the offset.
                places_BT = jnp.cumsum(mask_BT, axis=1) * mask_BT + cfg.position_offset - 1
            summed_BTD += self.position(places_BT)
        return self.norm(summed_BTD)

    def relative_table(self) -> jax.Array:
        """Return the relative embeddings [R, D], normalised."""
        return self.relative_norm(self.relative.embedding)


class SelfAttention(nn.Module):
    """Bidirectional self-attention of one layer, in the family's kind."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, shared: SharedInputs, inputs: LayerInputs, drop: attention.Drop
    ) -> jax.Array:
        """Mix the tokens of `x_BTD`; `drop` acts on attention weights. Returns [B, T, D]."""
        cfg = self.config
        project = {name: linear(cfg, cfg.d_model, name) for name in "qkv"}
        q, k, v = (self._heads(project[name](x_BTD)) for name in "qkv")
        if shared.ropes is not None:
            everywhere, near = shared.ropes
            rope = jax.tree.map(
                lambda full, local: jnp.where(inputs.window > 0, local, full), everywhere, near
            )
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if shared.relative_RD is not None:
            relative_RD = drop(shared.relative_RD, 1)
            relative_q, relative_k = (self._heads(project[name](relative_RD)) for name in "qk")
            out_BTNH = attention.disentangled_attention(
                q, k, v, relative_q, relative_k, shared.bias_B1T, cfg.max_positions, drop
            )
        elif cfg.global_first:
            first_BT = attention.first_tokens(shared.mask_BT)
            out_BTNH = self._by_content(q, k, v, shared, inputs, drop, first_BT)
            first_B1NH = self._global_row(x_BTD, first_BT, shared, drop)
            out_BTNH = jnp.where(first_BT[..., None, None], first_B1NH, out_BTNH)
        else:
            out_BTNH = self._by_content(q, k, v, shared, inputs, drop)
        return linear(cfg, cfg.d_model, "o")(out_BTNH.reshape(x_BTD.shape))

    def _by_content(
        self,
        q_BTNH: jax.Array,
        k_BTNH: jax.Array,
        v_BTNH: jax.Array,
        shared: SharedInputs,
        inputs: LayerInputs,
        drop: attention.Drop,
        first_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Attend from all tokens by content, within this layer's window: [B, T, N, H]."""
        cfg, mask_BT = self.config, shared.mask_BT
        kernel = attention_kernels.choose(
            cfg.attention,
            dtype=cfg.dtype,
            head_dim=cfg.head_dim,
            two_sided_windows=bool(cfg.windows),
            plain_only="" if inputs.dropout_key is None else "no dropout of attention weights",
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
        return attention.biased_attention(q_BTNH, k_BTNH, v_BTNH, shared.bias_B1T, drop)

    def _heads(self, x_BTD: jax.Array) -> jax.Array:
        """Split the last axis into heads: [..., N, H]."""
        return x_BTD.reshape(*x_BTD.shape[:-1], self.config.num_heads, self.config.head_dim)

    def _global_row(
        self, x_BTD: jax.Array, first_BT: jax.Array, shared: SharedInputs, drop: attention.Drop
    ) -> jax.Array:
        """Attend from the first token to the whole text, by its own projections: [B, 1, N, H]."""
        cfg = self.config
        q_B1NH = self._heads(
            linear(cfg, cfg.d_model, "q_global")(attention.take_first(x_BTD, first_BT))
        )
        k_BTNH, v_BTNH = (
            self._heads(linear(cfg, cfg.d_model, name)(x_BTD)) for name in ("k_global", "v_global")
        )
        return attention.biased_attention(
            q_B1NH, k_BTNH, v_BTNH, shared.bias_B1T, lambda weights, _: drop(weights, 1)
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
    def __call__(
        self, x_BTD: jax.Array, shared: SharedInputs, inputs: LayerInputs
    ) -> tuple[jax.Array, None]:
        """Return (x_BTD, None): the carry of the scan over layers and no output."""
        cfg, key = self.config, inputs.dropout_key
        attn, mlp = SelfAttention(cfg, name="attn"), MLP(cfg, name="mlp")
        attn_norm, mlp_norm = layer_norm(cfg, "attn_norm"), layer_norm(cfg, "mlp_norm")
        drop = attention.make_drop(cfg.dropout, key, Stream.DROPOUT_HIDDEN)
        drop_weights = attention.make_drop(cfg.dropout, key, Stream.DROPOUT_WEIGHTS)
        if cfg.pre_norm:
            # The embeddings are normalised already, so the first layer's norm is not used.
            normed_BTD = jnp.where(inputs.is_first, x_BTD, attn_norm(x_BTD))
            x_BTD = x_BTD + drop(attn(normed_BTD, shared, inputs, drop_weights), 0)
            return x_BTD + drop(mlp(mlp_norm(x_BTD)), 1), None
        x_BTD = attn_norm(x_BTD + drop(attn(x_BTD, shared, inputs, drop_weights), 0))
        return mlp_norm(x_BTD + drop(mlp(x_BTD), 1)), None


def layer_stack(config: EncoderConfig, count: int) -> Any:
    """Return `count` scanned layers, to be called as (hidden_BTD, shared, inputs of each layer)."""
    layer = remat(EncoderLayer, config.remat)
    return scan_layers(layer, count, 1, min(config.scan_unroll, count))(config, parent=None)


class Encoder(nn.Module):
    """A bidirectional text encoder. Call it through `encoder.apply({"params": params}, ...)`."""

    config: EncoderConfig

    def setup(self) -> None:
        """Declare the embeddings, the scanned layers and the norm after them."""
        cfg = self.config
        self.embed = EncoderEmbedding(cfg)
        self.layers = layer_stack(cfg, cfg.num_layers)
        if cfg.pre_norm:
            self.final_norm = layer_norm(cfg)
        if cfg.pooler:
            self.pooler = nn.Dense(cfg.d_model, dtype=cfg.dtype)

    def __call__(
        self,
        tokens_BT: jax.Array,
        mask_BT: jax.Array,
        type_ids_BT: jax.Array | None = None,
        deterministic: bool = True,
        frozen_layers: int = 0,
    ) -> jax.Array:
        """Return hidden states [B, T, D], in `config.dtype`.

        Args:
            tokens_BT: int32.
            mask_BT: int32, 1 = real token.
            type_ids_BT: int32 segment ids, 0 where not given.
            deterministic: False turns dropout on; `apply` then needs `rngs={"dropout": key}`.
            frozen_layers: the embeddings and that many of the lowest layers get no gradient, and
                their backward pass is not computed. The result and the dropout masks do not depend
                on it.

        Raises:
            ValueError: a text is longer than `config.max_positions`, or `frozen_layers` is not
                below `config.num_layers`.
        """
        cfg = self.config
        if tokens_BT.shape[1] > cfg.max_positions:
            raise ValueError(
                f"the encoder takes at most {cfg.max_positions} tokens, got "
                f"{tokens_BT.shape[1]}; shorten the texts (max_length of the discriminator)"
            )
        if type_ids_BT is None:
            type_ids_BT = jnp.zeros_like(tokens_BT)
        hidden_BTD = self.embed(tokens_BT, mask_BT, type_ids_BT)
        if cfg.pooler and self.is_initializing():
            self.pooler(hidden_BTD[:, 0])
        if deterministic or not cfg.dropout:
            return self.run_layers(hidden_BTD, mask_BT, frozen_layers=frozen_layers)
        keys = rng.row_keys(
            self.make_rng("dropout"), Stream.DROPOUT_LAYER, count=cfg.num_layers + 1
        )
        drop = attention.make_drop(cfg.dropout, keys[0], Stream.DROPOUT_HIDDEN)
        hidden_BTD = drop(hidden_BTD, 0)
        return self.run_layers(hidden_BTD, mask_BT, keys[1:], frozen_layers)

    def run_layers(
        self,
        hidden_BTD: jax.Array,
        mask_BT: jax.Array,
        dropout_keys_L: jax.Array | None = None,
        frozen_layers: int = 0,
    ) -> jax.Array:
        """Apply the layers alone to `hidden_BTD` [B, T, D]; see `__call__` for `frozen_layers`.

        `dropout_keys_L` holds one key for each layer; None is without dropout.
        """
        cfg = self.config
        if not 0 <= frozen_layers < cfg.num_layers:
            raise ValueError(
                f"frozen_layers must lie in 0..{cfg.num_layers - 1}, got {frozen_layers}"
            )
        inputs = LayerInputs(
            window=jnp.array(cfg.windows or (0,) * cfg.num_layers, jnp.int32),
            is_first=jnp.arange(cfg.num_layers) == 0,
            dropout_key=dropout_keys_L,
        )
        ropes = relative_RD = None
        if cfg.positions == "rope":
            places_1T = jnp.arange(hidden_BTD.shape[1])[None]
            everywhere, near = (rope_tables(places_1T, cfg.head_dim, x) for x in cfg.rope_thetas)
            ropes = everywhere, near
        if cfg.positions == "relative":
            relative_RD = self.embed.relative_table()
        shared = SharedInputs(mask_BT, padding_bias(mask_BT), ropes, relative_RD)
        if frozen_layers:
            hidden_BTD = self._run_in_two(hidden_BTD, shared, inputs, frozen_layers)
        else:
            hidden_BTD, _ = self.layers(hidden_BTD, shared, inputs)
        return self.final_norm(hidden_BTD) if cfg.pre_norm else hidden_BTD

    def _run_in_two(
        self, hidden_BTD: jax.Array, shared: SharedInputs, inputs: LayerInputs, frozen: int
    ) -> jax.Array:
        """Apply the lowest `frozen` layers without gradients, then the layers above them."""
        params = self.variables["params"]["layers"]
        hidden_BTD, shared = jax.lax.stop_gradient((hidden_BTD, shared))
        for part in (slice(None, frozen), slice(frozen, None)):
            weights, rows = jax.tree.map(lambda leaf: leaf[part], (params, inputs))  # noqa: B023
            if part.start is None:
                weights = jax.lax.stop_gradient(weights)
            stack = layer_stack(self.config, len(rows.window))
            hidden_BTD, _ = stack.apply({"params": weights}, hidden_BTD, shared, rows)
        return hidden_BTD
