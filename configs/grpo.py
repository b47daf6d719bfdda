"""GRPO (arXiv 2402.03300), rewarded by the verifiers alone.

    python scripts/train.py --config configs/grpo.py[:tiny]
    python scripts/train.py --config configs/grpo.py --config.grpo.variant=dr_grpo
    python scripts/train.py --config configs/grpo.py --config.grpo.variant=dapo \
        --config.grpo.dynamic_sampling=True --config.ppo.clip_high=0.28 --config.ppo.kl_coef=0
    python scripts/train.py --config configs/grpo.py --config.grpo.variant=gspo \
        --config.ppo.clip_low=3e-4 --config.ppo.clip_high=4e-4 --config.ppo.kl_coef=0

The baseline that GAPO has to beat where every constraint can be checked by rule: the reward is the
share of the constraints that hold, so no discriminator is warmed up or asked. On
SmolLM2-135M-Instruct with the data of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 14 minutes of processor time, 5.3 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +28.3 [+20.3,
+36.1], phrasings +27.3 [+17.8, +37.6]. More than any other method: the rules that measure are the
rules that reward, so nothing stands between. Commas are left out (39 -> 87%), postscripts, titles
and bullets are learned, exact endings begin to come; answers become half as long (26 words -> 13).
Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 28 seconds of processor time (2 programs compiled, 50
that earlier tiny runs had left on disk), 1.5 GB at the peak. The weights moved by 4.4e-2 (policy)
of their norm, the discriminator by nothing; held-out topics changed by +4.5 [+0.0, +14.3] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("grpo", preset)
    config.reward.source, config.reward.standardise = "verifier", "none"
    return config
