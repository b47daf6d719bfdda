"""`config.sampling.weights`: which sampler and which weights rollouts take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.config import finalize, presets
from gapo_jax.models import generation
from gapo_jax.train.build import build_models


def models_of(weights: str, method: str = "gapo"):
    config = presets.tiny(method)
    config.sampling.weights = weights
    return build_models(finalize(config))


def test_the_same_weights_are_handed_on() -> None:
    models = models_of("same")
    assert models.sample_rollouts is None
    assert models.for_rollouts(models.ref_params) is models.ref_params


def test_int8_is_made_of_the_policy_for_the_same_sampler() -> None:
    models = models_of("int8")
    assert models.sample_rollouts is None
    made, wanted = models.for_rollouts(models.ref_params), generation.quantised(models.ref_params)
    kernel = made["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jnp.int8
    np.testing.assert_array_equal(kernel, wanted["layers"]["mlp"]["up"]["kernel"])
    assert models.for_sampling(models.ref_params) is models.ref_params  # evaluation's


def test_bfloat16_has_a_sampler_of_its_own() -> None:
    models = models_of("bfloat16")
    assert models.sample_rollouts is not None and models.sample_rollouts is not models.sample
    made = models.for_rollouts(models.ref_params)
    dtypes = {
        "norm" in jax.tree_util.keystr(path): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(made)
    }
    assert dtypes == {True: jnp.float32, False: jnp.bfloat16}


def test_methods_without_rollouts_refuse_it() -> None:
    with pytest.raises(ValueError, match="config.sampling.weights='int8' is for the rollouts"):
        models_of("int8", "dpo")
