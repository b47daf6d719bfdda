"""Inverse-Q*-style imitation of token rewards; presets: system, prompts (the conditions).

    python scripts/train.py --config configs/inverse_q_tiny.py[:PRESET]

On a 4-layer model of random weights: all code paths, a text not worth reading.

Measured 2026-11-22, one CPU core beside other work: 35 seconds of processor time (1 program
compiled, 10 that earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by
2.7e-2 (policy) of their norm, discriminator by nothing; held-out topics changed by +13.6 [+4.0,
+27.3] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_inverse_q, tiny

PRESETS = ("system", "prompts")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = tiny("inverse_q", preset and f"inverse_q_tiny_{preset}")
    return choose_inverse_q(config, preset)
