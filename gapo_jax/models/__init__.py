"""Networks: the causal decoder (generator, reference, critic trunk), the encoder and the heads."""

from gapo_jax.models.decoder import Decoder, LayerStack, positions_of, unembedding
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.encoder import Encoder, EncoderConfig
from gapo_jax.models.heads import Discriminator, RewardModel, ScalarHead
from gapo_jax.models.hf.files import DTYPES
from gapo_jax.models.hf.head_code import HEAD_FILE
from gapo_jax.models.hf.load import (
    inspect,
    load_decoder,
    load_discriminator,
    load_encoder,
    load_reward_model,
    network_of,
)
from gapo_jax.models.hf.parameter_map import ARCHITECTURES
from gapo_jax.models.hf.peft_adapter import CONFIG as ADAPTER_CONFIG
from gapo_jax.models.hf.peft_adapter import is_adapter, load_adapter, save_adapter
from gapo_jax.models.hf.save import save_hf
from gapo_jax.models.lora import Adapters, find_targets, init_adapters, merge_adapters

__all__ = [
    "ADAPTER_CONFIG",
    "ARCHITECTURES",
    "Adapters",
    "DTYPES",
    "Decoder",
    "DecoderConfig",
    "Discriminator",
    "Encoder",
    "EncoderConfig",
    "HEAD_FILE",
    "LayerStack",
    "RewardModel",
    "ScalarHead",
    "find_targets",
    "init_adapters",
    "inspect",
    "is_adapter",
    "load_adapter",
    "load_decoder",
    "load_discriminator",
    "load_encoder",
    "load_reward_model",
    "merge_adapters",
    "network_of",
    "positions_of",
    "save_adapter",
    "save_hf",
    "unembedding",
]
