"""Supervised fine-tuning on the responses that satisfy their prompts.

    python scripts/train.py --config configs/sft.py[:tiny]

On SmolLM2-135M-Instruct, with the models, data and evaluation of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 6 minutes of processor time, 5.4 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +13.0 [+3.6,
+22.8], phrasings +12.5 [+2.3, +22.4]. Titles, postscripts and bullets come more often, minimum
lengths are kept less often; answers become a little shorter (26 words -> 23). It learns from 8 rows
an update, the pairwise methods from 16. Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 23 seconds of processor time (1 program compiled, 8 that
earlier tiny runs had left on disk), 1.3 GB at the peak. The weights moved by 3.7e-2 (policy) of
their norm, the discriminator by nothing; the loss went from 4.56 in the first round to 4.52 in the
last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("sft", preset)
    return config
