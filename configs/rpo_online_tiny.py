"""RPO (arXiv 2502.00203) online: 8 own responses a prompt against the discriminator's rewards.

    python scripts/train.py --config configs/rpo_online_tiny.py

A 4-layer model of random weights; backward KL between softmax(beta log(pi / ref)) and
softmax(eta r). All code paths, text not worth reading.

Measured 2026-11-22, one CPU core beside other work: 36 seconds of processor time (2 programs
compiled, 81 that earlier tiny runs had left on disk), 1.6 GB at the peak. The weights moved by
4.4e-2 (policy) and 4.2e-3 (discriminator) of their norm; held-out topics changed by +18.2 [+4.8,
+35.0] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return tiny_rounds("rpo_online")
