"""PPO against the discriminator as its warm-up left it, the baseline of the paper.

    python scripts/train.py --config configs/ppo_tiny.py

GAPO without the adversary: the same program with `discriminator.updates_per_round=0`, step for
step (tests/train/test_online_methods.py). On a 4-layer model of random weights: all code paths, a
text not worth reading.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny_rounds("ppo")
