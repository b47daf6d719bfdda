"""Networks and tokenizers from their sources: files, the hub, the weight cache, or toy models.

The names of `toy_models.py` stand for small networks with random weights, so that the whole program
runs in seconds with nothing to download.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerFast

from gapo_jax import models as networks
from gapo_jax import rng
from gapo_jax.compilation import encoder_layers_to_unroll
from gapo_jax.config import Config
from gapo_jax.data import weights
from gapo_jax.data.chat import stop_ids
from gapo_jax.data.tokenizer import check_vocabulary, load_tokenizer
from gapo_jax.methods import method_of
from gapo_jax.models import (
    Decoder,
    DecoderConfig,
    Discriminator,
    EncoderConfig,
    RewardModel,
)
from gapo_jax.rng import Stream
from gapo_jax.sharding import ONE_DEVICE, Placement
from gapo_jax.train.toy_models import TOY_MODELS
from gapo_jax.types import Params

LoadedGenerator = tuple[Decoder, Params, PreTrainedTokenizerFast]
LoadedDiscriminator = tuple[Discriminator | RewardModel, Params, PreTrainedTokenizerFast]


def source(name: str) -> str | Path:
    """Return where a model's weights lie: a name of the weight cache, or any other source as is."""
    return weights.locate(name) if name in weights.WEIGHTS else name


def load_generator(name: str, seed: int, place: Placement = ONE_DEVICE) -> LoadedGenerator:
    """Return (decoder, float32 parameters, tokenizer) of a source, or of a toy model.

    The tokenizer is read before the weights.

    Raises:
        FileNotFoundError, ValueError: as `models.load_decoder` and `load_tokenizer`.
    """
    if name in TOY_MODELS:
        shape, tokenizer = TOY_MODELS[name].generator()
        decoder = Decoder(shape)
        tokens = jnp.zeros((1, 2), jnp.int32)
        init = jax.jit(decoder.init)
        params = place.init(
            init, rng.key(seed, Stream.GENERATOR_WEIGHTS), tokens, jnp.ones_like(tokens)
        )["params"]
        return decoder, params, tokenizer
    tokenizer, _, _ = tokenizer_and_shape(source(name))
    decoder, params = networks.load_decoder(source(name), put=place.put)
    stops = stop_ids(tokenizer, decoder.config.eos_ids)
    config = dataclasses.replace(decoder.config, eos_ids=stops)
    return decoder.clone(config=config), params, tokenizer


def tokenizer_and_shape(
    src: str | Path, tokenizer_src: str | None = None
) -> tuple[PreTrainedTokenizerFast, DecoderConfig | EncoderConfig, str]:
    """Return tokenizer and config of a source, which fit each other, and the dtype of its weights,
    having read none of them; `tokenizer_src` is another source of the tokenizer.

    Raises:
        FileNotFoundError, ValueError: as `models.inspect` and `load_tokenizer`; or the vocabulary
            exceeds the embedding.
    """
    shape, dtype = networks.inspect(src)
    tokenizer = load_tokenizer(src if tokenizer_src is None else source(tokenizer_src))
    check_vocabulary(tokenizer, shape.vocab_size)
    return tokenizer, shape, dtype


def is_trained(config: Config) -> bool:
    """Return whether a run trains its discriminator, which may then start with a new head."""
    method = method_of(config)
    return method.adversarial or method.loop == "offline" or config.discriminator.warmup_epochs > 0


def _load_reward_model(config: Config, place: Placement) -> LoadedDiscriminator:
    """Return a decoder as discriminator: its logit is read off the last token of a text."""
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
        seed=config.seed if is_trained(config) else None,
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
) -> LoadedDiscriminator:
    """Return (module, starting parameters, tokenizer): a pretrained encoder or decoder with a
    scalar head, its own if it has one (a sequence classifier, an exported discriminator)."""
    name, settings = config.model.discriminator, config.discriminator
    pooling, hidden_dim, loaded = config.model.pooling, None, {}
    if name not in TOY_MODELS and networks.network_of(source(name)) in ("decoder", "reward model"):
        return _load_reward_model(config, place)
    if name in TOY_MODELS:
        encoder_config, tokenizer = TOY_MODELS[name].discriminator()
    else:
        tokenizer, encoder_config, _ = tokenizer_and_shape(source(name))
        assert isinstance(encoder_config, EncoderConfig)
        module, loaded = networks.load_discriminator(
            source(name), put=place.put, pooling=pooling, own_head=not is_trained(config)
        )
        pooling, hidden_dim = module.pooling, module.hidden_dim
    if settings.frozen_layers >= encoder_config.num_layers:
        raise ValueError(
            f"config.discriminator.frozen_layers={settings.frozen_layers} leaves none of the "
            f"{encoder_config.num_layers} layers of {name} to train; lower it"
        )
    _check_length(settings.max_tokens, encoder_config.max_positions, name)
    encoder_config = dataclasses.replace(
        encoder_config,
        dropout=settings.dropout,
        dtype=config.model.dtype,
        remat=config.model.remat,
        scan_unroll=encoder_layers_to_unroll(encoder_config.num_layers, place.platform),
        # The penalty is a derivative of a derivative, which only the plain version has.
        attention="xla" if settings.gradient_penalty else config.model.attention,
    )
    discriminator = Discriminator(encoder_config, pooling, hidden_dim)
    tokens = jnp.zeros((1, 8), jnp.int32)
    start = discriminator.init
    init = jax.jit(TOY_MODELS[name].scaled(start) if name in TOY_MODELS else start)
    params = dict(place.init(init, key, tokens, jnp.ones_like(tokens))["params"]) | loaded
    return discriminator, params, tokenizer
