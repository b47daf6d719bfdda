"""PPO on SmolLM2-135M-Instruct against a frozen reward model: the baseline of the paper's table 4.

    python scripts/train.py --config configs/ppo_smollm2.py
    python scripts/train.py --config configs/ppo_smollm2.py --config.model.discriminator=DECODER

The reward model is MiniLM as its warm-up on the pairs left it, or any decoder (the paper's is
Qwen2.5-7B). The data are those of configs/gapo_quickstart.py.

Measured 2026-11-22, seed 0, one CPU core: 18 minutes of processor time, 5.6 GB at the peak;
bootstrap, pairs and first evaluation were those of a quickstart run and would take 4 minutes more.
Held-out constraint accuracy (strict, per instruction, points, 95% interval): topics +17.4 [+7.7,
+27.4], phrasings +18.0 [+8.5, +28.1]. Postscripts (30 -> 91%), titles (43 -> 70%) and endings (0 ->
23%); commas and bullets stay as they were, and repeated 3-grams on topics go from .02 to .09. Its
judge orders 84% of the held-out pairs and never learns more; GAPO, whose judge does, gained +24.6
and +25.8 from the same start (configs/gapo_quickstart.py). Not tuned.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import smollm2_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    return smollm2_rounds("ppo")
