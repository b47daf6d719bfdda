"""Schedules that last the whole run, decay masks, frozen parameters, and the network's step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import OptimConfig
from gapo_jax.train import optimizers
from gapo_jax.train.state import TrainState, first_trainable_layer, relative_change


def test_schedules_are_sized_for_the_whole_run():
    # The official release sizes them for one round; later rounds run at the floor (defect 28).
    settings = OptimConfig(learning_rate=1.0, warmup_steps=10, schedule="cosine")
    rate = optimizers.learning_rate(settings, total_steps=110)
    assert float(rate(0)) == 0.0
    assert float(rate(10)) == 1.0
    np.testing.assert_allclose(float(rate(60)), 0.55, atol=1e-6)
    np.testing.assert_allclose(float(rate(110)), 0.1, atol=1e-6)
    linear = optimizers.learning_rate(OptimConfig(learning_rate=1.0, schedule="linear"), 100)
    np.testing.assert_allclose(float(linear(50)), 0.55, atol=1e-6)
    assert float(optimizers.learning_rate(OptimConfig(learning_rate=0.5), 10)(99)) == 0.5


def test_the_discriminators_rate_falls_to_that_of_the_rounds_and_stays():
    rate = optimizers.warmup_then_rounds(1.0, 0.2, 100)
    assert float(rate(0)) == 0.0
    assert float(rate(10)) == 1.0
    np.testing.assert_allclose(float(rate(55)), 0.6, atol=1e-6)
    for step in (100, 500):
        np.testing.assert_allclose(float(rate(step)), 0.2, atol=1e-6)
    without_warmup = optimizers.warmup_then_rounds(1.0, 0.2, 0)
    assert [float(without_warmup(step)) for step in (0, 1, 9)] == pytest.approx([0.2] * 3)


def _params():
    return {
        "encoder": {"embed": {"word": {"embedding": jnp.ones((3, 2))}}},
        "layers": {"norm": {"scale": jnp.ones((2, 2))}, "mlp": {"kernel": jnp.ones((2, 2))}},
        "head": {
            "up": {"kernel": jnp.ones((2, 2))},
            "out": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
        },
    }


def test_weight_decay_spares_norms_biases_and_the_vector_of_a_head():
    mask = optimizers.decay_mask(_params())
    assert mask["layers"]["mlp"]["kernel"]
    assert not mask["layers"]["norm"]["scale"]
    assert mask["head"]["up"]["kernel"]
    assert not mask["head"]["out"]["kernel"] and not mask["head"]["out"]["bias"]
    # Names that only look alike: a language model's head, an adapter of rank one.
    others = {"lm_head": {"kernel": jnp.ones((2, 3))}, "q": {"a": jnp.ones((2, 1))}}
    assert all(jax.tree.leaves(optimizers.decay_mask(others)))


def test_frozen_parameters_stand_still_without_moments_or_gradients():
    frozen = r"encoder/embed/"
    schedule = optimizers.learning_rate(OptimConfig(learning_rate=0.1), 10)
    optimizer = optimizers.make_optimizer(OptimConfig(weight_decay=0.1), schedule, frozen)
    params = _params()
    network = TrainState.create(params, optimizer)
    moved = network.apply_gradients(jax.tree.map(jnp.ones_like, params), optimizer)
    word = ("encoder", "embed", "word", "embedding")
    before, after = params, moved.params
    for key in word:
        before, after = before[key], after[key]
    np.testing.assert_array_equal(before, after)
    assert (np.asarray(moved.params["layers"]["mlp"]["kernel"]) < 1).all()
    assert int(moved.step) == 1
    assert sum(leaf.shape == (3, 2) for leaf in jax.tree.leaves(network.opt_state)) == 0

    def loss(tree):
        tree = optimizers.stop_gradients(tree, frozen)
        return sum(leaf.sum() for leaf in jax.tree.leaves(tree))

    gradients = jax.grad(loss)(params)
    assert not np.asarray(gradients["encoder"]["embed"]["word"]["embedding"]).any()
    assert np.asarray(gradients["head"]["out"]["bias"]).all()


def test_gradients_are_clipped_by_their_norm_over_all_parameters():
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    gradients = {"a": jnp.full(3, 4.0), "b": jnp.full((2, 2), -6.0)}
    norm = np.sqrt(3 * 16 + 4 * 36)
    settings = OptimConfig(b1=0.0, b2=0.0, eps=1.0, clip_norm=2.0)
    optimizer = optimizers.make_optimizer(settings, lambda _: 1.0)
    moved = TrainState.create(params, optimizer).apply_gradients(gradients, optimizer).params
    # Without memory Adam's step is g / (|g| + eps), which still shows the size of g.
    for name, value in (("a", 4.0), ("b", -6.0)):
        clipped = value * 2.0 / norm
        np.testing.assert_allclose(moved[name], -clipped / (abs(clipped) + 1.0), rtol=1e-5)


def test_adafactor_keeps_little_and_steps_by_the_sign_at_first():
    """At its first step the second moment is the squared gradient itself (arXiv 1804.04235, with
    beta2 = 1 - t^-0.8), so each entry moves by the learning rate; decay is scaled by it as well."""
    settings = OptimConfig(
        optimizer="adafactor", learning_rate=0.1, weight_decay=0.5, clip_norm=100.0
    )
    optimizer = optimizers.make_optimizer(settings, optimizers.learning_rate(settings, 10))
    params = {"big": {"kernel": jnp.ones((256, 128))}, "norm": {"scale": jnp.ones(3)}}
    network = TrainState.create(params, optimizer)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.opt_state)) < 256 + 128 + 16
    gradients = {
        "big": {"kernel": jnp.full((256, 128), -2.0)},
        "norm": {"scale": jnp.array([1.0, -3.0, 2.0])},
    }
    moved = network.apply_gradients(gradients, optimizer).params
    np.testing.assert_allclose(moved["big"]["kernel"], 1 + 0.1 * (1 - 0.5), rtol=1e-5)
    np.testing.assert_allclose(moved["norm"]["scale"], [0.9, 1.1, 0.9], rtol=1e-5)


def test_offline_methods_train_one_network_on_schedules_of_the_whole_run():
    from gapo_jax.config.presets import tiny
    from gapo_jax.train.build import make_optimizers

    params = {"layers": {"kernel": jnp.ones((4, 4))}}

    def moments(optimizer):
        return sum(leaf.size for leaf in jax.tree.leaves(optimizer.init(params)))

    for method, trained in (("dpo", "policy"), ("discriminator", "discriminator")):
        made = make_optimizers(tiny(method), 5)
        assert [name for name in made if moments(made[name])] == [trained]
    # SGPO: one rate for the improver's rounds, then a schedule of its own for the rest.
    config = tiny("sgpo")
    config.sgpo.improver_learning_rate, config.offline.optim.learning_rate = 0.25, 0.5
    config.offline.optim.warmup_steps, config.offline.optim.schedule = 0, "linear"
    optimizer = make_optimizers(config, 5)["policy"]
    network, sizes = TrainState.create({"a": jnp.zeros(())}, optimizer), []
    for _ in range(config.rounds * config.offline.steps_per_round):
        after = network.apply_gradients({"a": jnp.float32(-1.0)}, optimizer)
        sizes.append(float(after.params["a"] - network.params["a"]))
        network = after
    # The gradient is constant, so Adam's step is the rate itself.
    np.testing.assert_allclose(sizes[:4], 0.25, rtol=1e-4)
    np.testing.assert_allclose(sizes[4:], np.linspace(0.5, 0.05, 9)[:8], rtol=1e-4)


def test_first_trained_layer():
    from gapo_jax.config import ModelConfig

    assert first_trainable_layer(30, ModelConfig(trainable_layers=12)) == 18
    assert first_trainable_layer(30, ModelConfig()) == 0
    with pytest.raises(ValueError, match="trainable_layers=31"):
        first_trainable_layer(30, ModelConfig(trainable_layers=31))


def test_relative_change():
    before = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    after = {"a": jnp.array([3.0]), "b": jnp.array([4.5])}
    assert relative_change(before, after) == pytest.approx(0.1)
    assert relative_change(before, before) == 0.0
