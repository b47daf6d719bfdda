"""RLOO (arXiv 2402.14740) on a 4-layer model of random weights, rewards from the discriminator.

    python scripts/train.py --config configs/rloo_tiny.py

All code paths, text not worth reading.

Measured 2026-11-22, one CPU core beside other work: 32 seconds of processor time (3 programs
compiled, 80 that earlier tiny runs had left on disk), 1.6 GB at the peak. The weights moved by
4.3e-2 (policy) and 4.2e-3 (discriminator) of their norm; held-out topics changed by +18.2 [+4.8,
+35.0] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny_rounds("rloo")
