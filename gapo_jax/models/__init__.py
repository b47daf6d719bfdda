"""Networks: the causal decoder (generator, reference, critic trunk), the encoder and the heads."""

from gapo_jax.models.decoder import Decoder, DecoderConfig, LayerStack, positions_of, unembedding
from gapo_jax.models.encoder import Encoder, EncoderConfig
from gapo_jax.models.heads import Discriminator, ScalarHead
from gapo_jax.models.hf_io import DTYPES, load_decoder, load_encoder, save_hf
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
    "ScalarHead",
    "load_decoder",
    "load_encoder",
    "positions_of",
    "save_hf",
    "unembedding",
]
