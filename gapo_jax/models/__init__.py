"""Networks: the causal decoder (generator, reference, critic trunk), the encoder and the heads."""

from gapo_jax.models.decoder import Decoder, LayerStack, positions_of, unembedding
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.encoder import Encoder, EncoderConfig
from gapo_jax.models.heads import Discriminator, RewardModel, ScalarHead
from gapo_jax.models.hf_io import (
    DTYPES,
    load_decoder,
    load_encoder,
    load_reward_model,
    network_of,
    save_hf,
)
from gapo_jax.models.hf_map import ARCHITECTURES

__all__ = [
    "ARCHITECTURES",
    "DTYPES",
    "Decoder",
    "DecoderConfig",
    "Discriminator",
    "Encoder",
    "EncoderConfig",
    "LayerStack",
    "RewardModel",
    "ScalarHead",
    "load_decoder",
    "load_encoder",
    "load_reward_model",
    "network_of",
    "positions_of",
    "save_hf",
    "unembedding",
]
