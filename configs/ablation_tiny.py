"""A small task that is learned within a minute, for scripts/ablate.py.

    python scripts/train.py --config configs/ablation_tiny.py:discriminator --config.seed=100 \\
        --workdir runs/judge                                   # once: the discriminator of all runs
    python scripts/ablate.py --config configs/ablation_tiny.py --out runs/ablation \\
        --set model.discriminator=runs/judge/export            # [--switch ...] [--seeds 5]

A generator of 2 layers from random weights writes words, some of them in the shapes that six
constraint types ask for (`random:words`), and obeys 47% of its prompts. The discriminator, one
layer, has learned from 1,600 updates on 4,096 preferential pairs of other seeds' prompts which
constraint a text obeys: it scores the accepted prompt above the rejected one on 94% of held-out
pairs. Both go on learning for 12 rounds of 32 prompts x 8 samples; 768 responses a held-out set.
The presets are methods (ppo, dpo, kto, simpo) on the same task, and `discriminator`, which makes
the discriminator that they start from.
"""

from gapo_jax.config import Config
from gapo_jax.config.presets import tiny_rounds

PRESETS = ("discriminator", "ppo", "dpo", "kto", "simpo")


def get_config(preset: str = "") -> Config:
    """Return the configuration; `preset` is a method of PRESETS, or empty for gapo."""
    config = tiny_rounds(preset or "gapo", f"ablation_tiny_{preset}" if preset else "ablation_tiny")
    config.model.generator = config.model.discriminator = "random:words"
    config.model.trainable_layers, config.model.train_embeddings = 0, True
    config.data.types = (
        "no_comma",
        "number_words",
        "title",
        "postscript",
        "number_placeholders",
        "number_highlighted_sections",
    )
    config.data.max_constraints, config.data.max_prompt_tokens = 1, 96
    config.data.bootstrap_responses, config.data.pairs = 512, 512
    config.data.pairs_heldout, config.data.prompts = 128, 256
    config.sampling.batch_size = 128
    config.rounds, config.checkpoint.every_rounds = 12, 100
    judge = config.discriminator
    judge.warmup_epochs, judge.updates_per_round, judge.batch_size = 1, 4, 32
    judge.max_tokens, judge.freeze_embeddings = 160, False
    judge.optim.learning_rate, judge.round_learning_rate = 1e-3, 3e-4
    config.ppo.prompts_per_round, config.ppo.minibatch_size = 32, 64
    config.ppo.optim.learning_rate, config.ppo.epochs = 8e-3, 2
    config.ppo.critic_epochs, config.ppo.kl_limit = 2, 2.0
    config.offline.steps_per_round, config.offline.batch_size = 8, 16
    config.eval.prompts_per_set, config.eval.samples_per_prompt = 192, 4
    if preset == "discriminator":
        config.data.bootstrap_responses, config.data.pairs = 1024, 4096
        config.rounds, config.offline.steps_per_round = 8, 200
        judge.batch_size, judge.optim.learning_rate = 64, 4e-3
    return config
