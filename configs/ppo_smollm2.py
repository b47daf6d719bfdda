"""PPO on SmolLM2-135M-Instruct against a frozen reward model: the baseline of the paper's table 4.

    python scripts/train.py --config configs/ppo_smollm2.py
    python scripts/train.py --config configs/ppo_smollm2.py --config.model.discriminator=DECODER

The reward model is MiniLM as its warm-up on the pairs left it, or any decoder (the paper's is
Qwen2.5-7B). The data are those of configs/gapo_quickstart.py. Not measured: time, memory and result
are still to be taken.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2_rounds("ppo")
