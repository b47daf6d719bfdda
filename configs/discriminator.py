"""The discriminator alone, on preferential prompts: the reward model of GAPO and PPO.

    python scripts/train.py --config configs/discriminator.py[:tiny]

With the models and data of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 4 minutes of processor time, 3.8 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
It orders 81% of the held-out pairs after 25 updates and 84% after 100, and classifies 82% of their
sides correctly (60% after 25); the generator stays as it was. Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 30 seconds of processor time (2 programs compiled, 27
that earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by 3.6e-3
(discriminator) of their norm, the policy by nothing; the share of held-out pairs in order stayed at
.44 in its 12 updates.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("discriminator", preset)
    if preset != "tiny":
        config.offline.steps_per_round = 25  # 100 updates: an epoch of the pairs, as the warm-up
    return config
