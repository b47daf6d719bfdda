"""KTO on the sides of the preferential pairs, each with its label.

    python scripts/train.py --config configs/kto_smollm2.py

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 18 minutes of processor time, 5.6 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +16.7 [+7.6,
+25.4], phrasings +14.8 [+4.7, +25.2]. As DPO, but for more postscripts (30 -> 61%). Its mismatched
rows double the work of an update. Not tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2("kto")
