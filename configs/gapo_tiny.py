"""GAPO on a 4-layer model from random weights: the whole program in about 75 seconds on 2 cores.

    python scripts/train.py --config configs/gapo_tiny.py

The workhorse of the tests. The generator writes random characters, so its text is not worth
reading.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = tiny_rounds("gapo")
    # As many rows as a batch of the bootstrap, so that the sampler is compiled once for both.
    config.eval.prompts_per_set = config.sampling.batch_size
    return config
