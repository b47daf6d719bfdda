"""The two settings that the files under configs/ share: a tiny one for tests, one for SmolLM2.

Every method starts from the same models, data and evaluation, so that runs of one size compare.
"""

from gapo_jax.config import Config


def tiny(method: str, name: str = "") -> Config:
    """Return a method on a 4-layer model of random weights: all code paths, text not worth reading.

    The batch of every method has 8 examples; three rounds of four updates.
    """
    config = Config(method=method, name=name or f"{method}_tiny", rounds=3)
    config.model.generator = config.model.discriminator = "random:tiny"
    config.model.trainable_layers = 2
    config.data.types = ("no_comma", "letter_frequency")
    config.data.max_prompt_tokens = 384
    config.data.bootstrap_responses = 96
    config.data.pairs, config.data.pairs_heldout, config.data.prompts = 64, 16, 64
    config.sampling.max_new_tokens, config.sampling.batch_size = 24, 32
    config.discriminator.batch_size, config.discriminator.max_tokens = 16, 384
    config.offline.steps_per_round, config.offline.batch_size = 4, 8
    config.offline.optim.learning_rate = 1e-3
    config.sgpo.refine_template = "{prompt}\n{response}\n{reference}\n"
    config.sgpo.improve_template = "{prompt}\n{response}\n"
    # Random text is far from any other.
    config.sgpo.max_edit, config.sgpo.max_length_ratio = 1.0, 10.0
    config.sgpo.max_prompt_tokens, config.sgpo.prompts = 512, 32
    config.eval.prompts_per_set, config.eval.samples_per_prompt = 16, 1
    config.eval.resamples = 200
    config.checkpoint.keep = 10
    return config


def smollm2(method: str, name: str = "") -> Config:
    """Return a method on SmolLM2-135M-Instruct: models, data and evaluation of the quickstart.

    An offline method makes 40 updates of 8 examples, minutes of a CPU core: enough to see what it
    does, not what it can do.
    """
    config = Config(method=method, name=name or f"{method}_smollm2", rounds=4)
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
    config.discriminator.batch_size, config.discriminator.max_tokens = 16, 144
    config.discriminator.warmup_epochs = 1
    config.offline.steps_per_round, config.offline.batch_size = 10, 8
    config.offline.max_response_tokens = 64
    config.offline.optim.learning_rate = 3e-5
    # A model of this size rewrites an answer rather than edits it: at .6, 7 of 128 are kept.
    config.sgpo.prompts, config.sgpo.max_edit = 128, 0.85
    config.eval.prompts_per_set, config.eval.samples_per_prompt = 96, 1
    config.eval.pairs_every = 5
    return config


def tiny_rounds(method: str, name: str = "") -> Config:
    """Return `tiny` with the rounds of an online method: 4 prompts x 8 samples, 2 updates each."""
    config = tiny(method, name)
    config.discriminator.updates_per_round = 3
    config.ppo.prompts_per_round, config.ppo.samples_per_prompt = 4, 8
    config.ppo.minibatch_size, config.ppo.epochs = 16, 1
    config.ppo.optim.learning_rate = 1e-3
    return config


def smollm2_rounds(method: str, name: str = "") -> Config:
    """Return `smollm2` with the rounds of the quickstart: 12 prompts x 8 samples, of
    which the two best and the two worst are learned from."""
    config = smollm2(method, name)
    config.rounds, config.discriminator.updates_per_round = 10, 5
    config.ppo.train_samples, config.ppo.minibatch_size, config.ppo.epochs = 4, 16, 1
    config.ppo.kl_coef = 0.05
    config.ppo.optim.learning_rate = 6e-5
    config.reward.missing_eos_penalty = 0.1
    return config


def choose_dpo(config: Config, preset: str) -> Config:
    """Set the variant of DPO, with the settings that it needs; an empty preset changes nothing."""
    if preset:
        config.dpo.variant = preset
        # ipo by the mean over tokens, as its authors and TRL do.
        config.dpo.reduce = "mean" if preset == "ipo" else "sum"
        config.dpo.label_smoothing = {"cdpo": 0.1, "robust": 0.1, "exo": 0.001}.get(preset, 0.0)
    return config


def choose_rpo(config: Config, preset: str) -> Config:
    """Set the distance, the sides or the rewards of RPO; an empty preset changes nothing."""
    if preset == "k4":
        config.rpo.responses = 4
    elif preset == "discriminator":
        config.rpo.reward = "discriminator"
    elif preset:
        config.rpo.distance = preset
    return config


def choose_inverse_q(config: Config, preset: str) -> Config:
    """Set the conditions that Inverse-Q* contrasts; an empty preset changes nothing."""
    if preset:
        config.inverse_q.contrast = preset
    return config
