"""Inverse-Q*-style imitation of token rewards; presets: system, prompts (the conditions).

    python scripts/train.py --config configs/inverse_q_smollm2.py[:PRESET]

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.
The settings are not tuned; time, memory and result have not been measured yet.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_inverse_q, smollm2

PRESETS = ("system", "prompts")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = smollm2("inverse_q", preset and f"inverse_q_smollm2_{preset}")
    return choose_inverse_q(config, preset)
