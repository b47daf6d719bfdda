"""REINFORCE++ (arXiv 2501.03262) on SmolLM2-135M-Instruct, discriminator and verifiers mixed.

    python scripts/train.py --config configs/reinforce_pp_smollm2.py
    python scripts/train.py --config configs/reinforce_pp_smollm2.py \
        --config.ppo.group_baseline=True

The reward is half the probability of the discriminator that the warm-up left, half the share of the
constraints that hold. The data are those of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 17 minutes of processor time, 5.6 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +26.8 [+16.4,
+37.0], phrasings +28.9 [+19.5, +38.0]. Postscripts (30 -> 96%), titles (43 -> 96%), bullets (26 ->
52%), no commas (39 -> 52%) and endings (0 -> 14%) are kept more often, minimum lengths less (75 ->
67%); answers become shorter (26 words -> 17). Half of the reward is by the rules that measure. Not
tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = smollm2_rounds("reinforce_pp")
    config.reward.source, config.reward.squash = "mix", "sigmoid"
    return config
