"""RLOO (arXiv 2402.14740) on SmolLM2-135M-Instruct with the data of configs/gapo_quickstart.py.

    python scripts/train.py --config configs/rloo_smollm2.py

The discriminator stays as its warm-up left it and gives the rewards; no critic. Not measured: time,
memory and result are still to be taken.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2_rounds("rloo")
