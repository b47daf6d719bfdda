"""Inverse-Q*-style imitation of token rewards; presets: system, prompts (the conditions).

    python scripts/train.py --config configs/inverse_q_tiny.py[:PRESET]

On a 4-layer model of random weights: all code paths, a text not worth reading.
Time and memory not measured on a quiet machine yet; dpo_tiny is of the same size.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_inverse_q, tiny

PRESETS = ("system", "prompts")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = tiny("inverse_q", preset and f"inverse_q_tiny_{preset}")
    return choose_inverse_q(config, preset)
