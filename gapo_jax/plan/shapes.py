"""Shapes in place of the arrays of a run: what a plan compiles with, and what a device holds.

Nothing is allocated, and no device of the planned machine is needed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax import rng
from gapo_jax.config import Config
from gapo_jax.models import (
    Decoder,
    DecoderConfig,
    Discriminator,
    EncoderConfig,
    RewardModel,
)
from gapo_jax.models.hf.known_shapes import shape_of
from gapo_jax.records import JsonObject
from gapo_jax.sharding import Placement
from gapo_jax.train.build import (
    Models,
    TrainSteps,
    assemble_models,
    build_steps,
    fresh_state,
)
from gapo_jax.train.discriminator.steps import discriminator_placement
from gapo_jax.train.sources import source
from gapo_jax.train.state import GAPOState
from gapo_jax.train.toy_models import TINY, TOY_MODELS
from gapo_jax.types import Experience, Rollout


def abstract_models(config: Config, place: Placement) -> Models:
    """Return the models of a run with shapes for weights; only `config.json` files are read.

    Raises:
        FileNotFoundError, ValueError: the shape of a network is unknown.
    """
    key, tokens = rng.key_shape(), jnp.zeros((1, 2), jnp.int32)

    def shapes(module: Any, place: Placement) -> Any:
        made = jax.eval_shape(module.init, key, tokens, tokens)["params"]
        return place.abstract(made)

    name, disc_name = config.model.generator, config.model.discriminator
    # A plan reads nothing but the special tokens of a tokenizer, so any tokenizer will do.
    shape, tokenizer = TOY_MODELS.get(name, TOY_MODELS[TINY]).generator()
    shape = shape if name in TOY_MODELS else shape_of(source(name))
    assert isinstance(shape, DecoderConfig), f"{name} is no decoder"
    decoder = Decoder(dataclasses.replace(shape, dtype=config.model.dtype))
    disc_shape, words = TOY_MODELS.get(disc_name, TOY_MODELS[TINY]).discriminator()
    disc_shape = disc_shape if disc_name in TOY_MODELS else shape_of(source(disc_name))
    options: Any = {"dtype": config.model.dtype, "remat": config.model.remat}
    if isinstance(disc_shape, EncoderConfig):
        options["dropout"] = config.discriminator.dropout
        options["attention"] = config.model.attention
        discriminator: Any = Discriminator(
            dataclasses.replace(disc_shape, **options), pooling=config.model.pooling
        )
    else:
        discriminator = RewardModel(dataclasses.replace(disc_shape, **options))
    return assemble_models(
        config,
        place,
        (decoder, shapes(decoder, place), tokenizer),
        (discriminator, shapes(discriminator, discriminator_placement(config, place)), words),
    )


def abstract_state(config: Config, models: Models) -> tuple[TrainSteps, GAPOState]:
    """Return (steps, state) of a run with shapes for arrays."""
    steps = build_steps(config, models, num_pairs=max(1, config.data.pairs))
    make = functools.partial(fresh_state, config, models.spec, steps.optimizers)
    state = jax.eval_shape(make, models.ref_params, models.disc_init_params)
    place = models.spec.place
    discriminator_place = discriminator_placement(config, place)
    abstract = place.abstract(state)
    networks = discriminator_place.abstract((state.discriminator, state.disc_average))
    return steps, abstract.replace(discriminator=networks[0], disc_average=networks[1])


def resident(models: Models, state: GAPOState) -> JsonObject:
    """Return what lives through a whole round, by name: weights and train states."""
    parts: dict[str, Any] = {
        "reference": models.ref_params,
        "policy": state.policy,
        "critic": state.critic,
        "discriminator": (state.discriminator, state.disc_average),
    }
    return {name: part for name, part in parts.items() if part is not None}


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that shapes with their places take on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        total += int(np.prod(shape)) * leaf.dtype.itemsize
    return total


def shape_struct(*sizes: int, dtype: Any = jnp.float32) -> Any:
    """Return the shape of an array without a place."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def rollout_shapes(rows: int, prompt: int, response: int) -> Rollout:
    """Return the shapes of a rollout."""
    ids = functools.partial(shape_struct, dtype=jnp.int32)
    return Rollout(
        tokens_BT=ids(rows, prompt + response),
        mask_BT=ids(rows, prompt + response),
        response_mask_BR=ids(rows, response),
        logprobs_BR=shape_struct(rows, response),
    )


def experience_shapes(
    config: Config, place: Placement, rollout: Rollout, with_critic: bool
) -> Experience:
    """Return the shapes of an experience of the rows of a rollout."""
    rows, response = rollout.response_mask_BR.shape
    floats = place.abstract_rows(shape_struct(rows, response))
    return Experience(
        tokens_BT=rollout.tokens_BT,
        mask_BT=rollout.mask_BT,
        response_mask_BR=rollout.response_mask_BR,
        old_logprobs_BR=floats,
        ref_logprobs_BR=floats,
        advantages_BR=floats,
        values_BR=floats if with_critic else None,
        returns_BR=floats if with_critic else None,
        rewards_B=place.abstract_rows(shape_struct(rows)),
        sampled_logprobs_BR=None if config.sampling.weights == "same" else floats,
    )
