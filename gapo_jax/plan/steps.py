"""The compiled functions of a round as a plan lowers them: shapes of arguments, and FLOPs.

`planned_steps` gives every step of a configuration; `compile.py` compiles them and derives costs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gapo_jax import rng
from gapo_jax.compilation import jit_placed
from gapo_jax.config import Config
from gapo_jax.methods import asks_discriminator, batches_of, has_critic, method_of, sides_of
from gapo_jax.models import (
    DecoderConfig,
    EncoderConfig,
    generation,
)
from gapo_jax.plan.shapes import (
    abstract_state,
    bytes_per_device,
    experience_shapes,
    resident,
    rollout_shapes,
    shape_struct,
)
from gapo_jax.records import JsonObject
from gapo_jax.train.build import (
    Models,
    TrainSteps,
)
from gapo_jax.train.discriminator.steps import TextBatch, discriminator_placement
from gapo_jax.train.forward import PolicyNetworks, PolicySpec
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.train.online.steps import CriticBatch, PolicyBatch
from gapo_jax.train.state import GAPOState


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One compiled function of a round.

    Attributes:
        name: as in the table of `gapo-jax plan`.
        lower: lowers it for its shapes.
        flops: operations that the result needs, on all devices together: two for each
            multiplication of matrices and of attention (causal attention needs half of them), the
            backward pass twice the forward. What rematerialisation repeats is not needed.
        attention_flops: the part of attention in them.
        holds: names of the resident parts (see `shapes.resident`) among its arguments.
        loop: for decoding, the number of turns of its outermost loop, one for each token.
        loop_bytes: what a device has to read in each turn: its part of the weights (without the
            embedding, of which it takes a few rows) and of the cache, which has a column for every
            token of prompt and response from the start.
    """

    name: str
    lower: Callable[[], Any]
    flops: float
    attention_flops: float
    holds: tuple[str, ...]
    loop: int = 0
    loop_bytes: float = 0.0


class Flops:
    """Counts the operations of a network: two for each multiplication."""

    def __init__(self, config: DecoderConfig | EncoderConfig):
        self.config = config
        kv_heads = getattr(config, "num_kv_heads", config.num_heads)
        width = config.num_heads * config.head_dim
        attention = config.d_model * (2 * width + 2 * kv_heads * config.head_dim)
        self.layer = attention + (3 if config.gated else 2) * config.d_model * config.d_ff
        self.width = width

    def layers(self, rows: int, length: int, count: int) -> tuple[float, float]:
        """Return the operations of `count` layers in a forward pass: (all, those of attention)."""
        windows = getattr(self.config, "windows", ())
        causal = isinstance(self.config, DecoderConfig)
        window = max(windows) if windows and min(windows) > 0 else 0
        seen = length / 2 if causal else length
        if window:
            seen = min(seen, window if causal else 2 * window + 1)
        attention = 4.0 * rows * length * seen * self.width * count
        return 2.0 * rows * length * self.layer * count + attention, attention

    def head(self, rows: int, length: int) -> float:
        """Return the operations of the logits of `rows` x `length` tokens."""
        return 2.0 * rows * length * self.config.d_model * self.config.vocab_size


def planned_steps(config: Config, models: Models) -> tuple[list[PlannedStep], JsonObject]:
    """Return the steps of a round and the parts that are resident (see `shapes.resident`)."""
    compiled, state = abstract_state(config, models)
    parts = resident(models, state)
    prompt, response = config.data.max_prompt_tokens, config.sampling.max_new_tokens
    steps: list[PlannedStep] = []
    method = method_of(config)
    if method.loop == "online":
        steps += _sampling_steps(config, models, prompt, response)
        steps += _online_steps(config, models, compiled, state, prompt, response)
    elif method.trains == "policy":
        steps.append(_offline_step(config, models, compiled, state, prompt))
    if method.trains == "discriminator" or asks_discriminator(config):
        steps += _discriminator_steps(config, models, compiled, state)
    return steps, parts


def _sampling_steps(
    config: Config, models: Models, prompt: int, response: int
) -> list[PlannedStep]:
    place, decoder, rows = models.decoding, models.decoder.config, config.sampling.batch_size
    if config.sampling.weights == "bfloat16":
        decoder = dataclasses.replace(decoder, dtype="bfloat16")
    prompts = rows // config.ppo.samples_per_prompt
    dtype = jnp.dtype(decoder.dtype)
    weights = place.abstract(_sampled_weights(config, models.ref_params, dtype))
    tokens = place.abstract_rows(shape_struct(prompts, prompt, dtype=jnp.int32))
    keys = place.abstract_rows(rng.key_shape(rows))
    count, layers = Flops(decoder), decoder.num_layers
    whole, attention = count.layers(prompts, prompt, layers)
    prefill = jit_placed(
        lambda params, tokens, mask: generation.prefill(params, decoder, tokens, mask, place)[0],
        place,
        keep="rows",
        rows=(1, 2),
    )
    seen = prompt + response / 2
    decode = 4.0 * rows * response * seen * count.width * layers
    read = {name: part for name, part in weights.items() if name not in ("embed", "position")}
    if "lm_head" not in read:
        read["embed"] = weights["embed"]
    parts = generation.head_parts(decoder, place)
    columns = prompts * prompt + rows * response
    heads = max(decoder.num_kv_heads, parts) / parts
    column = 2 * layers * heads * decoder.head_dim * dtype.itemsize
    cache = columns * column / place.row_parts
    each = 2.0 * rows * response * count.layer * layers + count.head(rows, response)
    # A jitted function; its annotation says a plain one.
    sample: Any = models.sample_rollouts or models.sample
    return [
        PlannedStep(
            "prefill", lambda: prefill.lower(weights, tokens, tokens), whole, attention, ()
        ),
        PlannedStep(
            "decode",
            lambda: sample.lower(weights, tokens, tokens, keys, 1.0),
            whole + each + decode,
            0.0,
            (),
            loop=response,
            loop_bytes=bytes_per_device(read) + cache,
        ),
    ]


def _sampled_weights(config: Config, params: Any, dtype: jnp.dtype) -> Any:
    """Return the shapes of the weights that rollouts are sampled with."""
    if config.sampling.weights == "int8":
        params = jax.eval_shape(generation.quantised, params)

    def as_sampled(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        kept = "norm" in name or "scale" in name or leaf.dtype == jnp.int8
        return shape_struct(*leaf.shape, dtype=leaf.dtype if kept else dtype)

    return jax.tree_util.tree_map_with_path(as_sampled, params)


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
    score, policy_step, critic_step = _lowerable(compiled, "score", "policy", "critic")
    scored = place.abstract_rows(score.shapes(networks, rollout))
    experience = experience_shapes(config, place, rollout, critic is not None)
    count, length = Flops(spec.config), prompt + response
    upper = spec.config.num_layers - spec.first_trainable_layer
    lower_all, lower_attention = count.layers(size, length, spec.first_trainable_layer)
    upper_all, upper_attention = count.layers(size, length, upper)
    head = count.head(size, response)
    passes = 3 if spec.critic == "decoder" else 2
    trains_head = config.model.train_embeddings and not config.lora.rank
    trained = PolicyBatch(experience, scored.frozen_hidden_BTD, jnp.float32(0.1))
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
            lambda: policy_step.lower(state.policy, trained, models.ref_params, None),
            _backward(config, spec) * upper_all + (3 if trains_head else 2) * head,
            3 * upper_attention,
            ("reference", "policy"),
        ),
    ]
    if has_critic(config):
        batch = CriticBatch(experience, scored.features_BRD, scored.frozen_hidden_BTD)
        own_layers = spec.critic == "decoder"  # else a head on the policy's hidden states
        flops = 3 * upper_all if own_layers else 6.0 * size * response * spec.config.d_model
        attention = 3 * upper_attention if own_layers else 0.0
        lower = functools.partial(critic_step.lower, state.critic, batch)
        steps.append(PlannedStep("critic_step", lower, flops, attention, ("critic",)))
    return steps


def _lowerable(compiled: TrainSteps, *names: str) -> list[Any]:
    """Return steps as what they are, jitted functions; their annotations say plain ones."""
    return [getattr(compiled, name) for name in names]


def _backward(config: Config, spec: PolicySpec) -> float:
    """Return the cost of a forward and backward pass, as a multiple of the forward pass.

    It is 3, or 2 where the matrices have no gradient (the adapters themselves cost little).
    """
    return 2.0 if config.lora.rank else 3.0


def _offline_step(
    config: Config, models: Models, compiled: TrainSteps, state: GAPOState, prompt: int
) -> PlannedStep:
    spec, place = models.spec, models.spec.place
    layout, batches = method_of(config).layout, batches_of(config)
    size = config.offline.batch_size * sides_of(config)
    response = config.offline.max_response_tokens
    rows = rollout_shapes(size, prompt, response)
    floats = shape_struct(size)
    batch = OfflineBatch(
        rows=rows,
        mismatched=rows if layout == "halves" else None,
        condition=rows if layout == "conditions" else None,
        rewards_B=None if batches == "samples" else floats,
        ref_B=floats if batches == "refinements" else None,
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


def _discriminator_steps(
    config: Config, models: Models, compiled: TrainSteps, state: GAPOState
) -> list[PlannedStep]:
    place, size = (
        discriminator_placement(config, models.spec.place),
        config.discriminator.batch_size,
    )
    length = config.discriminator.max_tokens
    ids = shape_struct(size, length, dtype=jnp.int32)
    batch = place.abstract_rows(
        TextBatch(
            tokens_BT=ids,
            mask_BT=ids,
            type_ids_BT=ids,
            targets_B=shape_struct(size),
            weights_B=shape_struct(size),
            classes_B=shape_struct(size, dtype=jnp.int32),
        ),
    )
    texts = batch.tokens_BT, batch.mask_BT, batch.type_ids_BT
    network, key = (
        state.discriminator,
        place.abstract(rng.key_shape(), "whole"),
    )
    disc_score, disc_update = _lowerable(compiled, "disc_score", "disc_update")
    shape = models.discriminator.config
    whole, attention = Flops(shape).layers(size, length, shape.num_layers)
    return [
        PlannedStep(
            "disc_score",
            lambda: disc_score.lower(network.params, *texts),
            whole,
            attention,
            ("discriminator",),
        ),
        PlannedStep(
            "disc_step",
            lambda: disc_update.lower(network, batch, key),
            3 * whole,
            3 * attention,
            ("discriminator",),
        ),
    ]
