"""Inverse-Q*-style imitation of token rewards; presets: system, prompts (the conditions).

    python scripts/train.py --config configs/inverse_q_smollm2.py[:PRESET]

On SmolLM2-135M-Instruct, with the models, data and evaluation of
configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 12 minutes of processor time, 5.3 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +17.4 [+6.6,
+27.7], phrasings +25.8 [+16.5, +36.1]. By type on topics: titles 43 -> 87%, postscripts 30 -> 52%,
bullets 26 -> 52%, no commas 39 -> 48%, endings 0 -> 14%, minimum lengths 75 -> 67%. Answers become
shorter (26 words -> 18), as those under the better condition are: 56% of the samples end by
themselves in the first round, 91% in the last. Not tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_inverse_q, smollm2

PRESETS = ("system", "prompts")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = smollm2("inverse_q", preset and f"inverse_q_smollm2_{preset}")
    return choose_inverse_q(config, preset)
