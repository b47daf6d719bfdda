"""GAPO on SmolLM2-135M-Instruct against MiniLM.

python scripts/train.py --config configs/gapo_quickstart.py
"""

from gapo_jax.config import Config


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = Config(name="gapo_quickstart", rounds=10)
    config.model.trainable_layers = 12
    config.data.system_prompt = "You are a helpful assistant."
    config.data.max_prompt_tokens = 80
    config.data.bootstrap_responses = 480
    config.data.pairs, config.data.pairs_heldout = 600, 64
    config.sampling.temperature = 0.8
    config.ppo.train_samples = 4
    config.ppo.optim.learning_rate = 4e-5
    config.reward.standardise, config.reward.squash = "group", "sigmoid"
    config.eval.prompts_per_set, config.eval.samples_per_prompt = 64, 2
    return config
