"""Networks: the causal decoder (generator, reference, critic trunk), the encoder and the heads."""

from gapo_jax.models.decoder import Decoder, DecoderConfig, LayerStack, positions_of, unembedding
from gapo_jax.models.encoder import Encoder, EncoderConfig
from gapo_jax.models.heads import Discriminator, ScalarHead
from gapo_jax.models.hf_io import DTYPES, load_decoder, load_encoder, save_hf
from gapo_jax.models.hf_map import ARCHITECTURES
from gapo_jax.models.lora import Adapters, find_targets, init_adapters, merge_adapters
from gapo_jax.models.peft_io import CONFIG as ADAPTER_CONFIG
from gapo_jax.models.peft_io import is_adapter, load_adapter, save_adapter

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
    "LayerStack",
    "ScalarHead",
    "find_targets",
    "init_adapters",
    "is_adapter",
    "load_adapter",
    "load_decoder",
    "load_encoder",
    "merge_adapters",
    "positions_of",
    "save_adapter",
    "save_hf",
    "unembedding",
]
