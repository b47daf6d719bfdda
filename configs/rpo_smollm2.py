"""RPO with the verifiers' rewards; presets: sq, fwd_kl, k4 (4 sides), discriminator (its rewards).

    python scripts/train.py --config configs/rpo_smollm2.py[:PRESET]

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.
The settings are not tuned; time, memory and result have not been measured yet.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_rpo, smollm2

PRESETS = ("sq", "fwd_kl", "k4", "discriminator")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = smollm2("rpo", preset and f"rpo_smollm2_{preset}")
    return choose_rpo(config, preset)
