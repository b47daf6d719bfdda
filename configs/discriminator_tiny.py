"""The discriminator alone, on preferential prompts: the reward model of GAPO and PPO.

    python scripts/train.py --config configs/discriminator_tiny.py

On a 4-layer model of random weights: all code paths, a text not worth reading.

Measured 2026-11-22, one CPU core beside other work: 30 seconds of processor time (2 programs
compiled, 27 that earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by
3.6e-3 (discriminator) of their norm, policy by nothing; the share of held-out pairs in order stayed
at .44 in its 12 updates.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny("discriminator")
