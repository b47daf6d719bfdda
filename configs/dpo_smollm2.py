"""DPO on preferential prompts; presets are its variants: cdpo, ipo, hinge, robust, exo.

    python scripts/train.py --config configs/dpo_smollm2.py[:PRESET]

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.
The settings are not tuned; time, memory and result have not been measured yet.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_dpo, smollm2

PRESETS = ("cdpo", "ipo", "hinge", "robust", "exo")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = smollm2("dpo", preset and f"dpo_smollm2_{preset}")
    return choose_dpo(config, preset)
