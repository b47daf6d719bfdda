"""SimPO (arXiv 2405.14734) on preferential prompts: no reference, mean log-probs.

    python scripts/train.py --config configs/simpo.py[:tiny]

On SmolLM2-135M-Instruct, with the models, data and evaluation of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 10 minutes of processor time, 5.6 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +15.9 [+6.4,
+25.2], phrasings +11.7 [+0.8, +22.4]. Titles (43 -> 96%), postscripts and the ban on commas (39 ->
52%) are kept more often, minimum lengths less. It begins with 81% of the pairs in order, since the
likelier prompt is mostly the accepted one, and ends with 84%. Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 30 seconds of processor time (1 program compiled, 8 that
earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by 3.5e-2 (policy) of
their norm, the discriminator by nothing; the share of pairs in order went from 0.625 in the first
round to 0.938 in the last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("simpo", preset)
    return config
