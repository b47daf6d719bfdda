"""SimPO on preferential prompts: no reference, mean log-probs.

    python scripts/train.py --config configs/simpo_tiny.py

On a 4-layer model of random weights: all code paths, a text not worth reading.
Time and memory not measured on a quiet machine yet; dpo_tiny is of the same size.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny("simpo")
