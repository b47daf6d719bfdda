"""The discriminator alone, on preferential prompts: the reward model of GAPO and PPO.

    python scripts/train.py --config configs/discriminator_smollm2.py

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.
The settings are not tuned; time, memory and result have not been measured yet.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = smollm2("discriminator")
    config.offline.steps_per_round = 25  # 100 updates: an epoch of the pairs, as the warm-up
    return config
