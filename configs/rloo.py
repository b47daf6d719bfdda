"""RLOO (arXiv 2402.14740), rewards from the discriminator as its warm-up left it; no critic.

    python scripts/train.py --config configs/rloo.py[:tiny]

On SmolLM2-135M-Instruct with the data of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 19 minutes of processor time, 5.7 GB at the peak;
bootstrap, pairs and first evaluation came from a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +19.6 [+9.2,
+29.8], phrasings +19.5 [+10.0, +29.5]. Titles (43 -> 87%), postscripts (30 -> 91%) and endings (0
-> 23%) are kept more often; commas and bullets stay as they were. As with PPO against the same
frozen discriminator, repeated 3-grams (.02 -> .07 on topics) and answers that echo their prompt
(.16 -> .29 on phrasings) become more frequent. Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 32 seconds of processor time (3 programs compiled, 80
that earlier tiny runs had left on disk), 1.6 GB at the peak. The weights moved by 4.3e-2 (policy)
and 4.2e-3 (discriminator) of their norm; held-out topics changed by +18.2 [+4.8, +35.0] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("rloo", preset)
    return config
