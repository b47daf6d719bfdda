"""Scalar heads, the discriminator (an encoder with a pooled scalar head), and the reward model (a
decoder with a scalar head on its last token)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax.models.decoder import Decoder
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.encoder import Encoder, EncoderConfig
from gapo_jax.models.layers import kernel_init

POOLINGS = ("mean", "cls")


class ScalarHead(nn.Module):
    """One float32 number per vector: a linear map, or a tanh layer of `hidden_dim` before it."""

    hidden_dim: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """Drop the last axis of `hidden_BTD` [..., D]; the result is float32 [...]."""
        x = hidden_BTD.astype(jnp.float32)
        if self.hidden_dim is not None:
            x = nn.Dense(self.hidden_dim, kernel_init=nn.initializers.lecun_normal(), name="up")(x)
            x = jnp.tanh(x)
        out = nn.Dense(1, use_bias=self.use_bias, kernel_init=kernel_init, name="out")
        return out(x)[..., 0]


class Discriminator(nn.Module):
    """The adversary of the generator: text in, one logit out (positive = obeys its prompt)."""

    config: EncoderConfig
    pooling: str = "mean"
    hidden_dim: int | None = None

    def setup(self) -> None:
        """Declare encoder and head; raise ValueError on an unknown pooling."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}")
        self.encoder = Encoder(self.config)
        self.head = ScalarHead(self.hidden_dim)

    def __call__(
        self,
        tokens_BT: jax.Array,
        mask_BT: jax.Array,
        type_ids_BT: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits [B] float32; arguments as in `Encoder.__call__`. Padding does not count."""
        hidden_BTD = self.encoder(tokens_BT, mask_BT, type_ids_BT, deterministic)
        return self.judge(hidden_BTD, mask_BT)

    def judge(self, hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Logits [B] float32 of texts that the encoder has read already."""
        return self.head(pool(hidden_BTD, mask_BT, self.pooling))


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
    """One float32 vector [B, D] per text: the mean over real tokens, or the first token."""
    hidden_BTD = hidden_BTD.astype(jnp.float32)
    if pooling == "cls":
        return hidden_BTD[:, 0]
    weights_BT = mask_BT.astype(jnp.float32)
    total_B1 = jnp.maximum(weights_BT.sum(axis=1, keepdims=True), 1.0)
    return jnp.einsum("btd,bt->bd", hidden_BTD, weights_BT) / total_B1
