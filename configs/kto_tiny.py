"""KTO on the sides of the preferential pairs, each with its label.

    python scripts/train.py --config configs/kto_tiny.py

On a 4-layer model of random weights: all code paths, a text not worth reading.

Measured 2026-11-22, one CPU core beside other work: 33 seconds of processor time (1 program
compiled, 8 that earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by
3.5e-2 (policy) of their norm, discriminator by nothing; the loss went from 0.5 in the first round
to 0.496 in the last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny("kto")
