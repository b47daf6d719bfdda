"""What sampling moves between devices, for every decoder family and size of the axis `tensor`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax import sharding
from gapo_jax.compilation import jit_placed
from gapo_jax.models import Decoder, DecoderConfig, generation
from gapo_jax.models.hf.parameter_map import ARCHITECTURES
from gapo_jax.plan import cost as hlo_cost
from gapo_jax.rollout.sampler import make_sampler

# What tells a family from Llama in the network. Windows and untied heads change nothing here.
GEMMA2 = {
    "windows": (0, 4), "norm_placement": "both", "attn_softcap": 20.0, "final_softcap": 15.0,
    "scale_embeddings": True, "activation": "gelu_tanh",
}  # fmt: skip
LAYERS: dict[str, dict] = {
    "llama": {},
    "qwen2": {"attn_bias": "qkv", "tie_embeddings": False},
    "olmo2": {"qk_norm": "all", "norm_placement": "post", "tie_embeddings": False},
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2 | {"qk_norm": "head", "attn_softcap": 0.0, "rope_local_theta": 100.0},
    "gpt2": {
        "num_kv_heads": 8, "positions": "learned", "attn_bias": "all", "mlp_bias": True,
        "gated": False, "norm": "layer", "activation": "gelu_tanh",
    },
}  # fmt: skip
# Families whose layers are, for the mesh, those of another one.
LIKE = {"mistral": "llama", "phi3": "llama", "qwen3": "gemma3_text"}
PROMPTS, WIDTH, LENGTH = 8, 8, 6


def shape_of(**changes) -> DecoderConfig:
    """2 key heads for 8 heads: on 4 and 8 devices keys are repeated. A vocabulary whose parts are
    no multiple of the sampler's blocks."""
    sizes = {
        "vocab_size": 600, "num_layers": 2, "d_model": 32, "num_heads": 8, "num_kv_heads": 2,
        "head_dim": 4, "d_ff": 64, "max_positions": 32,
    }  # fmt: skip
    return DecoderConfig(**(sizes | changes))


@functools.cache
def weights(shape: DecoderConfig):
    """Random parameters, numpy, large enough for uneven distributions."""
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(Decoder(shape).init)(jax.random.key(0), tokens, tokens)["params"]
    return jax.tree.map(lambda x: np.asarray(x * 4 if x.ndim > 1 else x + 0.1), params)


def placement(tensor: int) -> sharding.Placement:
    return sharding.Placement(sharding.make_mesh(1, 8, 1)).regrouped(tensor)


def batch():
    tokens = np.random.default_rng(1).integers(2, 600, (PROMPTS, WIDTH)).astype(np.int32)
    return tokens, (np.arange(WIDTH) >= np.arange(PROMPTS)[:, None] % 5).astype(np.int32)


def moved(compiled) -> dict[str, int]:
    """Return how often each kind of collective runs in a program."""
    counts: dict[str, int] = {}
    for opcode, _, times in hlo_cost.collectives(hlo_cost.read_program(compiled.as_text())):
        counts[opcode] = counts.get(opcode, 0) + times
    return counts


def decoded(shape: DecoderConfig, place: sharding.Placement, change=lambda params: params):
    """Prefill and decode one token on two samples of every prompt; return the compiled program and
    the final hidden states before and after that token."""

    def run(params, tokens, mask):
        weights = generation.decode_weights(params, shape, place)
        before, prompts = generation.prefill(params, shape, tokens, mask, place)
        ring = generation.empty_cache(shape, 2 * PROMPTS, LENGTH, place)
        drawn = jnp.repeat(tokens[:, 3], 2)
        after, _ = generation.decode_step(weights, shape, drawn, jnp.int32(0), mask, prompts, ring)
        return before, after

    inputs = place.params(change(weights(shape))), *place.rows(batch())
    compiled = jit_placed(run, place, keep="rows", rows=(1, 2)).lower(*inputs).compile()
    return compiled, jax.device_get(compiled(*inputs))


def test_every_family_is_here() -> None:
    known = {name for name, each in ARCHITECTURES.items() if each.kind == "decoder"}
    assert set(LAYERS) | set(LIKE) == known and set(LIKE.values()) <= set(LAYERS)


@pytest.mark.parametrize(
    ("family", "tensor"),
    [("llama", 2), ("llama", 8), ("olmo2", 8), *[(name, 4) for name in LAYERS]],
)
def test_prefill_and_decoding_hand_nothing_to_a_neighbour(family: str, tensor: int) -> None:
    """They sum up, twice a layer, and gather, and compute what one device does."""
    shape = shape_of(**LAYERS[family])
    compiled, many = decoded(shape, placement(tensor))
    counts = moved(compiled)
    assert counts["all-reduce"] >= 2 * 2 * shape.num_layers
    assert not {"collective-permute", "all-to-all"} & set(counts), counts
    _, one = decoded(shape, sharding.ONE_DEVICE)
    for left, right in zip(one, many):
        assert np.abs(left).mean() > 0.1
        np.testing.assert_allclose(right, left, atol=3e-5)


def test_heads_that_do_not_divide_are_computed_whole() -> None:
    """9 heads and 3 key heads on 2 devices: the feed-forward is split, attention is not."""
    shape = shape_of(num_heads=9, num_kv_heads=3, vocab_size=601)
    assert generation.head_parts(shape, placement(2)) == 1
    compiled, many = decoded(shape, placement(2))
    assert not {"collective-permute", "all-to-all"} & set(moved(compiled))
    for left, right in zip(decoded(shape, sharding.ONE_DEVICE)[1], many):
        np.testing.assert_allclose(right, left, atol=3e-5)


def test_int8_matrices_lie_as_others_do() -> None:
    shape = shape_of(attn_bias="qkv")
    compiled, many = decoded(shape, placement(4), generation.quantised)
    assert not {"collective-permute", "all-to-all"} & set(moved(compiled))
    _, one = decoded(shape, sharding.ONE_DEVICE, generation.quantised)
    for left, right in zip(one, many):
        np.testing.assert_allclose(right, left, atol=3e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tensor", "parts"),
    [(28, 4, 4, 4), (28, 4, 2, 2), (28, 4, 8, 1), (16, 2, 8, 8), (12, 2, 4, 4), (14, 2, 4, 1)],
)
def test_over_how_many_devices_heads_are_split(heads, kv_heads, tensor, parts) -> None:
    shape = shape_of(num_heads=heads, num_kv_heads=kv_heads)
    assert generation.head_parts(shape, placement(tensor)) == parts


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}])
def test_a_sampler_draws_the_same_tokens_and_permutes_nothing(options) -> None:
    """A vocabulary whose parts are no multiple of the sampler's blocks, on 4 devices."""
    tokens, mask = batch()
    keys = jax.random.split(jax.random.key(9), 2 * PROMPTS)
    rollouts = []
    for place in (sharding.ONE_DEVICE, placement(4)):
        sample = make_sampler(
            Decoder(shape_of()), max_new_tokens=LENGTH, eos_ids=(1,), pad_id=0, place=place,
            **options,
        )  # fmt: skip
        inputs = place.params(weights(shape_of())), *place.rows((tokens, mask, keys)), 1.0
        compiled = sample.lower(*inputs).compile()
        rollouts.append(jax.device_get(compiled(*inputs)))
    assert "collective-permute" not in moved(compiled), moved(compiled)
    one, many = rollouts
    np.testing.assert_array_equal(one.tokens_BT, many.tokens_BT)
    np.testing.assert_allclose(one.logprobs_BR, many.logprobs_BR, atol=1e-5)
    assert one.logprobs_BR.std() > 0.3
