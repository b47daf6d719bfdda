"""DPO (arXiv 2305.18290) on preferential prompts; presets: tiny, and its variants.

    python scripts/train.py --config configs/dpo.py[:PRESET]

The variants are cdpo, ipo, hinge, robust and exo. On SmolLM2-135M-Instruct, with the models, data
and evaluation of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 11 minutes of processor time, 5.3 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +13.0 [+3.0,
+23.0], phrasings +17.2 [+6.9, +27.3]. Titles come always (43 -> 100%), postscripts, bullets and
exact endings more often; minimum lengths are kept less often (75 -> 62%), and so is the ban on
commas (39 -> 26%). The accepted prompt is preferred on 57% of the pairs of the first ten updates
and on 81% of the pairs of the last ten. Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 51 seconds of processor time (9 programs compiled, none
found on disk), 1.4 GB at the peak. The weights moved by 3.5e-2 (policy) of their norm, the
discriminator by nothing; the share of pairs in order went from 0.5 in the first round to 0.906 in
the last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

VARIANTS = ("cdpo", "ipo", "hinge", "robust", "exo")
PRESETS = ("tiny", *VARIANTS)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny`, one of VARIANTS, or both: `tiny,cdpo`."""
    config, variant = sized("dpo", preset, VARIANTS)
    if variant:
        config.dpo.variant = variant
        config.dpo.label_smoothing = {"cdpo": 0.1, "robust": 0.1, "exo": 0.001}.get(variant, 0.0)
    return config
