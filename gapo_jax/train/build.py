"""What is fixed in a run before its first round: networks, compiled steps, the starting state."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from transformers import PreTrainedTokenizerFast

from gapo_jax import rng
from gapo_jax.compilation import decoder_layers_to_unroll, jit_step
from gapo_jax.config import Config, updates_per_round
from gapo_jax.data.chat import set_template_variables
from gapo_jax.methods import (
    asks_discriminator,
    has_critic,
    method_of,
    scores_with_average,
)
from gapo_jax.models import Decoder, DecoderConfig, generation
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream
from gapo_jax.rollout.sampler import RESTRICTIONS, Sampler, make_sampler, restriction_warning
from gapo_jax.sharding import ONE_DEVICE, Placement, make_mesh
from gapo_jax.train.buckets import (
    accept_buckets,
    compile_all_widths,
    cut_rows,
    uncut_rows,
)
from gapo_jax.train.discriminator.steps import (
    TextBatch,
    TextReader,
    disc_score_step,
    disc_update_step,
    discriminator_placement,
)
from gapo_jax.train.forward import (
    PolicyNetworks,
    PolicySpec,
    RolloutLogprobs,
    init_critic,
    score_rollout,
)
from gapo_jax.train.offline.steps import (
    OfflineBatch,
    RowSums,
    make_offline_step,
    make_sum_rows,
)
from gapo_jax.train.online.steps import critic_step, policy_step
from gapo_jax.train.optimizers import (
    freeze_rows,
    frozen_parameters,
    learning_rate,
    make_optimizer,
    path_name,
    warmup_then_rounds,
)
from gapo_jax.train.sources import (
    LoadedDiscriminator,
    LoadedGenerator,
    load_discriminator,
    load_generator,
)
from gapo_jax.train.state import (
    GAPOState,
    TrainState,
    copy_tree,
    first_trainable_layer,
    start_policy,
)
from gapo_jax.types import Metrics, Params, Rollout

log = logging.getLogger("gapo_jax")
Optimizers = dict[str, optax.GradientTransformation]
Update = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class Models:
    """The networks of a run with their tokenizers, and the weights that never change.

    Attributes:
        decoder: the generator's module; `ref_params` its starting weights, which are also the
            reference's; `tokenizer` what it reads and writes with.
        discriminator: the module; `disc_init_params` its starting weights. Of a run that asks none
            it is None, without weights and tokenizer.
        spec: what the generator's steps need to know of it.
        sample: the compiled sampler; `decoding` says where weights lie while it works on them.
        sample_rollouts: the sampler of rollouts, which reads `for_rollouts`, if it is another one;
            `sampling_weights` is `config.sampling.weights`.
    """

    decoder: Decoder
    ref_params: Params
    tokenizer: PreTrainedTokenizerFast
    discriminator: Any
    disc_init_params: Params
    disc_tokenizer: Any
    spec: PolicySpec
    sample: Sampler
    decoding: Placement = ONE_DEVICE
    sample_rollouts: Sampler | None = None
    sampling_weights: str = "same"

    def for_rollouts(self, params: Params) -> Params:
        """Return the generator's parameters as `sample_rollouts` reads them."""
        if self.sampling_weights == "int8":
            return self.decoding.params(_quantise(params))
        if self.sampling_weights == "bfloat16" and not self.decoding.spread:
            return _without_norms(params, "bfloat16")
        return self.for_sampling(params)

    def for_sampling(self, params: Params) -> Params:
        """Return the generator's parameters as `sample` reads them, for the many calls of a round:
        on several devices a copy in the dtype of the computation, split over `tensor` alone."""
        if not self.decoding.spread:
            return params
        dtype = self.decoder.config.dtype
        return self.decoding.params(_without_norms(params, dtype))


@dataclasses.dataclass(frozen=True)
class TrainSteps:
    """The compiled steps of a run, and the optimisers in them by the name of their network.

    `score`, `policy` and `critic` take a batch or one in a bucket (`buckets.Bucketed`); `critic` is
    None for a method without one. `offline` is the generator's update by an offline method, and
    `sum_rows` measures it on rows that are held out.
    """

    optimizers: Optimizers
    score: Callable[[PolicyNetworks, Any], RolloutLogprobs]
    policy: Update
    critic: Update | None
    disc_score: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
    disc_update: Callable[[TrainState, TextBatch, jax.Array], tuple[TrainState, Metrics]]
    offline: Callable[[TrainState, OfflineBatch, Params], tuple[TrainState, Metrics]]
    sum_rows: Callable[[Params, Params, Rollout], RowSums]


def make_optimizers(config: Config, warmup_updates: int) -> Optimizers:
    """Return one optimiser a network, their schedules sized for the whole run."""
    if method_of(config).loop == "offline":
        return offline_optimizers(config, warmup_updates)
    ppo = config.ppo
    minibatches = ppo.trained_rows // ppo.minibatch_size
    policy_updates = config.rounds * ppo.epochs * minibatches
    critic_updates = config.rounds * ppo.critic_epochs * minibatches
    optimizers = {
        "policy": make_optimizer(ppo.optim, learning_rate(ppo.optim, policy_updates)),
        "discriminator": discriminator_optimizer(config, warmup_updates),
    }
    if has_critic(config):
        rates = learning_rate(ppo.critic_optim, critic_updates)
        optimizers["critic"] = make_optimizer(ppo.critic_optim, rates)
    return optimizers


def discriminator_optimizer(config: Config, updates: int) -> optax.GradientTransformation:
    """Return the discriminator's optimiser; `updates` are those of its warm-up."""
    disc = config.discriminator
    rates = warmup_then_rounds(disc.optim.learning_rate, disc.round_learning_rate, updates)
    return optax.chain(
        make_optimizer(disc.optim, rates, frozen_parameters(config)),
        freeze_rows(r"encoder/layers/", disc.frozen_layers),
    )


def offline_optimizers(config: Config, warmup_updates: int) -> Optimizers:
    """Return the optimisers of an offline method; networks that it leaves alone keep no moments."""
    still, total = optax.set_to_zero(), config.rounds * updates_per_round(config)
    method, optim = method_of(config), config.offline.optim
    if method.trains == "discriminator":
        return {"policy": still, "discriminator": discriminator_optimizer(config, total)}
    rates = learning_rate(optim, total)
    if method.first_stage is not None:
        stage_rounds, stage_rate = method.first_stage(method.section_of(config))
        first = stage_rounds * updates_per_round(config)
        rates = optax.join_schedules(
            [optax.constant_schedule(stage_rate), learning_rate(optim, total - first)], [first]
        )
    warmed_up = asks_discriminator(config)
    return {
        "policy": make_optimizer(optim, rates),
        "discriminator": discriminator_optimizer(config, warmup_updates) if warmed_up else still,
    }


def warmup_updates(config: Config, num_pairs: int) -> int:
    """Return the number of discriminator updates of the warm-up."""
    texts = 2 * num_pairs
    return config.discriminator.warmup_epochs * -(-texts // config.discriminator.batch_size)


def build_steps(
    config: Config, models: Models, num_pairs: int, widths: Sequence[int] = ()
) -> TrainSteps:
    """Bind and compile the steps of a run.

    Args:
        config: the run.
        models: its networks; shapes do for their parameters.
        num_pairs: pairs that the discriminator is warmed up on, which sets its schedule.
        widths: of the buckets that an online method's batches come in (`buckets.py`).
    """
    optimizers = make_optimizers(config, warmup_updates(config, num_pairs))
    return make_steps(models.spec, models.discriminator, config, optimizers, widths)


def make_steps(
    spec: PolicySpec,
    discriminator: TextReader,
    config: Config,
    optimizers: Optimizers,
    widths: Sequence[int] = (),
) -> TrainSteps:
    """Bind the static parts of every step and jit it once; states are donated."""
    bound: dict[str, Any] = {"spec": spec, "config": config}

    def cut(batch: Any, width: int) -> Any:
        return cut_rows(batch, batch.mask_BT, width)

    def uncut(scored: RolloutLogprobs, rollout: Rollout, width: int) -> RolloutLogprobs:
        return uncut_rows(scored, rollout.mask_BT, width, rollout.response_mask_BR.shape[1])

    def compiled(step: Callable[..., Any], restore: Any = None, **options: Any) -> Any:
        if not widths:
            return jit_step(step, place=spec.place, **options)
        bucketed = jit_step(accept_buckets(step, cut, restore), place=spec.place, **options)
        return compile_all_widths(bucketed, widths)

    score = functools.partial(score_rollout, spec=spec)
    policy = functools.partial(policy_step, **bound, optimizer=optimizers["policy"])
    critic = None
    if has_critic(config):
        update = functools.partial(critic_step, **bound, optimizer=optimizers["critic"])
        critic = compiled(update, donate=0, keep="network", rows=(1,))
    return TrainSteps(
        optimizers=optimizers,
        score=compiled(score, restore=uncut, keep="rows", rows=(1,)),
        policy=compiled(policy, donate=0, keep="network", rows=(1, 3)),
        critic=critic,
        offline=make_offline_step(spec, config, optimizers["policy"]),
        sum_rows=make_sum_rows(spec, config),
        **_discriminator_steps(spec.place, discriminator, config, optimizers["discriminator"]),
    )


def _discriminator_steps(
    place: Placement,
    discriminator: TextReader,
    config: Config,
    optimizer: optax.GradientTransformation,
) -> JsonObject:
    """Return the steps of the discriminator, compiled for where it lives."""
    settings = config.discriminator
    options: dict[str, Any] = {
        "place": discriminator_placement(config, place),
        "embeddings_by_row": True,
    }
    score = functools.partial(disc_score_step, discriminator=discriminator)
    update = functools.partial(
        disc_update_step,
        discriminator=discriminator,
        dropout=settings.dropout > 0,
        frozen=frozen_parameters(config),
        frozen_layers=settings.frozen_layers,
        loss=settings.loss,
        gradient_penalty=settings.gradient_penalty,
        accumulate=settings.accumulate,
        optimizer=optimizer,
    )
    return {
        "disc_score": jit_step(score, rows=(1, 2, 3), **options),
        "disc_update": jit_step(update, donate=0, keep="network", rows=(1,), whole=(2,), **options),
    }


def build_models(
    config: Config, place: Placement | None = None, *, discriminator: bool = True
) -> Models:
    """Load both models and their tokenizers, and put the weights on the mesh of the configuration
    or on another `place`. A run that asks no `discriminator` gets none.

    Raises:
        FileNotFoundError, ValueError: a source cannot be read, or does not fit the configuration;
            the mesh does not fit the devices.
    """
    mesh = config.mesh
    if place is None:
        place = Placement(make_mesh(mesh.data, mesh.fsdp, mesh.tensor))
    generator = load_generator(config.model.generator, config.seed, place)
    set_template_variables(generator[2], config.data.template_variables())
    if not discriminator:
        return assemble_models(config, place, generator, (None, {}, None))
    key = rng.key(config.seed, Stream.DISCRIMINATOR_WEIGHTS)
    loaded = load_discriminator(config, key, discriminator_placement(config, place))
    return assemble_models(config, place, generator, loaded)


def assemble_models(
    config: Config,
    place: Placement,
    generator: LoadedGenerator,
    discriminator: LoadedDiscriminator | tuple[None, Params, None],
) -> Models:
    """Return the models of two loaded networks; shapes do for their parameters.

    Raises:
        ValueError: the configuration asks for what the generator does not have.
    """
    decoding = place.regrouped(config.mesh.sampling_tensor)
    warn_of_whole_batches(config, place, decoding)
    restrictions = config.sampling.top_k, config.sampling.top_p, config.sampling.min_p
    if method_of(config).loop == "online" and (warning := restriction_warning(*restrictions)):
        log.warning("%s", warning)
    decoder, ref_params, tokenizer = generator
    decoder = Decoder(
        dataclasses.replace(
            decoder.config,
            dtype=config.model.dtype,
            remat=config.model.remat,
            attention=config.model.attention,
        )
    )
    disc_module, disc_init_params, disc_tokenizer = discriminator
    spec = policy_spec(config, decoder.config, place)
    # What cannot be trained is said before anything slow.
    jax.eval_shape(
        lambda params, key: start_policy(params, spec.first_trainable_layer, config, key),
        ref_params,
        rng.key_shape(),
    )
    sample, sample_rollouts = _samplers(config, decoder, decoding)
    return Models(
        decoder=decoder,
        ref_params=ref_params,
        tokenizer=tokenizer,
        discriminator=disc_module,
        disc_init_params=disc_init_params,
        disc_tokenizer=disc_tokenizer,
        spec=spec,
        sample=sample,
        decoding=decoding,
        sample_rollouts=sample_rollouts,
        sampling_weights=config.sampling.weights,
    )


def _samplers(config: Config, decoder: Decoder, place: Placement) -> tuple[Sampler, Sampler | None]:
    """Return the sampler, and that of rollouts if it computes in another dtype.

    Raises:
        ValueError: rollouts of another precision are asked for and the method takes none.
    """
    weights = config.sampling.weights
    if weights != "same" and method_of(config).loop != "online":
        raise ValueError(
            f"config.sampling.weights={weights!r} is for the rollouts of online methods, which "
            f"config.method={config.method!r} does not take; set it to 'same'"
        )
    make = functools.partial(
        make_sampler,
        max_new_tokens=config.sampling.max_new_tokens,
        eos_ids=decoder.config.eos_ids,
        pad_id=decoder.config.pad_id,
        slots=config.sampling.slots,
        chunk=config.sampling.chunk,
        place=place,
        **{name: getattr(config.sampling, name) for name in RESTRICTIONS},
    )
    sample, sample_rollouts = make(decoder), None
    if weights == "bfloat16" and decoder.config.dtype != "bfloat16":
        sample_rollouts = make(Decoder(dataclasses.replace(decoder.config, dtype="bfloat16")))
    return sample, sample_rollouts


_quantise = jax.jit(generation.quantised)


def _without_norms(params: Params, dtype: str) -> Params:
    """Return parameters in a dtype, but for the norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if "norm" in path_name(path) else leaf.astype(dtype), params
    )


def policy_spec(config: Config, shape: DecoderConfig, place: Placement) -> PolicySpec:
    """Return the static facts of the generator's steps.

    Raises:
        ValueError: the configuration asks for what the generator cannot give.
    """
    method = method_of(config)
    if method.contrasts_logits and shape.final_softcap:
        raise ValueError(
            f"config.method={method.name!r} contrasts logits, but the generator caps them "
            "(final_softcap): choose another config.model.generator, or another method"
        )
    first = first_trainable_layer(shape.num_layers, config.model)
    return PolicySpec(
        config=shape,
        first_trainable_layer=first,
        temperature=config.sampling.temperature,
        chunk=config.ppo.logprob_chunk,
        critic=config.model.critic if has_critic(config) else "none",
        critic_hidden=config.model.critic_hidden,
        unroll=decoder_layers_to_unroll(shape.num_layers - first, shape.d_model, place.platform),
        place=place,
    )


def warn_of_whole_batches(config: Config, place: Placement, decoding: Placement) -> None:
    """Say which batches do not divide among the devices: each device computes all of those."""
    rows: dict[str, tuple[int, Placement]] = {}
    if method_of(config).loop == "offline":
        rows["config.offline.batch_size"] = config.offline.batch_size, place
    else:
        rows["config.ppo.minibatch_size"] = config.ppo.minibatch_size, place
    rows["config.sampling.batch_size"] = config.sampling.batch_size, decoding
    for key, (size, where) in rows.items():
        if size % where.row_parts:
            log.warning(
                "%s=%d is no multiple of the %d parts that the mesh splits rows into: every device "
                "computes all rows of such a batch", key, size, where.row_parts
            )  # fmt: skip


def initial_state(config: Config, models: Models, steps: TrainSteps) -> GAPOState:
    """Return the state of a run before its first update, on the mesh; a function of seed and
    sources alone."""
    make = functools.partial(fresh_state, config, models.spec, steps.optimizers)
    place = models.spec.place
    state = place.init(make, models.ref_params, models.disc_init_params)
    discriminator, average = discriminator_placement(config, place).params(
        (state.discriminator, state.disc_average)
    )
    return state.replace(discriminator=discriminator, disc_average=average)


def fresh_state(
    config: Config,
    spec: PolicySpec,
    optimizers: Optimizers,
    ref_params: Params,
    disc_init_params: Params,
) -> GAPOState:
    """Return the state before the first update, from the starting weights of both networks."""
    root = rng.root_key(config.seed)
    policy = start_policy(ref_params, spec.first_trainable_layer, config, root)
    critic = None
    if has_critic(config):
        fresh = init_critic(spec, ref_params, rng.key(root, Stream.CRITIC_WEIGHTS))
        critic = TrainState.create(fresh, optimizers["critic"])
    disc = copy_tree(disc_init_params)
    return GAPOState(
        policy=TrainState.create(policy, optimizers["policy"]),
        critic=critic,
        discriminator=TrainState.create(disc, optimizers["discriminator"]),
        key=root,
        round=jnp.zeros((), jnp.int32),
        kl_coef=jnp.float32(config.ppo.kl_coef),
        reward_stats=jnp.zeros(3, jnp.float32),
        disc_average=copy_tree(disc) if scores_with_average(config) else None,
    )
