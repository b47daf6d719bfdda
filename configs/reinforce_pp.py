"""REINFORCE++ (arXiv 2501.03262), rewards from discriminator and verifiers.

    python scripts/train.py --config configs/reinforce_pp.py[:tiny]
    python scripts/train.py --config configs/reinforce_pp.py --config.ppo.group_baseline=True

The reward is half the probability of the discriminator that the warm-up left, half the share of the
constraints that hold. On SmolLM2-135M-Instruct with the data of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 17 minutes of processor time, 5.6 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +26.8 [+16.4,
+37.0], phrasings +28.9 [+19.5, +38.0]. Postscripts (30 -> 96%), titles (43 -> 96%), bullets (26 ->
52%), no commas (39 -> 52%) and endings (0 -> 14%) are kept more often, minimum lengths less (75 ->
67%); answers become shorter (26 words -> 17). Half of the reward is by the rules that measure. Not
tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 23 seconds of processor time (3 programs compiled, 82
that earlier tiny runs had left on disk), 1.3 GB at the peak. The weights moved by 4.3e-2 (policy)
and 4.2e-3 (discriminator) of their norm; held-out topics changed by +4.5 [+0.0, +16.7] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("reinforce_pp", preset)
    config.reward.source, config.reward.squash = "mix", "sigmoid"
    return config
