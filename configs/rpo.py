"""RPO (arXiv 2502.00203) on preferential prompts with the verifiers' rewards.

    python scripts/train.py --config configs/rpo.py[:PRESET]

The presets beside tiny are sq and fwd_kl (distances), k4 (4 sides an example) and discriminator
(whose logits are the rewards). On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 13 minutes of processor time, 5.2 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +14.5 [+6.6,
+22.5], phrasings +10.9 [+1.6, +20.2]. By type on topics: titles 43 -> 70%, postscripts 30 -> 61%,
bullets 26 -> 61%, no commas 39 -> 35%, minimum lengths 75 -> 67%. The share of pairs in order goes
from 61% in the first ten updates to 79% in the last. Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 30 seconds of processor time (1 program compiled, 8 that
earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by 3.5e-2 (policy) of
their norm, the discriminator by nothing; the share of pairs in order went from 0.469 in the first
round to 0.906 in the last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

VARIANTS = ("sq", "fwd_kl", "k4", "discriminator")
PRESETS = ("tiny", *VARIANTS)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny`, one of VARIANTS, or both: `tiny,sq`."""
    config, variant = sized("rpo", preset, VARIANTS)
    if variant == "k4":
        config.rpo.responses = 4
    elif variant == "discriminator":
        config.rpo.reward = "discriminator"
    elif variant:
        config.rpo.distance = variant
    return config
