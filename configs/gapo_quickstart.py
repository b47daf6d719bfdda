"""GAPO on SmolLM2-135M-Instruct against MiniLM.

python scripts/train.py --config configs/gapo_quickstart.py
"""

from gapo_jax.config import Config


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = Config(name="gapo_quickstart", rounds=10)
    config.model.trainable_layers = 10
    config.data.types = (
        "no_comma",
        "number_words",
        "title",
        "number_bullet_lists",
        "postscript",
        "end_checker",
    )
    config.data.system_prompt = "You are a helpful assistant."
    config.data.max_prompt_tokens = 64
    config.data.bootstrap_responses = 288
    config.data.pairs, config.data.pairs_heldout = 800, 64
    config.sampling.temperature = 0.8
    config.discriminator.batch_size, config.discriminator.updates_per_round = 16, 8
    config.discriminator.max_tokens = 144
    config.discriminator.optim.learning_rate = 3e-4
    config.discriminator.round_learning_rate = 1e-4
    config.discriminator.warmup_epochs = 1
    config.discriminator.score_with = "post"
    config.ppo.train_samples, config.ppo.minibatch_size = 4, 16
    config.ppo.epochs = 1
    config.ppo.clip_high = 0.28
    config.ppo.optim.learning_rate = 6e-5
    config.reward.standardise, config.reward.squash = "group", "sigmoid"
    config.eval.prompts_per_set, config.eval.samples_per_prompt = 48, 2
    return config
