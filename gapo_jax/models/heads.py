"""Networks that score text: the discriminator (an encoder with a pooled scalar head), the reward
model (a decoder with a scalar head on its last token), and the heads themselves."""

from __future__ import annotations

import dataclasses
from typing import Literal

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
    """One float32 number per vector: a linear map, with or without a hidden layer before it.

    Attributes:
        hidden_dim: width of the hidden layer norm(act(linear(x))); None for no such layer.
        use_bias: whether the last map has a bias.
        act: activation of the hidden layer.
        hidden_bias: whether its linear map and its norm have a bias.
        norm_eps: epsilon of its layer norm; None for no norm.
    """

    hidden_dim: int | None = None
    use_bias: bool = True
    act: Literal["tanh", "gelu"] = "tanh"
    hidden_bias: bool = True
    norm_eps: float | None = None

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """Map `hidden_BTD` [..., D] to float32 [...]."""
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
    """Return the head of transformers' sequence classifier of the encoder's family."""
    if config.family == "modernbert":
        return ScalarHead(config.d_model, act="gelu", hidden_bias=False, norm_eps=config.norm_eps)
    return ScalarHead(config.d_model, act="gelu" if config.family == "deberta-v2" else "tanh")


class Discriminator(nn.Module):
    """The reward model that is trained online: text in, one logit out.

    A positive logit says that the response obeys its prompt.

    Attributes:
        config: the encoder's.
        pooling: "mean" and "cls" go with a head of our own. "hf" is the pooling and the head of
            transformers' sequence classifier of the encoder's family, as which it is exported.
        hidden_dim: width of a tanh layer in our own head; None for a linear map alone.
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
        # Only a bare encoder carries a pooler along.
        self.encoder = Encoder(dataclasses.replace(self.config, pooler=False))
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
        """Return logits [B] float32; arguments as in `Encoder.__call__`. Padding is ignored."""
        hidden_BTD = self.encoder(tokens_BT, mask_BT, type_ids_BT, deterministic, frozen_layers)
        return self.score_hidden(hidden_BTD, mask_BT)

    def embed(self, tokens_BT: jax.Array, mask_BT: jax.Array, type_ids_BT: jax.Array) -> jax.Array:
        """Return the encoder's input embeddings [B, T, D], without dropout."""
        return self.encoder.embed(tokens_BT, mask_BT, type_ids_BT)

    def score_embedded(self, embedded_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Return logits [B] float32 of embedded texts, without dropout."""
        return self.score_hidden(self.encoder.run_layers(embedded_BTD, mask_BT), mask_BT)

    def score_hidden(self, hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Return logits [B] float32 of the encoder's hidden states."""
        pooling = self.config.hf_pooling if self.pooling == "hf" else self.pooling
        return self.head(pool(hidden_BTD, mask_BT, pooling))


class RewardModel(nn.Module):
    """A decoder that scores text, as in the paper's PPO baseline: one logit from the last token.

    It is transformers' `...ForSequenceClassification` with one label, and is called like a
    `Discriminator`. Parameters: {"decoder": without lm_head, "head": {"out": ...}}.
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
        """Return logits [B] float32 of `tokens_BT` (int32).

        `mask_BT` int32, 1 = real token; padding may be on either side. Decoders have neither
        segments nor dropout, so the other arguments are ignored.
        """
        del type_ids_BT, deterministic
        return self.score_hidden(self.decoder.hidden(tokens_BT, mask_BT), mask_BT)

    def score_hidden(self, hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Return logits [B] float32 of the decoder's hidden states."""
        last_B = mask_BT.shape[1] - 1 - jnp.argmax(mask_BT[:, ::-1] > 0, axis=1)
        return self.head(jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0])


def pool(hidden_BTD: jax.Array, mask_BT: jax.Array, pooling: str) -> jax.Array:
    """Return one float32 vector [B, D] per text: the mean of the real tokens, or the first one."""
    hidden_BTD = hidden_BTD.astype(wide(hidden_BTD.dtype))
    if pooling == "cls":
        return take_first(hidden_BTD, first_tokens(mask_BT))[:, 0]
    weights_BT = mask_BT.astype(hidden_BTD.dtype)
    total_B1 = jnp.maximum(weights_BT.sum(axis=1, keepdims=True), 1.0)
    return jnp.einsum("btd,bt->bd", hidden_BTD, weights_BT) / total_B1
