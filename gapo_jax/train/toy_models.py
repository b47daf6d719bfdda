"""Small networks from random weights with tokenizers built in code: nothing is downloaded.

`random:tiny` reads and writes characters: all code paths, little to learn. `random:words` writes
words too, some of them in the shapes that constraints ask for, and its discriminator reads the
words of our prompts whole, so that it learns within a minute to tell which constraint a text obeys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from transformers import PreTrainedTokenizerFast

from gapo_jax.data.tiny_tokenizer import (
    character_tokenizer,
    known_words,
    word_tokenizer,
    wordpiece_tokenizer,
)
from gapo_jax.models import DecoderConfig, EncoderConfig

TINY = "random:tiny"
WORDS = "random:words"
_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class ToyModels:
    """Tokenizers and depths of a pair of small networks. `init_scale` multiplies the
    discriminator's starting matrices, whose deviation is BERT's."""

    decoder_tokenizer: Callable[[], PreTrainedTokenizerFast]
    encoder_tokenizer: Callable[[], PreTrainedTokenizerFast]
    decoder_layers: int
    encoder_layers: int
    encoder_heads: int
    init_scale: float

    def generator(self) -> tuple[DecoderConfig, PreTrainedTokenizerFast]:
        """Return shape and tokenizer of the generator."""
        tokenizer: Any = self.decoder_tokenizer()
        shape = DecoderConfig(
            vocab_size=len(tokenizer),
            num_layers=self.decoder_layers,
            d_model=_WIDTH,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            d_ff=2 * _WIDTH,
            eos_ids=(tokenizer.eos_token_id,),
            pad_id=tokenizer.pad_token_id,
            max_positions=1024,
        )
        return shape, tokenizer

    def discriminator(self) -> tuple[EncoderConfig, PreTrainedTokenizerFast]:
        """Return shape and tokenizer of the discriminator."""
        tokenizer = self.encoder_tokenizer()
        shape = EncoderConfig(
            vocab_size=len(tokenizer),
            num_layers=self.encoder_layers,
            d_model=_WIDTH,
            num_heads=self.encoder_heads,
            d_ff=2 * _WIDTH,
        )
        return shape, tokenizer

    def scaled(self, init: Callable[..., Any]) -> Callable[..., Any]:
        """Return the discriminator's `init` with `init_scale` times its matrices."""

        def start(*inputs: Any) -> Any:
            return jax.tree.map(lambda x: self.init_scale * x if x.ndim > 1 else x, init(*inputs))

        return start


TOY_MODELS = {
    TINY: ToyModels(character_tokenizer, wordpiece_tokenizer, 4, 2, 4, 1.0),
    # BERT's deviation of .02 is that of networks 768 wide.
    WORDS: ToyModels(
        word_tokenizer,
        lambda: wordpiece_tokenizer(known_words()),
        2,
        1,
        1,
        math.sqrt(768 / _WIDTH),
    ),
}
