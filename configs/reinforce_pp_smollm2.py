"""REINFORCE++ (arXiv 2501.03262) on SmolLM2-135M-Instruct, discriminator and verifiers mixed.

    python scripts/train.py --config configs/reinforce_pp_smollm2.py
    python scripts/train.py --config configs/reinforce_pp_smollm2.py \
        --config.ppo.group_baseline=True

The reward is half the probability of the discriminator that the warm-up left, half the share of the
constraints that hold. The data are those of configs/gapo_quickstart.py. Not measured: time, memory
and result are still to be taken.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = smollm2_rounds("reinforce_pp")
    config.reward.source, config.reward.squash = "mix", "sigmoid"
    return config
