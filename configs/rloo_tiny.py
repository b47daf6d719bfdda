"""RLOO (arXiv 2402.14740) on a 4-layer model of random weights, rewards from the discriminator.

    python scripts/train.py --config configs/rloo_tiny.py

All code paths, text not worth reading. Time and memory are still to be measured.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny_rounds("rloo")
