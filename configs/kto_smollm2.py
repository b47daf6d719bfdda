"""KTO on the sides of the preferential pairs, each with its label.

    python scripts/train.py --config configs/kto_smollm2.py

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.
The settings are not tuned; time, memory and result have not been measured yet.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2("kto")
