"""PPO against a frozen reward model: the baseline of the paper's table 4.

    python scripts/train.py --config configs/ppo.py[:tiny]
    python scripts/train.py --config configs/ppo.py --config.model.discriminator=DECODER

GAPO with a frozen discriminator: step for step the same program as with
`discriminator.updates_per_round=0`. The reward model is MiniLM as its warm-up on the pairs left it,
or any decoder (the paper's is Qwen2.5-7B); the generator is SmolLM2-135M-Instruct. The data are the
same as in configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 18 minutes of processor time, 5.6 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +17.4 [+7.7,
+27.4], phrasings +18.0 [+8.5, +28.1]. Postscripts (30 -> 91%), titles (43 -> 70%) and endings (0 ->
23%) are kept more often; commas and bullets stay as they were, and repeated 3-grams on topics go
from .02 to .09. Its discriminator orders 84% of the held-out pairs and never learns more; GAPO,
whose discriminator does, gained +24.6 and +25.8 from the same start (configs/gapo_quickstart.py).
Not tuned.

`tiny` is a 4-layer model of random weights: all code paths, text not worth reading. Measured
2026-11-22, one CPU core beside other work: 24 seconds of processor time (0 programs compiled, 85
that earlier tiny runs had left on disk), 1.3 GB at the peak. The weights moved by 4.2e-2 (policy),
4.2e-3 (discriminator) and 4.5e-2 (critic) of their norm; held-out topics changed by +13.6 [+3.9,
+26.3] points.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import sized

PRESETS = ("tiny",)


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is `tiny` or empty."""
    config, _ = sized("ppo", preset)
    return config
