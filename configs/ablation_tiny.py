"""A tiny task for scripts/ablate.py, long enough to learn; presets (methods): ppo, dpo, kto, simpo.

    python scripts/ablate.py --config configs/ablation_tiny.py[:PRESET] --out runs/ablation

configs/gapo_tiny.py with 8 times the pairs, 12 times the warm-up of the discriminator, 16 rounds of
twice the samples, and an evaluation by 256 responses a set. Not measured yet: neither the time, nor
whether these settings learn.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds

PRESETS = ("ppo", "dpo", "kto", "simpo")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is a method of PRESETS, or empty for gapo."""
    name = f"ablation_tiny_{preset}" if preset else "ablation_tiny"
    config = tiny_rounds(preset or "gapo", name)
    config.rounds, config.checkpoint.every_rounds = 16, 100
    config.data.pairs = config.data.bootstrap_responses = 512
    config.data.pairs_heldout, config.data.prompts = 64, 256
    config.sampling.batch_size = 128
    judge = config.discriminator
    judge.warmup_epochs, judge.updates_per_round, judge.batch_size = 6, 4, 32
    judge.optim.learning_rate, judge.round_learning_rate = 1e-3, 5e-4
    config.ppo.prompts_per_round, config.ppo.minibatch_size = 8, 32
    config.ppo.optim.learning_rate = 2e-3
    config.offline.steps_per_round, config.offline.batch_size = 8, 16
    config.eval.prompts_per_set, config.eval.samples_per_prompt = 64, 4
    return config
