"""Inverse-Q*-style imitation of token rewards (after arXiv 2408.14874).

    python scripts/train.py --config configs/inverse_q.py[:PRESET]

The presets beside tiny are the contrasts other than `constraints`: system and prompts. On
SmolLM2-135M-Instruct, with the models, data and evaluation of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 12 minutes of processor time, 5.3 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +17.4 [+6.6,
+27.7], phrasings +25.8 [+16.5, +36.1]. By type on topics: titles 43 -> 87%, postscripts 30 -> 52%,
bullets 26 -> 52%, no commas 39 -> 48%, endings 0 -> 14%, minimum lengths 75 -> 67%. Answers become
shorter (26 words -> 18), as they are under the better condition: 56% of the samples end by
themselves in the first round, 91% in the last. Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 35 seconds of processor time (1 program compiled, 10
that earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by 2.7e-2 (policy)
of their norm, the discriminator by nothing; held-out topics changed by +13.6 [+4.0, +27.3] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

VARIANTS = ("system", "prompts")
PRESETS = ("tiny", *VARIANTS)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny`, one of VARIANTS, or both: `tiny,system`."""
    config, variant = sized("inverse_q", preset, VARIANTS)
    config.inverse_q.contrast = variant or "constraints"
    return config
