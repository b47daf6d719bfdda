"""RPO (arXiv 2502.00203) online: 8 own responses a prompt against the discriminator's rewards.

    python scripts/train.py --config configs/rpo_online_tiny.py

A 4-layer model of random weights; backward KL between softmax(beta log(pi / ref)) and
softmax(eta r). All code paths, text not worth reading. Time and memory are still to be measured.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny_rounds("rpo_online")
