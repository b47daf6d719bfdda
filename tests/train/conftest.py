"""Every file under configs/ as a test case: its method and options at the sizes of tiny runs."""

import jax
import jax.numpy as jnp
import pytest
from by_path import ROOT, load

from gapo_jax.config import change, finalize, lookup
from gapo_jax.config.presets import tiny
from gapo_jax.models import Decoder, DecoderConfig
from gapo_jax.train.state import split_trainable

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
# (file, preset) that the default suite plays; the others take a path that one of these takes too,
# with a loss that is tested by itself, and are slow.
QUICK = [
    ("discriminator", "tiny"), ("dpo", "tiny"), ("grpo", "tiny"), ("inverse_q", "tiny"),
    ("ppo", "tiny"), ("rpo", "tiny,discriminator"), ("sgpo", "tiny"),
]  # fmt: skip
_SIZES = """model.generator model.discriminator model.trainable_layers data.types
    data.system_prompt data.max_prompt_tokens data.bootstrap_responses data.pairs
    data.pairs_heldout sampling.max_new_tokens sampling.batch_size discriminator.batch_size
    discriminator.max_tokens ppo.prompts_per_round ppo.samples_per_prompt ppo.minibatch_size
    ppo.logprob_chunk offline.max_response_tokens sgpo.improver_rounds sgpo.refine_template
    sgpo.improve_template sgpo.max_edit sgpo.max_length_ratio sgpo.max_prompt_tokens sgpo.prompts
    eval.samples_per_prompt eval.resamples checkpoint.every_rounds checkpoint.keep""".split()


def _module(name):
    return load(f"configs/{name}.py")


def _presets(name):
    """Every preset once: the variants of a method at the size of `tiny`."""
    module = _module(name)
    presets, variants = getattr(module, "PRESETS", ()), getattr(module, "VARIANTS", ())
    kept = [preset for preset in presets if preset not in variants]
    return ("", *kept, *(f"tiny,{variant}" for variant in variants))


def smallest(name, preset=""):
    """Return a configuration with two rounds of one or two updates on the tiny networks."""
    module = _module(name)
    config = module.get_config(preset)
    sized = "tiny" in getattr(module, "PRESETS", ())
    small = module.get_config("tiny") if sized else tiny(config.method)
    change(config, {path: lookup(small, path) for path in _SIZES})
    if config.model.train_embeddings:  # below all layers, so none of them can stand still
        config.model.trainable_layers = 0
    config.rounds, config.offline.steps_per_round, config.offline.batch_size = 2, 1, 4
    config.offline.optim.warmup_steps = config.ppo.optim.warmup_steps = 0
    config.data.prompts = config.eval.prompts_per_set = 16
    # Batches of two widths in one run of either kind.
    config.ppo.length_buckets = 2 if (name, preset) == ("grpo", "tiny") else 1
    config.offline.length_buckets = 2 if (name, preset) == ("orpo", "tiny") else 1
    disc = config.discriminator
    # The rate of the first update is 0: the warm-up, which is not played here, starts there.
    disc.updates_per_round = min(2, disc.updates_per_round)
    return finalize(config)


def pytest_generate_tests(metafunc):
    """Give a test that asks for a `case` all configurations of its module's METHODS."""
    if "case" not in metafunc.fixturenames:
        return
    cases = [(path.stem, preset) for path in CONFIGS for preset in _presets(path.stem)]
    assert set(QUICK) <= set(cases)
    methods = metafunc.module.METHODS
    cases = [case for case in cases if _module(case[0]).get_config(case[1]).method in methods]
    metafunc.parametrize(
        "case",
        [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in cases],
        ids=lambda case: ":".join(filter(None, case)),
    )


@pytest.fixture(name="smallest")
def _smallest():
    return smallest


@pytest.fixture(scope="session")
def distinct_weights():
    """Makes parameters of a decoder whose distributions differ: with the default scale all of them
    are nearly uniform."""

    def make(config: DecoderConfig):
        tokens = jnp.zeros((1, 2), jnp.int32)
        params = jax.jit(Decoder(config).init)(jax.random.key(0), tokens, jnp.ones_like(tokens))
        return jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params["params"])

    return make


@pytest.fixture(scope="session")
def moved_layers():
    """Makes the trained part of a decoder's parameters, some way from where they started."""

    def make(params, first_trainable_layer: int):
        keys = iter(jax.random.split(jax.random.key(9), 100))
        start = split_trainable(params, first_trainable_layer, train_embeddings=False)
        return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), start)

    return make
