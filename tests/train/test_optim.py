"""Schedules that last the whole run, decay masks, frozen parameters, and the network's step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import OptimConfig
from gapo_jax.train import optim
from gapo_jax.train.state import Network, first_trained_layer, relative_change


def test_schedules_are_sized_for_the_whole_run():
    # The official release sizes them for one round; later rounds run at the floor (defect 28).
    settings = OptimConfig(learning_rate=1.0, warmup_steps=10, schedule="cosine")
    rate = optim.learning_rate(settings, total_steps=110)
    assert float(rate(0)) == 0.0
    assert float(rate(10)) == 1.0
    np.testing.assert_allclose(float(rate(60)), 0.55, atol=1e-6)
    np.testing.assert_allclose(float(rate(110)), 0.1, atol=1e-6)
    linear = optim.learning_rate(OptimConfig(learning_rate=1.0, schedule="linear"), 100)
    np.testing.assert_allclose(float(linear(50)), 0.55, atol=1e-6)
    assert float(optim.learning_rate(OptimConfig(learning_rate=0.5), 10)(99)) == 0.5


def test_the_discriminators_rate_falls_to_that_of_the_rounds_and_stays():
    rate = optim.warmup_then_rounds(1.0, 0.2, 100)
    assert float(rate(0)) == 0.0
    assert float(rate(10)) == 1.0
    np.testing.assert_allclose(float(rate(55)), 0.6, atol=1e-6)
    for step in (100, 500):
        np.testing.assert_allclose(float(rate(step)), 0.2, atol=1e-6)


def _params():
    return {
        "encoder": {"embed": {"word": {"embedding": jnp.ones((3, 2))}}},
        "layers": {"norm": {"scale": jnp.ones((2, 2))}, "mlp": {"kernel": jnp.ones((2, 2))}},
        "head": {"bias": jnp.ones(2)},
    }


def test_weight_decay_spares_norms_and_biases():
    mask = optim.decay_mask(_params())
    assert mask["layers"]["mlp"]["kernel"]
    assert not mask["layers"]["norm"]["scale"]
    assert not mask["head"]["bias"]


def test_frozen_parameters_stand_still_without_moments_or_gradients():
    frozen = r"encoder/embed/"
    schedule = optim.learning_rate(OptimConfig(learning_rate=0.1), 10)
    optimizer = optim.make_optimizer(OptimConfig(weight_decay=0.1), schedule, frozen)
    params = _params()
    network = Network.create(params, optimizer)
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
        tree = optim.stop_gradients(tree, frozen)
        return sum(leaf.sum() for leaf in jax.tree.leaves(tree))

    gradients = jax.grad(loss)(params)
    assert not np.asarray(gradients["encoder"]["embed"]["word"]["embedding"]).any()
    assert np.asarray(gradients["head"]["bias"]).all()


def test_first_trained_layer():
    from gapo_jax.config import ModelConfig

    assert first_trained_layer(30, ModelConfig(trainable_layers=12)) == 18
    assert first_trained_layer(30, ModelConfig()) == 0
    with pytest.raises(ValueError, match="trainable_layers=31"):
        first_trained_layer(30, ModelConfig(trainable_layers=31))


def test_relative_change():
    before = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    after = {"a": jnp.array([3.0]), "b": jnp.array([4.5])}
    assert relative_change(before, after) == pytest.approx(0.1)
    assert relative_change(before, before) == 0.0
