"""GAPO on SmolLM2-135M-Instruct against MiniLM.

python scripts/train.py --config configs/gapo_quickstart.py
"""

from gapo_jax.config import Config


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = Config(name="gapo_quickstart", rounds=10)
    config.model.trainable_layers = 12
    config.data.system_prompt = "You are a helpful assistant."
    return config
