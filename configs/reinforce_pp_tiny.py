"""REINFORCE++ (arXiv 2501.03262) on a 4-layer model of random weights, rewards from both judges.

    python scripts/train.py --config configs/reinforce_pp_tiny.py

The reward is half the discriminator's probability, half the share of the constraints that hold.
All code paths, text not worth reading. Time and memory are still to be measured.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = tiny_rounds("reinforce_pp")
    config.reward.source, config.reward.squash = "mix", "sigmoid"
    return config
