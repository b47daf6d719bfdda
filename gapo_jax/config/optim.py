"""The section of an optimiser, of which the policy, the critic and the discriminator have one."""

from typing import Annotated, Literal

from gapo_jax.section import AtLeast0, NotNegative, Positive, Range, Section, Share

Momentum = Annotated[float, Range(0, 1 - 1e-9)]


class OptimConfig(Section):
    """Optimiser: warm-up, then constant, linear or cosine decay to `final_fraction` of the peak.

    `optimizer` is `adamw`, or `adafactor` (arXiv 1804.04235): factored second moments and no first
    ones, so its state is a small part of the parameters' size; `b1`, `b2` and `eps` are AdamW's.
    Weight decay is decoupled in both and scaled by the learning rate.
    """

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: NotNegative = 1e-5
    warmup_steps: AtLeast0 = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_fraction: Share = 0.1
    b1: Momentum = 0.9
    b2: Momentum = 0.95
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    clip_norm: Positive = 1.0
