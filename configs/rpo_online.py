"""RPO (arXiv 2502.00203) online: own responses against the discriminator's rewards.

    python scripts/train.py --config configs/rpo_online.py[:tiny]
    python scripts/train.py --config configs/rpo_online.py --config.rpo.distance=sqloo

Of the 8 samples of a prompt the two best and the two worst are compared, by the backward KL between
softmax(beta log(pi / ref)) and softmax(eta r). On SmolLM2-135M-Instruct with the data of
configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 17 minutes of processor time, 5.2 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +15.2 [+5.8,
+24.6], phrasings +18.0 [+9.7, +26.6]. Postscripts (30 -> 70%), titles (43 -> 70%), no commas (39 ->
57%) and endings (0 -> 18%) are kept more often, bullets stay as they were, minimum lengths are kept
less often (75 -> 67%). Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading; all 8 samples
are compared. Measured 2026-11-22, one CPU core beside other work: 36 seconds of processor time (2
programs compiled, 81 that earlier tiny runs had left on disk), 1.6 GB at the peak. The weights
moved by 4.4e-2 (policy) and 4.2e-3 (discriminator) of their norm; held-out topics changed by +18.2
[+4.8, +35.0] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("rpo_online", preset)
    return config
