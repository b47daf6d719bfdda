"""RPO with the verifiers' rewards; presets: sq, fwd_kl, k4 (4 sides), discriminator (its rewards).

    python scripts/train.py --config configs/rpo_tiny.py[:PRESET]

On a 4-layer model of random weights: all code paths, a text not worth reading.
Time and memory not measured on a quiet machine yet; dpo_tiny is of the same size.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_rpo, tiny

PRESETS = ("sq", "fwd_kl", "k4", "discriminator")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = tiny("rpo", preset and f"rpo_tiny_{preset}")
    return choose_rpo(config, preset)
