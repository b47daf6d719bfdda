"""The shape of an encoder: one dataclass whose fields span BERT, RoBERTa, Longformer, ModernBERT
and DeBERTa-v3. `hf/encoder_configs.py` translates each family's `config.json` to it."""

from __future__ import annotations

import dataclasses

from gapo_jax.models.attention_kernels import ATTENTIONS
from gapo_jax.models.layers import REMAT_POLICIES

POSITIONS = ("learned", "rope", "relative")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and numerics of an encoder; the defaults are BERT's.

    Attributes:
      max_positions: longest text in tokens; with relative positions also the distance that falls
        into the last bucket.
      type_vocab_size: number of segments; 0 has no segment embedding, 1 the same one for all.
      dropout: acts on embeddings, attention weights and the output of each sublayer, as in BERT.
      family: the model type of Hugging Face under which the network is written.
      positions: "learned" (a table), "rope" (rotary), "relative" (DeBERTa's disentangled
        attention with `relative_buckets` on each side of log-spaced distances).
      position_offset: 0 counts columns; above 0 real tokens are counted from it (RoBERTa: 2).
      windows: for every layer how many tokens to each side attention reaches, 0 for all of
        them; empty for all of them in every layer.
      global_first: the first token sees all tokens and is seen by all, with projections of its own
        (Longformer).
      rope_thetas: base of the rotary angles in layers without and with a window.
      pre_norm: norms stand before the sublayers and behind the last layer; the first layer has none
        before its attention (ModernBERT).
      use_bias: whether linear layers and norms have biases.
      gated: whether the feed-forward is gelu(gate) * up, or gelu(up).
      hf_pooling: what the family's classifier reads, the first token ("cls") or the "mean".
    The remaining fields are those of `DecoderConfig`.
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
    remat: str = "none"
    scan_unroll: int = 1
    attention: str = "auto"
    family: str = "bert"
    positions: str = "learned"
    position_offset: int = 0
    relative_buckets: int = 0
    windows: tuple[int, ...] = ()
    global_first: bool = False
    rope_thetas: tuple[float, float] = (10000.0, 10000.0)
    pre_norm: bool = False
    use_bias: bool = True
    gated: bool = False
    hf_pooling: str = "cls"

    def __post_init__(self) -> None:
        """Raise ValueError on shapes that cannot be built."""
        if self.d_model % self.num_heads:
            raise ValueError(
                f"num_heads must divide d_model, got {self.num_heads} and {self.d_model}"
            )
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat must be one of {REMAT_POLICIES}, got {self.remat!r}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {ATTENTIONS}, got {self.attention!r}")
        if self.attention in ATTENTIONS[2:] and (self.dropout or self.positions == "relative"):
            raise ValueError(
                f"attention={self.attention!r} has no dropout of attention weights and no relative "
                f"positions, got dropout {self.dropout} and positions {self.positions!r}; set it "
                "to 'auto', which takes the plain version for them"
            )
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {POSITIONS}, got {self.positions!r}")
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
