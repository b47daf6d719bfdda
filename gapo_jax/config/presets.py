"""The two sizes in which every method has a configuration: SmolLM2, and one for tests.

All methods start from the same models, data and evaluation, so runs of one size can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gapo_jax.config import Config
from gapo_jax.methods import METHODS, method_of
from gapo_jax.section import nearest

_FORMER_NAME = re.compile(
    r"(?P<folder>.*/)?(?P<method>\w+)_(?P<size>tiny|smollm2)(?P<end>\.py)?(:(?P<variant>.*))?"
)


def sized(method: str, preset: str, variants: Sequence[str] = ()) -> tuple[Config, str]:
    """Return the configuration of a method and the variant that a preset chooses ("" without one).

    A preset is `tiny` (without it the size is SmolLM2's), one of `variants`, or both with a comma
    between them: `tiny,ipo`.

    Raises:
        ValueError: the preset is neither; the message gives the nearest one.
    """
    parts = [part for part in preset.split(",") if part]
    valid = ["tiny", *variants]
    for part in parts:
        if part not in valid:
            raise ValueError(f"configs/{method}.py has no preset {part!r}{nearest(part, valid)}")
    chosen = [part for part in parts if part != "tiny"]
    if len(chosen) > 1:
        raise ValueError(f"wanted one of the presets {list(variants)}, got {preset!r}")
    size = tiny if "tiny" in parts else smollm2
    return size(method, "_".join([method, *parts])), "".join(chosen)


def moved_config(name: str) -> str | None:
    """Return the present name of a configuration that was a file and is now a preset; None for any
    other, and for a file that exists.

    >>> moved_config("configs/dpo_tiny.py:ipo")
    'configs/dpo.py:tiny,ipo'
    """
    found = _FORMER_NAME.fullmatch(name)
    if not found or Path(name.partition(":")[0]).exists():
        return None
    method = METHODS.get(found["method"])
    if method is None or method.adversarial:  # the files of gapo kept their names
        return None
    parts = ["tiny"] if found["size"] == "tiny" else []
    preset = ",".join([*parts, *filter(None, [found["variant"]])])
    path = f"{found['folder'] or ''}{method.name}{found['end'] or ''}"
    return f"{path}:{preset}" if preset else path


def tiny(method: str, name: str = "") -> Config:
    """Return a method on a 4-layer model of random weights: all code paths, text not worth reading.

    Three rounds. The batch of an offline method has 8 examples, four updates a round; a round of an
    online method has 4 prompts x 8 samples and two updates.
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
    config.eval.prompts_per_set, config.eval.samples_per_prompt = 16, 1
    config.eval.resamples = 200
    config.checkpoint.keep = 10
    if method_of(config).loop == "online":
        config.discriminator.updates_per_round = 3
        config.ppo.prompts_per_round, config.ppo.samples_per_prompt = 4, 8
        config.ppo.minibatch_size, config.ppo.epochs = 16, 1
        config.ppo.optim.learning_rate = 1e-3
    return config


def smollm2(method: str, name: str = "") -> Config:
    """Return a method on SmolLM2-135M-Instruct: models, data and evaluation of the quickstart.

    An offline method makes 40 updates of 8 examples, minutes of a CPU core: enough to see what it
    does, not what it can do. An online method plays ten rounds of 12 prompts x 8 samples, of which
    the two best and the two worst are learned from.
    """
    config = Config(method=method, name=name or method, rounds=4)
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
    config.eval.prompts_per_set, config.eval.samples_per_prompt = 96, 1
    config.eval.pairs_every = 5
    if method_of(config).loop == "online":
        config.rounds, config.discriminator.updates_per_round = 10, 5
        config.ppo.train_samples, config.ppo.minibatch_size, config.ppo.epochs = 4, 16, 1
        config.ppo.kl_coef = 0.05
        config.ppo.optim.learning_rate = 6e-5
        config.reward.missing_eos_penalty = 0.1
    return config
