"""The discriminator alone, on preferential prompts: the reward model of GAPO and PPO.

    python scripts/train.py --config configs/discriminator_smollm2.py

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 4 minutes of processor time, 3.8 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
It orders 81% of the held-out pairs after 25 updates and 84% after 100, and judges 82% of their
sides right (60% after 25); the generator stays as it was. Not tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = smollm2("discriminator")
    config.offline.steps_per_round = 25  # 100 updates: an epoch of the pairs, as the warm-up
    return config
