"""RPO (arXiv 2502.00203) online on SmolLM2-135M-Instruct, rewards from the discriminator.

    python scripts/train.py --config configs/rpo_online_smollm2.py
    python scripts/train.py --config configs/rpo_online_smollm2.py --config.rpo.distance=sqloo

Of the 8 samples of a prompt the two best and the two worst are compared, by backward KL. The data
are those of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 17 minutes of processor time, 5.2 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +15.2 [+5.8,
+24.6], phrasings +18.0 [+9.7, +26.6]. Postscripts (30 -> 70%), titles (43 -> 70%), no commas (39 ->
57%) and endings (0 -> 18%) are kept more often, bullets stay as they were, minimum lengths are kept
less often (75 -> 67%). Not tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2_rounds("rpo_online")
