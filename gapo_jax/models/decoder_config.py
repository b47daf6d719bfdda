"""What a decoder is made of: one set of choices that covers every supported family."""

from __future__ import annotations

import dataclasses

from gapo_jax.models.attention_kernels import ATTENTIONS
from gapo_jax.models.layers import ACTIVATIONS, NORMS, REMAT_POLICIES

# What each choice may be. The first is Llama's, and the default.
CHOICES: dict[str, tuple[str, ...]] = {
    "positions": ("rope", "learned"),
    "norm": NORMS,
    "norm_placement": ("pre", "post", "both"),
    "qk_norm": ("none", "head", "all"),
    "attn_bias": ("none", "qkv", "all"),
    "activation": tuple(ACTIVATIONS),
    "remat": REMAT_POLICIES,
    "attention": ATTENTIONS,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder.

    `dtype` is the dtype of the computation (parameters and logits stay float32). `remat` says
    what the backward pass recomputes (see `layers.remat`); `scan_unroll` is the number of layers
    that the scan over layers puts into one iteration. `attention` picks the kernel
    (`attention_kernels.choose`). `family` is the Hugging Face `model_type` that the network is
    written as.

    What sets the families apart (see `CHOICES`):

    - `rope_scaling` as in `layers.rope_divisors`; `positions="learned"` adds a table instead.
    - `windows`: for each layer the number of last tokens that its attention sees, 0 for all; ()
      when all layers see all. Layers with a window turn by `rope_local_theta` if it is not None.
    - `norm_placement`: before each sublayer, after it (on its output, before the sum), or both.
    - `qk_norm`: of queries and keys, over each head or over the whole projection.
    - `attn_bias`: on none, on query, key and value, or on the output projection too.
    - `gated`: down(act(gate(x)) * up(x)); otherwise down(act(up(x))).
    - `query_scalar`: scores are multiplied by its ** -0.5; None stands for `head_dim`.
    - `attn_softcap`, `final_softcap`: bounds of scores and of logits, 0 for none.
    - `scale_embeddings`: multiply embeddings by the square root of `d_model`.
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
    remat: str = "none"
    scan_unroll: int = 1
    attention: str = "auto"
    family: str = "llama"
    positions: str = "rope"
    rope_scaling: tuple[float, ...] = ()
    rope_local_theta: float | None = None
    windows: tuple[int, ...] = ()
    norm: str = "rms"
    norm_placement: str = "pre"
    qk_norm: str = "none"
    attn_bias: str = "none"
    mlp_bias: bool = False
    activation: str = "silu"
    gated: bool = True
    query_scalar: float | None = None
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    scale_embeddings: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on shapes and choices that cannot be built."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
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
    def window(self) -> int:
        """The width of the layers that have a window, 0 if none has one."""
        return max(self.windows, default=0)

    @property
    def query_scale(self) -> float:
        """What attention scores are multiplied by."""
        return (self.query_scalar or self.head_dim) ** -0.5

    def part(self, start: int, stop: int) -> DecoderConfig:
        """Return the config of the layers `start` to `stop` (exclusive) alone."""
        windows = self.windows[start:stop]
        return dataclasses.replace(self, num_layers=stop - start, windows=windows)
