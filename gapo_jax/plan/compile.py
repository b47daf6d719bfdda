"""The steps of a run as a described machine would compile them: shapes in place of all arrays.

Nothing is allocated and no device of that machine is needed. `planned_steps` gives every compiled
function of a round with the shapes (and places) of its arguments; `scripts/plan.py` compiles them
and says what they cost.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax.config import OFFLINE_METHODS, Config
from gapo_jax.config.online import asks_discriminator, has_critic, is_adversarial
from gapo_jax.models import (
    Decoder,
    DecoderConfig,
    Discriminator,
    EncoderConfig,
    RewardModel,
    generation,
)
from gapo_jax.models.hf.known_shapes import shape_of
from gapo_jax.sharding import Placement
from gapo_jax.train.build import (
    Models,
    TrainSteps,
    assemble_models,
    build_steps,
    fresh_state,
)
from gapo_jax.train.discriminator.steps import TextBatch, discriminator_placement
from gapo_jax.train.forward import PolicyNetworks, PolicySpec
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.train.online.steps import CriticBatch, PolicyBatch
from gapo_jax.train.sources import source
from gapo_jax.train.state import GAPOState
from gapo_jax.train.toy_models import TINY, TOY_MODELS
from gapo_jax.types import Experience, Rollout


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One compiled function of a round.

    `lower()` lowers it for its shapes. `flops` are those that the result needs on all devices
    together: two for each multiplication of the matrices and of attention (of which a causal one
    needs half), the backward pass twice the forward; what rematerialisation repeats is not needed.
    `attention_flops` are the part of attention. `holds` names the resident parts (see `resident`)
    that are among its arguments. Of the decoder, `loop` is the number of turns of its outermost
    loop, one a token, and `loop_bytes` what a device has to read in each: its part of the weights
    (without the embedding, of which it takes a few rows) and of the cache, which has a column for
    every token of prompt and response from the start.
    """

    name: str
    lower: Callable[[], Any]
    flops: float
    attention_flops: float
    holds: tuple[str, ...]
    loop: int = 0
    loop_bytes: float = 0.0


def abstract_models(config: Config, place: Placement) -> Models:
    """Return the players of a run with shapes for weights; nothing is read but `config.json`.

    Raises:
        FileNotFoundError, ValueError: the shape of a network is not to be had.
    """
    key, tokens = jax.random.key(0), jnp.zeros((1, 2), jnp.int32)

    def shapes(module: Any, place: Placement) -> Any:
        made = jax.eval_shape(module.init, key, tokens, tokens)["params"]
        return place.abstract(made)

    name, judge_name = config.model.generator, config.model.discriminator
    # Of a plan's tokenizers only the special tokens are read: any will do.
    shape, tokenizer = TOY_MODELS.get(name, TOY_MODELS[TINY]).generator()
    shape = shape if name in TOY_MODELS else shape_of(source(name))
    assert isinstance(shape, DecoderConfig), f"{name} is no decoder"
    decoder = Decoder(dataclasses.replace(shape, dtype=config.model.dtype))
    judge_shape, words = TOY_MODELS.get(judge_name, TOY_MODELS[TINY]).discriminator()
    judge_shape = judge_shape if judge_name in TOY_MODELS else shape_of(source(judge_name))
    options: Any = {"dtype": config.model.dtype, "remat": config.model.remat}
    if isinstance(judge_shape, EncoderConfig):
        options["dropout"] = config.discriminator.dropout
        options["attention"] = config.model.attention
        judge: Any = Discriminator(
            dataclasses.replace(judge_shape, **options), pooling=config.model.pooling
        )
    else:
        judge = RewardModel(dataclasses.replace(judge_shape, **options))
    return assemble_models(
        config,
        place,
        (decoder, shapes(decoder, place), tokenizer),
        (judge, shapes(judge, discriminator_placement(config, place)), words),
    )


def abstract_state(config: Config, models: Models) -> tuple[TrainSteps, GAPOState]:
    """Return (steps, state) of a run with shapes for arrays."""
    steps = build_steps(config, models, num_pairs=max(1, config.data.pairs))
    make = functools.partial(fresh_state, config, models.spec, steps.optimizers)
    state = jax.eval_shape(make, models.ref_params, models.disc_init_params)
    place = models.spec.place
    judging = discriminator_placement(config, place)
    found = place.abstract(state)
    networks = judging.abstract((state.discriminator, state.disc_average))
    return steps, found.replace(discriminator=networks[0], disc_average=networks[1])


def resident(config: Config, models: Models, state: GAPOState) -> dict[str, Any]:
    """Return what lives through a whole round, by name: weights, networks and their optimisers."""
    parts: dict[str, Any] = {
        "reference": models.ref_params,
        "policy": state.policy,
        "critic": state.critic,
        "discriminator": (state.discriminator, state.disc_average),
    }
    if config.method in OFFLINE_METHODS and config.method != "discriminator":
        parts.pop("critic")
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


def _shape(*sizes: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype)


def rollout_shapes(rows: int, prompt: int, response: int) -> Rollout:
    """Return the shapes of a rollout."""
    ids = functools.partial(_shape, dtype=jnp.int32)
    return Rollout(
        tokens_BT=ids(rows, prompt + response),
        mask_BT=ids(rows, prompt + response),
        response_mask_BR=ids(rows, response),
        logprobs_BR=_shape(rows, response),
    )


class Flops:
    """Multiplications of the networks, counted in operations (two each)."""

    def __init__(self, config: DecoderConfig | EncoderConfig):
        self.config = config
        kv_heads = getattr(config, "num_kv_heads", config.num_heads)
        width = config.num_heads * config.head_dim
        attention = config.d_model * (2 * width + 2 * kv_heads * config.head_dim)
        self.layer = attention + (3 if config.gated else 2) * config.d_model * config.d_ff
        self.width = width

    def layers(self, rows: int, length: int, count: int) -> tuple[float, float]:
        """Return (all, attention's) operations of `count` layers, forward."""
        windows = getattr(self.config, "windows", ())
        causal = isinstance(self.config, DecoderConfig)
        window = max(windows) if windows and min(windows) > 0 else 0
        seen = length / 2 if causal else length
        if window:
            seen = min(seen, window if causal else 2 * window + 1)
        attention = 4.0 * rows * length * seen * self.width * count
        return 2.0 * rows * length * self.layer * count + attention, attention

    def head(self, rows: int, length: int) -> float:
        """Return the operations of the logits of so many tokens."""
        return 2.0 * rows * length * self.config.d_model * self.config.vocab_size


def planned_steps(config: Config, models: Models) -> tuple[list[PlannedStep], dict[str, Any]]:
    """Return (the steps of a round, what is resident), see `PlannedStep` and `resident`."""
    compiled, state = abstract_state(config, models)
    parts = resident(config, models, state)
    prompt, response = config.data.max_prompt_tokens, config.sampling.max_new_tokens
    steps: list[PlannedStep] = []
    if config.method not in OFFLINE_METHODS:
        steps += _sampling_steps(config, models, prompt, response)
        steps += _online_steps(config, models, compiled, state, prompt, response)
    elif config.method != "discriminator":
        steps.append(_offline_step(config, models, compiled, state, prompt))
    judged = config.method == "discriminator" or (
        config.method not in OFFLINE_METHODS and asks_discriminator(config)
    )
    if judged:
        steps += _judge_steps(config, models, compiled, state)
    return steps, parts


def _sampling_steps(
    config: Config, models: Models, prompt: int, response: int
) -> list[PlannedStep]:
    place, decoder, rows = models.decoding, models.decoder.config, config.sampling.batch_size
    prompts = rows // config.ppo.samples_per_prompt
    dtype = jnp.dtype(decoder.dtype)
    weights = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _shape(
            *leaf.shape,
            dtype=leaf.dtype if "norm" in jax.tree_util.keystr(path) else dtype,
        ),
        models.ref_params,
    )
    weights = place.abstract(weights)
    tokens = place.abstract_rows(_shape(prompts, prompt, dtype=jnp.int32))
    keys = place.abstract_rows(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)))
    count, found = Flops(decoder), decoder.num_layers
    whole, attention = count.layers(prompts, prompt, found)
    jitted_sample: Any = models.sample
    prefill = place.jit(
        lambda params, tokens, mask: generation.prefill(params, decoder, tokens, mask)[0],
        keep="rows",
        rows=(1, 2),
    )
    seen = prompt + response / 2
    decode = 4.0 * rows * response * seen * count.width * found
    read = {name: part for name, part in weights.items() if name not in ("embed", "position")}
    if "lm_head" not in read:
        read["embed"] = weights["embed"]
    parts = math.gcd(place.mesh.shape["tensor"], decoder.num_kv_heads) if place.mesh else 1
    columns = prompts * prompt + rows * response
    column = 2 * found * decoder.num_kv_heads * decoder.head_dim * dtype.itemsize
    cache = columns * column / parts / place.row_parts
    each = 2.0 * rows * response * count.layer * found + count.head(rows, response)
    return [
        PlannedStep(
            "prefill", lambda: prefill.lower(weights, tokens, tokens), whole, attention, ()
        ),
        PlannedStep(
            "decode",
            lambda: jitted_sample.lower(weights, tokens, tokens, keys, 1.0),
            whole + each + decode,
            0.0,
            (),
            loop=response,
            loop_bytes=bytes_per_device(read) + cache,
        ),
    ]


def _online_steps(
    config: Config,
    models: Models,
    compiled: TrainSteps,
    state: GAPOState,
    prompt: int,
    response: int,
) -> list[PlannedStep]:
    spec, place, size = models.spec, models.spec.place, config.ppo.minibatch_size
    rollout = place.abstract_rows(rollout_shapes(size, prompt, response))
    critic = None if state.critic is None else state.critic.params
    networks = PolicyNetworks(models.ref_params, state.policy.params, critic)
    score: Any = compiled.score
    policy_step: Any = compiled.policy
    critic_step: Any = compiled.critic
    scored = place.abstract_rows(score.shapes(networks, rollout))
    experience = _experience(place, rollout, critic is not None)
    count, length = Flops(spec.config), prompt + response
    upper = spec.config.num_layers - spec.first_trainable_layer
    lower_all, lower_attention = count.layers(size, length, spec.first_trainable_layer)
    upper_all, upper_attention = count.layers(size, length, upper)
    head = count.head(size, response)
    passes = 3 if spec.critic == "decoder" else 2
    trains_head = config.model.train_embeddings and not config.lora.rank
    coefficient = jnp.float32(0.1)
    steps = [
        PlannedStep(
            "score",
            lambda: score.lower(networks, rollout),
            lower_all + passes * upper_all + 2 * head,
            lower_attention + passes * upper_attention,
            ("reference", "policy", "critic"),
        ),
        PlannedStep(
            "policy_step",
            lambda: policy_step.lower(
                state.policy,
                PolicyBatch(experience, scored.frozen_hidden_BTD, coefficient),
                models.ref_params,
                None,
            ),
            _backward(config, spec) * upper_all + (3 if trains_head else 2) * head,
            3 * upper_attention,
            ("reference", "policy"),
        ),
    ]
    if has_critic(config):
        trunk = spec.critic == "decoder"
        steps.append(
            PlannedStep(
                "critic_step",
                lambda: critic_step.lower(
                    state.critic,
                    CriticBatch(experience, scored.features_BRD, scored.frozen_hidden_BTD),
                ),
                3 * upper_all if trunk else 6.0 * size * response * spec.config.d_model,
                3 * upper_attention if trunk else 0.0,
                ("critic",),
            )
        )
    return steps


def _experience(place: Placement, rollout: Rollout, with_critic: bool) -> Experience:
    """Return the shapes of an experience of the rows of a rollout."""
    rows, response = rollout.response_mask_BR.shape
    floats = place.abstract_rows(_shape(rows, response))
    return Experience(
        tokens_BT=rollout.tokens_BT,
        mask_BT=rollout.mask_BT,
        response_mask_BR=rollout.response_mask_BR,
        old_logprobs_BR=floats,
        ref_logprobs_BR=floats,
        advantages_BR=floats,
        values_BR=floats if with_critic else None,
        returns_BR=floats if with_critic else None,
        rewards_B=place.abstract_rows(_shape(rows)),
    )


def _backward(config: Config, spec: PolicySpec) -> float:
    """Return the cost of forward and backward in forwards: 3, or 2 where the matrices have no
    gradient (adapters, whose own cost is small)."""
    return 2.0 if config.lora.rank else 3.0


def _offline_step(
    config: Config, models: Models, compiled: TrainSteps, state: GAPOState, prompt: int
) -> PlannedStep:
    spec, place = models.spec, models.spec.place
    sides = {"sft": 1, "inverse_q": 1, "rpo": config.rpo.responses}.get(config.method, 2)
    size = config.offline.batch_size * sides
    response = config.offline.max_response_tokens
    rows = rollout_shapes(size, prompt, response)
    floats = _shape(size)
    batch = OfflineBatch(
        rows=rows,
        other=rows if config.method in ("kto", "inverse_q") else None,
        rewards_N=floats if config.method == "rpo" else None,
        ref_N=floats if config.method == "sgpo" else None,
    )
    batch = place.abstract_rows(batch)
    offline_step: Any = compiled.offline
    count, length = Flops(spec.config), prompt + response
    lower, attention = count.layers(size, length, spec.first_trainable_layer)
    upper, more = count.layers(size, length, spec.config.num_layers - spec.first_trainable_layer)
    return PlannedStep(
        "policy_step",
        lambda: offline_step.lower(state.policy, batch, models.ref_params),
        lower + _backward(config, spec) * upper + 2 * count.head(size, response),
        attention + 3 * more,
        ("reference", "policy"),
    )


def _judge_steps(
    config: Config, models: Models, compiled: TrainSteps, state: GAPOState
) -> list[PlannedStep]:
    place, size = (
        discriminator_placement(config, models.spec.place),
        config.discriminator.batch_size,
    )
    length = config.discriminator.max_tokens
    ids = _shape(size, length, dtype=jnp.int32)
    batch = place.abstract_rows(
        TextBatch(
            tokens_BT=ids,
            mask_BT=ids,
            type_ids_BT=ids,
            targets_B=_shape(size),
            weights_B=_shape(size),
            classes_B=_shape(size, dtype=jnp.int32),
        ),
    )
    texts = batch.tokens_BT, batch.mask_BT, batch.type_ids_BT
    judge, key = state.discriminator, place.abstract_whole(jax.eval_shape(jax.random.key, 0))
    disc_score: Any = compiled.disc_score
    disc_update: Any = compiled.disc_update
    shape = models.discriminator.config
    whole, attention = Flops(shape).layers(size, length, shape.num_layers)
    steps = [
        PlannedStep(
            "disc_score",
            lambda: disc_score.lower(judge.params, *texts),
            whole,
            attention,
            ("discriminator",),
        )
    ]
    if is_adversarial(config) or config.method == "discriminator" or asks_discriminator(config):
        steps.append(
            PlannedStep(
                "disc_step",
                lambda: disc_update.lower(judge, batch, key),
                3 * whole,
                3 * attention,
                ("discriminator",),
            )
        )
    return steps
