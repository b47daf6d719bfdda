"""The shape of an encoder: one dataclass whose fields span BERT, RoBERTa, Longformer, ModernBERT
and DeBERTa-v3. `hf/encoder_configs.py` translates each family's `config.json` to it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from gapo_jax.models.attention_kernels import AttentionChoice
from gapo_jax.models.layers import RematPolicy, check_choices


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and numerics of an encoder. The defaults are BERT's.

    Attributes that are not listed here are as in `DecoderConfig`.

    Attributes:
        max_positions: longest text in tokens; with relative positions also the distance that falls
            into the last bucket.
        type_vocab_size: number of segments; 0 has no segment embedding, 1 the same one for all.
        dropout: rate, on embeddings, attention weights and the output of each sublayer, as in BERT.
        positions: a learned table, rotary, or DeBERTa's disentangled attention with
            `relative_buckets` of log-spaced distances to each side.
        position_offset: 0 counts columns; above 0 real tokens are counted from it (RoBERTa: 2).
        windows: for each layer how many tokens to each side its attention reaches, 0 for all;
            () where all layers reach all tokens.
        global_first: whether the first token sees all tokens and all see it, by projections of its
            own (Longformer).
        rope_thetas: base of the rotary angles in layers without and with a window.
        pre_norm: whether norms are before the sublayers and after the last layer (ModernBERT). The
            first layer then has none before its attention.
        use_bias: whether linear layers and norms have biases.
        gated: whether the feed-forward is gelu(gate) * up, or gelu(up).
        hf_pooling: what the family's classifier reads, the first token or the mean.
        pooler: whether the parameters hold BERT's pooler. Nothing computes it; it is there to be
            written again.
    """

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
    remat: RematPolicy = "none"
    scan_unroll: int = 1
    attention: AttentionChoice = "auto"
    family: str = "bert"
    positions: Literal["learned", "rope", "relative"] = "learned"
    position_offset: int = 0
    relative_buckets: int = 0
    windows: tuple[int, ...] = ()
    global_first: bool = False
    rope_thetas: tuple[float, float] = (10000.0, 10000.0)
    pre_norm: bool = False
    use_bias: bool = True
    gated: bool = False
    hf_pooling: Literal["cls", "mean"] = "cls"
    pooler: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on shapes and choices that cannot be built."""
        check_choices(self)
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model, got {self.num_heads} and {self.d_model}"
            )
        if self.attention in ("cudnn", "splash") and (self.dropout or self.positions == "relative"):
            raise ValueError(
                f"attention={self.attention!r} has no dropout of attention weights and no relative "
                f"positions, got dropout {self.dropout} and positions {self.positions!r}; set it "
                "to 'auto', which takes the plain version for them"
            )
        if (self.positions == "relative") != (self.relative_buckets > 0):
            raise ValueError(
                "relative_buckets must be above 0 with relative positions and 0 without, got "
                f"{self.relative_buckets} with {self.positions!r}"
            )
        if self.windows and (len(self.windows) != self.num_layers or min(self.windows) < 0):
            raise ValueError(
                f"windows must be one number of at least 0 for each of the {self.num_layers} "
                f"layers, got {self.windows}"
            )
        if self.positions == "relative" and self.windows:
            raise ValueError("windows do not go with relative positions: leave one of them out")
        if self.global_first and (not self.windows or min(self.windows) == 0):
            raise ValueError(f"global_first needs a window in every layer, got {self.windows}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads
