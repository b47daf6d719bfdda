"""RPO with the verifiers' rewards; presets: sq, fwd_kl, k4 (4 sides), discriminator (its rewards).

    python scripts/train.py --config configs/rpo_tiny.py[:PRESET]

On a 4-layer model of random weights: all code paths, a text not worth reading.

Measured 2026-11-22, one CPU core beside other work: 30 seconds of processor time (1 program
compiled, 8 that earlier tiny runs had left on disk), 1.4 GB at the peak. The weights moved by
3.5e-2 (policy) of their norm, discriminator by nothing; the share of pairs in order went from 0.469
in the first round to 0.906 in the last.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import choose_rpo, tiny

PRESETS = ("sq", "fwd_kl", "k4", "discriminator")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is one of PRESETS or empty."""
    config = tiny("rpo", preset and f"rpo_tiny_{preset}")
    return choose_rpo(config, preset)
