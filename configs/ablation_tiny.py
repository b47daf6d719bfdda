"""What scripts/ablate.py measures: a tiny task to learn; presets (methods): ppo, dpo, kto, simpo.

    python scripts/ablate.py --config configs/ablation_tiny.py[:PRESET] --out runs/ablation

configs/gapo_tiny.py is too short to learn anything.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds

PRESETS = ("ppo", "dpo", "kto", "simpo")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is a method of PRESETS, or empty for gapo."""
    config = tiny_rounds(preset or "gapo", preset and f"ablation_tiny_{preset}")
    config.name = config.name if preset else "ablation_tiny"
    return config
