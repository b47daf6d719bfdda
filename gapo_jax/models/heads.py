"""Scalar heads, and the discriminator: an encoder with a pooled scalar head."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from gapo_jax.models.encoder import Encoder, EncoderConfig
from gapo_jax.models.encoder_attention import first_tokens, take_first
from gapo_jax.models.layers import kernel_init

POOLINGS = ("mean", "cls", "hf")


class ScalarHead(nn.Module):
    """One float32 number per vector: a linear map, or a layer of `hidden_dim` before it.

    That layer is norm(act(linear(x))): `act` "tanh" or "gelu", with a layer norm if it has an
    epsilon, `hidden_bias` for linear map and norm.
    """

    hidden_dim: int | None = None
    act: str = "tanh"
    hidden_bias: bool = True
    norm_eps: float | None = None

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """Drop the last axis of `hidden_BTD` [..., D]; the result is float32 [...]."""
        x = hidden_BTD.astype(jnp.float32)
        if self.hidden_dim is not None:
            bias, init = self.hidden_bias, nn.initializers.lecun_normal()
            x = nn.Dense(self.hidden_dim, use_bias=bias, kernel_init=init, name="up")(x)
            x = jnp.tanh(x) if self.act == "tanh" else nn.gelu(x, approximate=False)
            if self.norm_eps is not None:
                x = nn.LayerNorm(self.norm_eps, use_bias=bias, name="norm")(x)
        return nn.Dense(1, kernel_init=kernel_init, name="out")(x)[..., 0]


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
    ) -> jax.Array:
        """Logits [B] float32; arguments as in `Encoder.__call__`. Padding does not count."""
        hidden_BTD = self.encoder(tokens_BT, mask_BT, type_ids_BT, deterministic)
        return self.judge(hidden_BTD, mask_BT)

    def judge(self, hidden_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """Logits [B] float32 of texts that the encoder has read already."""
        pooling = self.config.hf_pooling if self.pooling == "hf" else self.pooling
        return self.head(pool(hidden_BTD, mask_BT, pooling))


def pool(hidden_BTD: jax.Array, mask_BT: jax.Array, pooling: str) -> jax.Array:
    """One float32 vector [B, D] per text: the mean over real tokens, or the first real token."""
    hidden_BTD = hidden_BTD.astype(jnp.float32)
    if pooling == "cls":
        return take_first(hidden_BTD, first_tokens(mask_BT))[:, 0]
    weights_BT = mask_BT.astype(jnp.float32)
    total_B1 = jnp.maximum(weights_BT.sum(axis=1, keepdims=True), 1.0)
    return jnp.einsum("btd,bt->bd", hidden_BTD, weights_BT) / total_B1
