"""PPO against the discriminator as its warm-up left it, the baseline of the paper.

    python scripts/train.py --config configs/ppo_tiny.py

GAPO without the adversary: the same program with `discriminator.updates_per_round=0`, step for
step (tests/train/test_online_methods.py). On a 4-layer model of random weights: all code paths, a
text not worth reading.

Measured 2026-11-22, one CPU core beside other work: 24 seconds of processor time (0 programs
compiled, 85 that earlier tiny runs had left on disk), 1.3 GB at the peak. The weights moved by
4.2e-2 (policy), 4.2e-3 (discriminator) and 4.5e-2 (critic) of their norm; held-out topics changed
by +13.6 [+3.9, +26.3] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny_rounds("ppo")
