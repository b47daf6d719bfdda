"""SGPO-style learning: refine, then prefer the refinement.

    python scripts/train.py --config configs/sgpo_smollm2.py

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 18 minutes of processor time, 5.5 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +5.1 [-3.8,
+13.9], phrasings +7.8 [-2.4, +17.3]. Both intervals hold 0. Of 128 refinements of stage 1 the
filters keep 56 (19 too far from the answer, 48 not nearer to the good one), of 128 comparisons of
stage 2 91; the first are often no improvement: a model of this size repeats the request or writes
another answer. Titles come more often (43 -> 65%), minimum lengths less (75 -> 62%). Not tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2("sgpo")
