"""KTO (arXiv 2402.01306) on the sides of the preferential pairs, each with its label.

    python scripts/train.py --config configs/kto.py[:tiny]

On SmolLM2-135M-Instruct, with the models, data and evaluation of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 18 minutes of processor time, 5.6 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +16.7 [+7.6,
+25.4], phrasings +14.8 [+4.7, +25.2]. As DPO, but for more postscripts (30 -> 61%). Its mismatched
rows double the work of an update. Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 33 seconds of processor time (1 program compiled, 8 that
earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by 3.5e-2 (policy) of
their norm, the discriminator by nothing; the loss went from 0.5 in the first round to 0.496 in the
last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("kto", preset)
    return config
