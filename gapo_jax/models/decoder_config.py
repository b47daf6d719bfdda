"""The shape of a decoder: one dataclass whose fields span every supported family."""

from __future__ import annotations

import dataclasses
from typing import Literal

from gapo_jax.models.attention_kernels import AttentionChoice
from gapo_jax.models.layers import Activation, NormKind, RematPolicy, check_choices


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder. The defaults of the choices are Llama's.

    Attributes:
        dtype: of the computation; parameters and logits stay float32.
        remat: what the backward pass recomputes (see `layers.remat`).
        scan_unroll: number of layers in one iteration of the scan over layers.
        attention: the kernel (see `attention_kernels.choose`).
        family: the Hugging Face `model_type` that the network is written as.
        positions: rotary, or a learned table.
        rope_scaling: see `layers.rope_divisors`.
        rope_local_theta: base of the rotary angles in layers with a window; None for `rope_theta`.
        windows: for each layer the number of last tokens that its attention sees, 0 for all;
            () where all layers see all tokens.
        norm_placement: before each sublayer, after it (on its output, before the sum), or both.
        qk_norm: of queries and keys, over each head or over the whole projection.
        attn_bias: on no projection, on query, key and value, or on the output projection too.
        gated: whether the feed-forward is down(act(gate(x)) * up(x)), or down(act(up(x))).
        query_scalar: scores are multiplied by query_scalar ** -0.5; None stands for `head_dim`.
        attn_softcap: bound of the attention scores, 0 for none.
        final_softcap: bound of the logits, 0 for none.
        scale_embeddings: whether embeddings are multiplied by the square root of `d_model`.
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
    remat: RematPolicy = "none"
    scan_unroll: int = 1
    attention: AttentionChoice = "auto"
    family: str = "llama"
    positions: Literal["rope", "learned"] = "rope"
    rope_scaling: tuple[float, ...] = ()
    rope_local_theta: float | None = None
    windows: tuple[int, ...] = ()
    norm: NormKind = "rms"
    norm_placement: Literal["pre", "post", "both"] = "pre"
    qk_norm: Literal["none", "head", "all"] = "none"
    attn_bias: Literal["none", "qkv", "all"] = "none"
    mlp_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True
    query_scalar: float | None = None
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    scale_embeddings: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on shapes and choices that cannot be built."""
        check_choices(self)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads must divide num_heads, got {self.num_kv_heads} and {self.num_heads}"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}")
        if len(self.rope_scaling) not in (0, 1, 4):
            raise ValueError(
                "rope_scaling must be (), (factor,) or (factor, low, high, length), got "
                f"{self.rope_scaling}"
            )
        if len(self.windows) not in (0, self.num_layers):
            raise ValueError(
                f"windows must have one entry for each of the {self.num_layers} layers, got "
                f"{len(self.windows)}; take the config of a slice of layers with `part`"
            )
        if len({window for window in self.windows if window}) > 1:
            raise ValueError(f"all windows must have the same width, got {self.windows}")

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Whether each layer has a window."""
        return tuple(window > 0 for window in self.windows) or (False,) * self.num_layers

    @property
    def layer_kinds(self) -> tuple[bool, ...]:
        """The values that occur in `local_layers`, ascending."""
        return tuple(sorted(set(self.local_layers)))

    @property
    def window(self) -> int:
        """The width of the layers that have a window, 0 if none has one."""
        return max(self.windows, default=0)

    @property
    def query_scale(self) -> float:
        """The factor of the attention scores."""
        return (self.query_scalar or self.head_dim) ** -0.5

    def part(self, start: int, stop: int) -> DecoderConfig:
        """Return the config of the layers `start` to `stop` (exclusive) alone."""
        windows = self.windows[start:stop]
        return dataclasses.replace(self, num_layers=stop - start, windows=windows)
