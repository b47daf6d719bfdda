"""Supervised fine-tuning on the responses that satisfy their prompts.

    python scripts/train.py --config configs/sft_tiny.py

On a 4-layer model of random weights: all code paths, a text not worth reading.

Measured 2026-11-22, one CPU core beside other work: 23 seconds of processor time (1 program
compiled, 8 that earlier tiny runs had left on disk), 1.3 GB at the peak. The weights moved by
3.7e-2 (policy) of their norm, discriminator by nothing; the loss went from 4.56 in the first round
to 4.52 in the last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny("sft")
