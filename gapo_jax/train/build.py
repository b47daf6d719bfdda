"""Everything that a run needs before its first round: networks, tokenizers, compiled steps.

The names of `built_in.py` stand for small networks with random weights, so that the whole program
runs in seconds with nothing to download.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from transformers import PreTrainedTokenizerFast

from gapo_jax import models as networks
from gapo_jax.config import OFFLINE_METHODS, Config, trained_rows, updates_per_round
from gapo_jax.config.online import has_critic, scores_with_average
from gapo_jax.data import weights
from gapo_jax.data.chat import stop_ids
from gapo_jax.data.tokenizer import check_vocabulary, load_tokenizer
from gapo_jax.models import Decoder, DecoderConfig, Discriminator, RewardModel
from gapo_jax.rollout.generate import SampleFn
from gapo_jax.rollout.sampler import RESTRICTIONS, make_sampler
from gapo_jax.sharding import ONE_DEVICE, Placement, make_mesh
from gapo_jax.train.forward import PolicySpec, init_critic, layers_to_unroll
from gapo_jax.train.offline.steps import Metrics, OfflineBatch, make_offline_step
from gapo_jax.train.online.steps import Steps, discriminator_placement, make_steps
from gapo_jax.train.optimizers import (
    freeze_rows,
    frozen_parameters,
    learning_rate,
    make_optimizer,
    path_name,
    warmup_then_rounds,
)
from gapo_jax.train.state import (
    GAPOState,
    TrainState,
    copy_tree,
    first_trainable_layer,
    start_policy,
)
from gapo_jax.train.toy_models import BUILT_IN

log = logging.getLogger("gapo_jax")
ADAPTER_STREAM = 5
Params = Any


@dataclasses.dataclass(frozen=True)
class Models:
    """The fixed parts of a run. `ref_params` are the generator's frozen starting weights, which are
    also the reference; `disc_init_params` the discriminator's (a `Discriminator` or `RewardModel`).
    `decoding` says where weights lie while `sample` works on them."""

    decoder: Decoder
    ref_params: Params
    tokenizer: PreTrainedTokenizerFast
    discriminator: Any
    disc_init_params: Params
    disc_tokenizer: PreTrainedTokenizerFast
    spec: PolicySpec
    sample: SampleFn
    decoding: Placement = ONE_DEVICE

    def for_sampling(self, params: Params) -> Params:
        """Return the generator's parameters as `sample` reads them, for the many calls of a round:
        on several devices a copy in the dtype of the computation, split over `tensor` alone."""
        if not self.decoding.spread:
            return params
        dtype = self.decoder.config.dtype
        cast = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if "norm" in path_name(path) else leaf.astype(dtype), params
        )
        return self.decoding.params(cast)


@dataclasses.dataclass(frozen=True)
class Training:
    """The optimisers of the three networks and the compiled steps that use them; `offline` is the
    generator's update by an offline method."""

    optimizers: dict[str, optax.GradientTransformation]
    steps: Steps
    offline: Callable[[TrainState, Params, OfflineBatch], tuple[TrainState, Metrics]]


def source(name: str) -> str | Path:
    """Return where a model's weights lie: a name of the weight cache, or any other source as is."""
    return weights.locate(name) if name in weights.WEIGHTS else name


def load_generator(
    name: str, seed: int, place: Placement = ONE_DEVICE
) -> tuple[Decoder, Params, PreTrainedTokenizerFast]:
    """Return (decoder, float32 parameters, tokenizer) of a source, or of a built-in name.

    The tokenizer is read before the weights. Raises FileNotFoundError or ValueError as
    `models.load_decoder` and `load_tokenizer` do.
    """
    if name in BUILT_IN:
        shape, tokenizer = BUILT_IN[name].generator()
        decoder = Decoder(shape)
        tokens = jnp.zeros((1, 2), jnp.int32)
        init = jax.jit(decoder.init)
        params = place.init(init, jax.random.key(seed), tokens, jnp.ones_like(tokens))["params"]
        return decoder, params, tokenizer
    tokenizer, _, _ = tokenizer_and_shape(source(name))
    decoder, params = networks.load_decoder(source(name), put=place.put)
    stops = stop_ids(tokenizer, decoder.config.eos_ids)
    config = dataclasses.replace(decoder.config, eos_ids=stops)
    return decoder.clone(config=config), params, tokenizer


def tokenizer_and_shape(
    src: str | Path, tokenizer: str | None = None
) -> tuple[PreTrainedTokenizerFast, Any, str]:
    """Return tokenizer and config of a source, which fit each other, and the dtype of its weights,
    having read none of them; `tokenizer` names another source of that.

    Raises FileNotFoundError or ValueError as `models.inspect` and `load_tokenizer` do, and
    ValueError where the vocabulary exceeds the embedding.
    """
    shape, dtype = networks.inspect(src)
    words = load_tokenizer(src if tokenizer is None else source(tokenizer))
    check_vocabulary(words, shape.vocab_size)
    return words, shape, dtype


def _load_reward_model(
    config: Config, place: Placement
) -> tuple[RewardModel, Params, PreTrainedTokenizerFast]:
    """Return a decoder as discriminator: what it thinks of a text is read off its last token."""
    name, settings = config.model.discriminator, config.discriminator
    for key in ("frozen_layers", "dropout", "gradient_penalty"):
        if getattr(settings, key):
            raise ValueError(
                f"wanted config.discriminator.{key}=0 for a decoder as discriminator, got "
                f"{getattr(settings, key)} for {name}; set it, or choose an encoder"
            )
    tokenizer, shape, _ = tokenizer_and_shape(source(name))
    _check_length(settings.max_tokens, shape.max_positions, name)
    module, params = networks.load_reward_model(
        source(name),
        put=place.put,
        seed=config.seed,
        dtype=config.model.dtype,
        remat=config.model.remat,
        attention=config.model.attention,
    )
    # Decoders have no tokens to frame a text with; the last one is what the head reads.
    tokenizer.cls_token = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.sep_token = tokenizer.eos_token
    return module, params, tokenizer


def _check_length(tokens: int, positions: int, name: str) -> None:
    if tokens > positions:
        raise ValueError(
            f"config.discriminator.max_tokens={tokens} exceeds the {positions} positions of "
            f"{name}; lower it"
        )


def load_discriminator(
    config: Config, key: jax.Array, place: Placement = ONE_DEVICE
) -> tuple[Discriminator | RewardModel, Params, PreTrainedTokenizerFast]:
    """Return (module, starting parameters, tokenizer): a pretrained encoder or decoder with a
    scalar head, its own if it has one (a sequence classifier, an exported discriminator)."""
    name, settings = config.model.discriminator, config.discriminator
    pooling, hidden_dim, loaded = config.model.pooling, None, {}
    if name not in BUILT_IN and networks.network_of(source(name)) in ("decoder", "reward model"):
        return _load_reward_model(config, place)
    if name in BUILT_IN:
        encoder_config, tokenizer = BUILT_IN[name].discriminator()
    else:
        tokenizer, encoder_config, _ = tokenizer_and_shape(source(name))
        found, loaded = networks.load_discriminator(source(name), put=place.put, pooling=pooling)
        pooling, hidden_dim = found.pooling, found.hidden_dim
    if settings.frozen_layers >= encoder_config.num_layers:
        raise ValueError(
            f"config.discriminator.frozen_layers={settings.frozen_layers} leaves none of the "
            f"{encoder_config.num_layers} layers of {name} to train; lower it"
        )
    _check_length(settings.max_tokens, encoder_config.max_positions, name)
    # A scan over layers copies what the backward pass keeps; on a CPU that costs a third of the
    # step, and the few layers of an encoder compile quickly without it.
    unroll = encoder_config.num_layers if place.platform == "cpu" else 1
    encoder_config = dataclasses.replace(
        encoder_config,
        dropout=settings.dropout,
        dtype=config.model.dtype,
        remat=config.model.remat,
        scan_unroll=unroll,
        # The penalty is a derivative of a derivative, which only the plain version has.
        attention="xla" if settings.gradient_penalty else config.model.attention,
    )
    discriminator = Discriminator(encoder_config, pooling, hidden_dim)
    tokens = jnp.zeros((1, 8), jnp.int32)
    start = discriminator.init
    init = jax.jit(BUILT_IN[name].scaled(start) if name in BUILT_IN else start)
    params = dict(place.init(init, key, tokens, jnp.ones_like(tokens))["params"]) | loaded
    return discriminator, params, tokenizer


def make_optimizers(config: Config, warmup_updates: int) -> dict[str, optax.GradientTransformation]:
    """Return one optimiser a network, their schedules sized for the whole run."""
    if config.method in OFFLINE_METHODS:
        return offline_optimizers(config, warmup_updates)
    ppo = config.ppo
    minibatches = trained_rows(config) // ppo.minibatch_size
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


def offline_optimizers(
    config: Config, warmup_updates: int
) -> dict[str, optax.GradientTransformation]:
    """Return the optimisers of an offline method; networks that it leaves alone keep no moments."""
    still, total = optax.set_to_zero(), config.rounds * updates_per_round(config)
    if config.method == "discriminator":
        disc = discriminator_optimizer(config, total)
        return {"policy": still, "discriminator": disc}
    optim = config.offline.optim
    rates = learning_rate(optim, total)
    if config.method == "sgpo":
        first = config.sgpo.improver_rounds * updates_per_round(config)
        rates = optax.join_schedules(
            [
                optax.constant_schedule(config.sgpo.improver_learning_rate),
                learning_rate(optim, total - first),
            ],
            [first],
        )
    judged = needs_discriminator(config)
    return {
        "policy": make_optimizer(optim, rates),
        "discriminator": discriminator_optimizer(config, warmup_updates) if judged else still,
    }


def needs_discriminator(config: Config) -> bool:
    """Return whether an offline method takes rewards from a discriminator, warmed up on pairs."""
    return config.method == "rpo" and config.rpo.reward == "discriminator"


def warmup_updates(config: Config, num_pairs: int) -> int:
    """Return the number of discriminator updates of the warm-up."""
    texts = 2 * num_pairs
    return config.discriminator.warmup_epochs * -(-texts // config.discriminator.batch_size)


def build_training(config: Config, models: Models, num_pairs: int) -> Training:
    """Build optimisers and compiled steps, once the size of the warm-up is known."""
    optimizers = make_optimizers(config, warmup_updates(config, num_pairs))
    steps = make_steps(models.spec, models.discriminator, config, optimizers)
    offline = make_offline_step(models.spec, config, optimizers["policy"])
    return Training(optimizers, steps, offline)


def build_models(config: Config, place: Placement | None = None) -> Models:
    """Load both models and their tokenizers, and put the weights on the mesh of the configuration
    or on another `place`.

    Raises:
        FileNotFoundError, ValueError: a source cannot be read, or does not fit the configuration;
            the mesh does not fit the devices.
    """
    mesh = config.mesh
    if place is None:
        place = Placement(make_mesh(mesh.data, mesh.fsdp, mesh.tensor))
    generator = load_generator(config.model.generator, config.seed, place)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    judge = load_discriminator(config, key, discriminator_placement(config, place))
    return assemble_models(config, place, generator, judge)


def assemble_models(
    config: Config,
    place: Placement,
    generator: tuple[Decoder, Params, PreTrainedTokenizerFast],
    judge: tuple[Discriminator | RewardModel, Params, PreTrainedTokenizerFast],
) -> Models:
    """Return the players of (module, parameters, tokenizer) each; shapes do for parameters.

    Raises:
        ValueError: the configuration asks for what the generator does not have.
    """
    decoding = place.regrouped(config.mesh.sampling_tensor)
    warn_of_whole_batches(config, place, decoding)
    decoder, ref_params, tokenizer = generator
    decoder = Decoder(
        dataclasses.replace(
            decoder.config,
            dtype=config.model.dtype,
            remat=config.model.remat,
            attention=config.model.attention,
        )
    )
    discriminator, disc_init_params, disc_tokenizer = judge
    spec = policy_spec(config, decoder.config, place)
    # What cannot be trained is said before anything slow.
    key = jax.random.key(config.seed)
    jax.eval_shape(
        lambda params: start_policy(params, spec.first_trainable_layer, config, key), ref_params
    )
    sample = make_sampler(
        decoder,
        max_new_tokens=config.sampling.max_new_tokens,
        eos_ids=decoder.config.eos_ids,
        pad_id=decoder.config.pad_id,
        slots=config.sampling.slots,
        chunk=config.sampling.chunk,
        place=decoding,
        **{name: getattr(config.sampling, name) for name in RESTRICTIONS},
    )
    return Models(
        decoder=decoder,
        ref_params=ref_params,
        tokenizer=tokenizer,
        discriminator=discriminator,
        disc_init_params=disc_init_params,
        disc_tokenizer=disc_tokenizer,
        spec=spec,
        sample=sample,
        decoding=decoding,
    )


def policy_spec(config: Config, shape: DecoderConfig, place: Placement) -> PolicySpec:
    """Return the static facts of the generator's steps.

    Raises:
        ValueError: the configuration asks for what the generator cannot give.
    """
    if config.method == "inverse_q" and shape.final_softcap:
        raise ValueError(
            "config.method='inverse_q' contrasts logits, but the generator caps them "
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
        unroll=layers_to_unroll(shape, first, place.platform),
        place=place,
    )


def warn_of_whole_batches(config: Config, place: Placement, decoding: Placement) -> None:
    """Say which batches do not divide among the devices: each device computes all of those."""
    rows: dict[str, tuple[int, Placement]] = {}
    if config.method in OFFLINE_METHODS:
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


def initial_state(config: Config, models: Models, training: Training) -> GAPOState:
    """Return the state of a run before its first update, on the mesh; a function of seed and
    sources alone."""
    make = functools.partial(fresh_state, config, models.spec, training.optimizers)
    place, judging = models.spec.place, discriminator_placement(config, models.spec.place)
    state = place.init(make, models.ref_params, models.disc_init_params)
    networks = judging.params((state.discriminator, state.judge))
    return state.replace(discriminator=networks[0], judge=networks[1])


def fresh_state(
    config: Config,
    spec: PolicySpec,
    optimizers: dict[str, optax.GradientTransformation],
    ref_params: Params,
    disc_init_params: Params,
) -> GAPOState:
    """Return the state before the first update, of the starting parameters of both players."""
    root = jax.random.key(config.seed)
    policy = start_policy(
        ref_params, spec.first_trainable_layer, config, jax.random.fold_in(root, ADAPTER_STREAM)
    )
    critic = None
    if has_critic(config):
        fresh = init_critic(spec, ref_params, jax.random.fold_in(root, 3))
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
        judge=copy_tree(disc) if scores_with_average(config) else None,
    )
