"""The shapes that are known without a download, against the sizes that their makers state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.models import Decoder, DecoderConfig
from gapo_jax.models.hf.known_shapes import KNOWN, shape_of


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ],
)
def test_decoders_have_as_many_parameters_as_the_published_ones(name, count):
    shape = shape_of(name)
    assert isinstance(shape, DecoderConfig)
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.eval_shape(Decoder(shape).init, jax.random.key(0), tokens, tokens)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)) == count


def test_every_known_shape_is_one_of_ours():
    for name in KNOWN:
        assert shape_of(name).num_layers > 0


def test_an_unknown_network_that_cannot_be_had_names_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"Known without any download: Qwen/Qwen2\.5"):
        shape_of("no such folder")
