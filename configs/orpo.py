"""ORPO (arXiv 2403.07691) on preferential prompts: no reference, the likelihood in the loss.

    python scripts/train.py --config configs/orpo.py[:tiny]

On SmolLM2-135M-Instruct, with the models, data and evaluation of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 10 minutes of processor time, 5.1 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +15.9 [+6.3,
+25.2], phrasings +13.3 [+3.2, +23.8]. Titles (43 -> 91%), postscripts and bullets come more often,
minimum lengths are kept less often; answers become a little shorter and echo the prompt less. The
share of pairs in order stays near 80%: most of the loss is the likelihood of the accepted side. Not
tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 30 seconds of processor time (1 program compiled, 8 that
earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by 3.7e-2 (policy) of
their norm, the discriminator by nothing; the share of pairs in order went from 0.625 in the first
round to 0.656 in the last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("orpo", preset)
    return config
