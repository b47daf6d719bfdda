"""GAPO on a 4-layer model from random weights: the whole program in about 75 seconds on 2 cores.

    python scripts/train.py --config configs/gapo_tiny.py

The workhorse of the tests. The generator writes random characters, so its text is not worth
reading.
"""

from gapo_jax.config import Config


def get_config(preset: str = "") -> Config:
    """Return the configuration; there are no presets."""
    config = Config(name="gapo_tiny", rounds=3)
    config.model.generator = config.model.discriminator = "random:tiny"
    config.model.trainable_layers = 2
    config.data.types = ("no_comma", "letter_frequency")
    config.data.max_prompt_tokens = 384
    config.data.bootstrap_responses = 96
    config.data.pairs, config.data.pairs_heldout, config.data.prompts = 64, 16, 64
    config.sampling.max_new_tokens, config.sampling.batch_size = 24, 32
    config.discriminator.batch_size, config.discriminator.updates_per_round = 16, 3
    config.discriminator.max_tokens = 384
    config.ppo.prompts_per_round, config.ppo.samples_per_prompt = 4, 8
    config.ppo.minibatch_size, config.ppo.epochs = 16, 1
    config.ppo.optim.learning_rate = 1e-3
    config.eval.prompts_per_set, config.eval.resamples = 16, 200
    config.checkpoint.keep = 10
    return config
