"""ORPO on preferential prompts: no reference, the likelihood in the loss.

    python scripts/train.py --config configs/orpo_smollm2.py

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 10 minutes of processor time, 5.1 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +15.9 [+6.3,
+25.2], phrasings +13.3 [+3.2, +23.8]. Titles (43 -> 91%), postscripts and bullets come more often,
minimum lengths less; answers become a little shorter and echo the prompt less. The share of pairs
in order stays near 80%: most of the loss is the likelihood of the accepted side. Not tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2("orpo")
