"""Scalar heads, the discriminator (an encoder with a pooled scalar head), and the reward model (a
decoder with a scalar head on its last token)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax.models.decoder import Decoder
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.encoder import Encoder, EncoderConfig
from gapo_jax.models.encoder_attention import first_tokens, take_first
from gapo_jax.models.layers import kernel_init, wide

POOLINGS = ("mean", "cls", "hf")


class ScalarHead(nn.Module):
    """One float32 number per vector: a linear map, or a layer of `hidden_dim` before it.

    That layer is norm(act(linear(x))): `act` "tanh" or "gelu", with a layer norm if it has an
    epsilon, `hidden_bias` for its linear map and norm, `use_bias` for the last map.
    """

    hidden_dim: int | None = None
    use_bias: bool = True
    act: str = "tanh"
    hidden_bias: bool = True
    norm_eps: float | None = None

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """Drop the last axis of `hidden_BTD` [..., D]; the result is float32 [...]."""
        x = hidden_BTD.astype(wide(hidden_BTD.dtype))
        if self.hidden_dim is not None:
            bias, init = self.hidden_bias, nn.initializers.lecun_normal()
            x = nn.Dense(self.hidden_dim, use_bias=bias, kernel_init=init, name="up")(x)
            x = jnp.tanh(x) if self.act == "tanh" else nn.gelu(x, approximate=False)
            if self.norm_eps is not None:
                x = nn.LayerNorm(self.norm_eps, use_bias=bias, name="norm")(x)
        out = nn.Dense(1, use_bias=self.use_bias, kernel_init=kernel_init, name="out")
        return out(x)[..., 0]


def hf_head(config: EncoderConfig) -> ScalarHead:
    """The head in transformers' sequence classifier of the encoder's family."""
    if config.family == "modernbert":
        return ScalarHead(config.d_model, act="gelu", hidden_bias=False, norm_eps=config.norm_eps)
    return ScalarHead(config.d_model, act="gelu" if config.family == "deberta-v2" else "tanh")


class Discriminator(nn.Module):
    """The adversary of the generator: text in, one logit out (positive = obeys its prompt).

    `pooling` "mean" or "cls" has a head of ours, with a tanh layer if there is a `hidden_dim`; "hf"
    is the pooling and the head of transformers' sequence classifier of the encoder's family, as
    which it is exported.
    """

    config: EncoderConfig
    pooling: str = "mean"
    hidden_dim: int | None = None

    def setup(self) -> None:
        """Declare encoder and head; raise ValueError on an unknown pooling."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}")
        if self.pooling == "hf" and self.hidden_dim is not None:
            raise ValueError(
                f"hidden_dim must be None with pooling 'hf', whose head is that of "
                f"{self.config.family}, got {self.hidden_dim}"
            )
        self.encoder = Encoder(self.config)
        own = ScalarHead(self.hidden_dim)
        self.head = hf_head(self.config) if self.pooling == "hf" else own

    @property
    def is_hf(self) -> bool:
        """Whether transformers' sequence classifier of the family computes the same logits."""
        tanh = self.config.family in ("bert", "roberta", "longformer")
        return self.pooling == "hf" or (
            tanh and self.pooling == "cls" and self.hidden_dim == self.config.d_model
        )

    def __call__(
        self,
        tokens_BT: jax.Array,
        mask_BT: jax.Array,
        type_ids_BT: jax.Array | None = None,
        deterministic: bool = True,
        frozen_layers: int = 0,
    ) -> jax.Array:
        """Logits [B] float32; arguments as in `Encoder.__call__`. Padding does not count."""
        hidden_BTD = self.encoder(tokens_BT, mask_BT, type_ids_BT, deterministic, frozen_layers)
        return self.judge(hidden_BTD, mask_BT)

    def embed(self, tokens_BT: jax.Array, mask_BT: jax.Array, type_ids_BT: jax.Array) -> jax.Array:
        """The encoder's input embeddings [B, T, D], without dropout."""
        return self.encoder.embed(tokens_BT, mask_BT, type_ids_BT)

    def score_embedded(self, embedded_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Logits [B] float32 of embedded texts, without dropout."""
        return self.judge(self.encoder.run_layers(embedded_BTD, mask_BT), mask_BT)

    def judge(self, hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Logits [B] float32 of texts that the encoder has read already."""
        pooling = self.config.hf_pooling if self.pooling == "hf" else self.pooling
        return self.head(pool(hidden_BTD, mask_BT, pooling))


class RewardModel(nn.Module):
    """A decoder that judges text, the reward model of the paper's PPO baseline: one logit out of
    the last real token, as transformers' `...ForSequenceClassification` with one label.

    Called like a `Discriminator`. Parameters: {"decoder": without lm_head, "head": {"out": ...}}.
    """

    config: DecoderConfig

    def setup(self) -> None:
        """Declare decoder and head; transformers' `score` has no bias."""
        self.decoder = Decoder(self.config)
        self.head = ScalarHead(use_bias=False)

    def __call__(
        self,
        tokens_BT: jax.Array,
        mask_BT: jax.Array,
        type_ids_BT: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits [B] float32 of `tokens_BT` (int32); `mask_BT` int32, 1 = real token, padding on
        either side. Decoders have no segments and no dropout: the rest is not used."""
        del type_ids_BT, deterministic
        return self.judge(self.decoder.hidden(tokens_BT, mask_BT), mask_BT)

    def judge(self, hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Logits [B] float32 of texts that the decoder has read already."""
        last_B = mask_BT.shape[1] - 1 - jnp.argmax(mask_BT[:, ::-1] > 0, axis=1)
        return self.head(jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0])


def pool(hidden_BTD: jax.Array, mask_BT: jax.Array, pooling: str) -> jax.Array:
    """One float32 vector [B, D] per text: the mean over real tokens, or the first real token."""
    hidden_BTD = hidden_BTD.astype(wide(hidden_BTD.dtype))
    if pooling == "cls":
        return take_first(hidden_BTD, first_tokens(mask_BT))[:, 0]
    weights_BT = mask_BT.astype(hidden_BTD.dtype)
    total_B1 = jnp.maximum(weights_BT.sum(axis=1, keepdims=True), 1.0)
    return jnp.einsum("btd,bt->bd", hidden_BTD, weights_BT) / total_B1
