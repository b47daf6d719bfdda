"""RPO (arXiv 2502.00203) online on SmolLM2-135M-Instruct, rewards from the discriminator.

    python scripts/train.py --config configs/rpo_online_smollm2.py
    python scripts/train.py --config configs/rpo_online_smollm2.py --config.rpo.distance=sqloo

Of the 8 samples of a prompt the two best and the two worst are compared, by backward KL. The data
are those of configs/gapo_quickstart.py. Not measured: time, memory and result are still to be
taken.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2_rounds("rpo_online")
