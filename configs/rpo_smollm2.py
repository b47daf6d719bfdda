"""RPO with the verifiers' rewards; presets: sq, fwd_kl, k4 (4 sides), discriminator (its rewards).

    python scripts/train.py --config configs/rpo_smollm2.py[:PRESET]

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 13 minutes of processor time, 5.2 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +14.5 [+6.6,
+22.5], phrasings +10.9 [+1.6, +20.2]. By type on topics: titles 43 -> 70%, postscripts 30 -> 61%,
bullets 26 -> 61%, no commas 39 -> 35%, minimum lengths 75 -> 67%. The share of pairs in order goes
from 61% in the first ten updates to 79% in the last. Not tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_rpo, smollm2

PRESETS = ("sq", "fwd_kl", "k4", "discriminator")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = smollm2("rpo", preset and f"rpo_smollm2_{preset}")
    return choose_rpo(config, preset)
