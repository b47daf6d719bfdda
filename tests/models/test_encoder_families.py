"""What differs between encoder families: windows in linear memory, frozen layers, names."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from gapo_jax.models import Discriminator, Encoder, EncoderConfig, save_hf
from gapo_jax.models import encoder_attention as attention
from gapo_jax.models.hf import parameter_map
from gapo_jax.models.hf.encoder_configs import (
    deberta_to_config,
    longformer_to_config,
    modernbert_to_config,
    roberta_to_config,
)
from gapo_jax.rng import Stream
from gapo_jax.sharding import make_mesh, param_shardings

SHAPE = {"vocab_size": 50, "num_layers": 4, "d_model": 16, "num_heads": 2, "d_ff": 24}
CONFIGS = {
    "bert": EncoderConfig(**SHAPE),
    "roberta": EncoderConfig(
        **SHAPE, family="roberta", position_offset=2, type_vocab_size=1, pad_id=1
    ),
    "longformer": EncoderConfig(
        **SHAPE,
        family="longformer",
        position_offset=2,
        type_vocab_size=1,
        pad_id=1,
        windows=(4, 2, 4, 4),
        global_first=True,
        max_positions=4096,
    ),
    "modernbert": EncoderConfig(
        **SHAPE,
        family="modernbert",
        type_vocab_size=0,
        positions="rope",
        rope_thetas=(160000.0, 10000.0),
        windows=(0, 4, 4, 0),
        pre_norm=True,
        use_bias=False,
        gated=True,
        hf_pooling="mean",
        max_positions=8192,
    ),
    "deberta-v2": EncoderConfig(
        **SHAPE, family="deberta-v2", type_vocab_size=0, positions="relative", relative_buckets=8
    ),
}
families = pytest.mark.parametrize("family", CONFIGS)


def shapes_of(module):
    tokens_BT = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(module.init, jax.random.key(0), tokens_BT, tokens_BT)["params"]


def random_params(module):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes_of(module)
    )


def texts(length=30):
    mask_BT = (np.arange(length) < np.array([[length], [length - 9]])).astype(np.int32)
    tokens_BT = np.random.default_rng(0).integers(3, 50, mask_BT.shape).astype(np.int32)
    return tokens_BT * mask_BT + (1 - mask_BT), mask_BT, (np.arange(length) > 7) * mask_BT


def largest_array(jaxpr):
    """Elements of the largest array that a jaxpr makes, inner ones included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape")]
        sizes += [largest_array(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


@pytest.mark.parametrize(("family", "power"), [("longformer", 1), ("modernbert", 1), ("bert", 2)])
def test_memory_of_forward_and_backward_grows_linearly_with_windows(family, power):
    config = dataclasses.replace(CONFIGS[family], max_positions=8192)
    params = shapes_of(Encoder(config))

    def largest(length):
        def loss(params, tokens_BT):
            return Encoder(config).apply({"params": params}, tokens_BT, tokens_BT).sum()

        tokens_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return largest_array(jax.make_jaxpr(jax.grad(loss))(params, tokens_BT).jaxpr)

    # Position tables and their gradients are as large as the longest text allowed.
    assert largest(8192) == pytest.approx(2**power * largest(4096), rel=0.05)


@pytest.mark.parametrize(
    "family", ["modernbert", pytest.param("deberta-v2", marks=pytest.mark.slow)]
)
def test_no_gradient_below_and_the_same_above(family):
    config, first = CONFIGS[family], 2
    params = random_params(Encoder(config))
    batch = texts()
    weights_BTD = np.random.default_rng(1).standard_normal((2, 30, 16)) * batch[1][..., None]

    def loss(encode, params):
        return (encode(params) * weights_BTD).sum()

    def whole(params):
        return Encoder(config).apply({"params": params}, *batch)

    def above(params):
        return Encoder(config).apply({"params": params}, *batch, frozen_layers=first)

    both = jax.jit(
        lambda params: [
            jax.value_and_grad(functools.partial(loss, f))(params) for f in (whole, above)
        ]
    )
    (value, full), (value_above, cut) = both(params)
    np.testing.assert_allclose(value_above, value, rtol=1e-5)
    for name in set(params) - {"embed", "layers"}:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4), cut[name], full[name]
        )
    for got, want in zip(jax.tree.leaves(cut["layers"]), jax.tree.leaves(full["layers"])):
        np.testing.assert_allclose(got[first:], want[first:], rtol=1e-4, atol=1e-5)
        assert not got[:first].any()
    assert not any(leaf.any() for leaf in jax.tree.leaves(cut["embed"]))


@pytest.mark.parametrize("family", ["longformer", "modernbert", "deberta-v2"])
def test_dropout_remat_and_bfloat16_trace(family):
    """Shapes and types only: that no family mixes types or leaks a tracer into a branch."""
    for changes in ({"remat": "full", "dtype": "bfloat16"}, {"remat": "dots", "scan_unroll": 4}):
        config = dataclasses.replace(CONFIGS[family], dropout=0.1, **changes)
        module = Discriminator(config, "hf")

        def loss(params, key, apply=module.apply):
            rngs = {"dropout": key}
            return apply({"params": params}, *texts(), deterministic=False, rngs=rngs).sum()

        jax.eval_shape(jax.grad(loss), shapes_of(module), jax.random.key(0))
        hidden = jax.eval_shape(
            Encoder(config).apply, {"params": shapes_of(Encoder(config))}, *texts()
        )
        assert hidden.dtype == changes.get("dtype", "float32")


@pytest.mark.parametrize(
    ("family", "remat"), [*((name, "none") for name in CONFIGS), ("bert", "full")]
)
def test_dropout_is_the_same_with_frozen_layers(family, remat):
    """Frozen layers change the gradient only: each layer has its own masks, of the one key.

    Both halves once drew from the same key, so that the upper layers repeated the masks of the
    lower ones.
    """
    config = dataclasses.replace(CONFIGS[family], dropout=0.3, remat=remat)
    module = Discriminator(config, "hf")
    params = random_params(module)

    @functools.partial(jax.jit, static_argnums=1)
    def run(key, frozen_layers):
        return module.apply(
            {"params": params}, *texts(), deterministic=False,
            frozen_layers=frozen_layers, rngs={"dropout": key}, method=_hidden,
        )  # fmt: skip

    want = run(jax.random.key(3), 0)
    np.testing.assert_allclose(run(jax.random.key(3), 1), want, rtol=1e-5, atol=1e-5)
    assert np.abs(want - run(jax.random.key(4), 0)).max() > 0.1


def _hidden(module, tokens_BT, mask_BT, type_ids_BT, **options):
    return module.encoder(tokens_BT, mask_BT, type_ids_BT, **options)


def test_every_layer_drops_other_units(monkeypatch):
    """With frozen layers too: every key and name that dropout is made with are used once."""
    keys, make_drop = [], attention.make_drop

    def recorded(rate, key, name):
        if key is not None:
            record = functools.partial(lambda name, data: keys.append((name, *data.tolist())), name)
            jax.debug.callback(record, jax.random.key_data(key))
        return make_drop(rate, key, name)

    monkeypatch.setattr(attention, "make_drop", recorded)
    config = dataclasses.replace(CONFIGS["bert"], dropout=0.3)
    params = random_params(Encoder(config))
    Encoder(config).apply(
        {"params": params}, *texts(), deterministic=False, frozen_layers=2,
        rngs={"dropout": jax.random.key(0)},
    )  # fmt: skip
    jax.effects_barrier()
    # Embeddings, and for each of the four layers its outputs and its attention weights.
    assert len(keys) == len(set(keys)) == 1 + 4 * 2


def test_frozen_layers_must_leave_one_to_train():
    config = CONFIGS["bert"]
    params = random_params(Encoder(config))
    with pytest.raises(ValueError, match=r"frozen_layers must lie in 0..3, got 4"):
        Encoder(config).apply({"params": params}, *texts(), frozen_layers=4)


def test_dropped_weights_differ_by_index_and_keep_their_mean():
    weights = jnp.ones((4, 5, 200))
    drop = attention.make_drop(0.25, jax.random.key(0), Stream.DROPOUT_WEIGHTS)
    one, other = (np.asarray(drop(weights, index)) for index in (0, 1))
    assert set(np.unique(one)) == {0.0, np.float32(1 / 0.75)}
    assert abs(one.mean() - 1.0) < 0.03 and (one != other).mean() > 0.3
    off = attention.make_drop(0.25, None, Stream.DROPOUT_WEIGHTS)
    np.testing.assert_array_equal(off(weights, 0), weights)


@pytest.mark.parametrize("length", [16, 27])
@pytest.mark.parametrize("first", [False, True])
def test_blocks_are_the_band_of_the_full_matrix(length, first):
    rng = np.random.default_rng(length)
    q, k, v = rng.standard_normal((3, 2, length, 2, 4)).astype(np.float32)
    mask_BT = (np.arange(length) >= np.array([[0], [5]])).astype(np.int32)
    first_BT = attention.first_tokens(jnp.array(mask_BT))
    near_TS = np.abs(np.subtract.outer(np.arange(length), np.arange(length))) <= 3
    seen_BTS = near_TS | np.asarray(first_BT)[:, None] if first else near_TS
    bias_BTS = np.where(seen_BTS & (mask_BT[:, None] > 0), 0.0, -np.inf)
    for text, start in enumerate((0, 5)):
        scores = np.einsum("tnh,snh->nts", q[text], k[text])[:, start:] / 2
        scores += bias_BTS[text][start:]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected = np.einsum("nts,snh->tnh", weights, v[text])
        drop = attention.make_drop(0.0, None, Stream.DROPOUT_WEIGHTS)
        got = attention.block_attention(q, k, v, mask_BT, 3, 4, drop, first_BT if first else None)
        np.testing.assert_allclose(got[text, start:], expected, atol=1e-5)


def test_log_buckets_are_those_of_transformers():
    """Over every distance that the v3 models can meet, and beyond."""
    import torch

    distances = np.arange(-700, 701)
    want = make_log_bucket_position(torch.tensor(distances), 256, 512).numpy()
    np.testing.assert_array_equal(attention.log_buckets(distances, 256, 512), want)


@families
def test_every_parameter_has_axes_and_a_tensor(family):
    module = Discriminator(CONFIGS[family], "hf")
    shapes = shapes_of(module)
    mesh = make_mesh(devices=jax.devices()[:1])
    assert len(jax.tree.leaves(param_shardings(mesh, shapes))) == len(jax.tree.leaves(shapes))
    arch = parameter_map.classifier_of(module.config)
    paths = [path for rule in parameter_map.rules_of(arch, module.config) for path in rule.paths]
    assert sorted(paths) == sorted(name for name, _ in parameter_map.flatten(shapes))


@families
def test_config_round_trip(family):
    arch, config = parameter_map.ARCHITECTURES[family], CONFIGS[family]
    assert arch.to_config({"model_type": family} | arch.from_config(config)) == config


# The released config.json files, as far as they say something about the network.
ROBERTA = {
    "model_type": "roberta", "hidden_act": "gelu", "hidden_size": 768, "intermediate_size": 3072,
    "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
}  # fmt: skip
LONGFORMER = ROBERTA | {
    "model_type": "longformer", "attention_mode": "longformer", "attention_window": [512] * 12,
    "max_position_embeddings": 4098,
}  # fmt: skip
MODERNBERT = {
    "model_type": "modernbert", "attention_bias": False, "classifier_pooling": "mean",
    "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "hidden_activation": "gelu",
    "hidden_size": 768, "intermediate_size": 1152, "local_attention": 128,
    "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False,
    "norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12, "num_hidden_layers": 22,
    "pad_token_id": 50283, "position_embedding_type": "absolute", "vocab_size": 50368,
}  # fmt: skip
DEBERTA = {
    "model_type": "deberta-v2", "hidden_act": "gelu", "hidden_size": 768,
    "intermediate_size": 3072, "layer_norm_eps": 1e-07, "max_position_embeddings": 512,
    "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 0, "pos_att_type": "p2c|c2p", "position_buckets": 256,
    "position_biased_input": False, "relative_attention": True, "share_att_key": True,
    "type_vocab_size": 0, "vocab_size": 128100,
}  # fmt: skip


def test_released_configs():
    assert roberta_to_config(ROBERTA).max_positions == 512
    longformer = longformer_to_config(LONGFORMER)
    assert longformer.max_positions == 4096 and longformer.windows == (256,) * 12
    modernbert = modernbert_to_config(MODERNBERT)
    assert modernbert.windows == (0, 64, 64) * 7 + (0,) and modernbert.hf_pooling == "mean"
    assert modernbert.rope_thetas == (160000.0, 10000.0)
    assert deberta_to_config(DEBERTA).relative_buckets == 256


@pytest.mark.parametrize(
    ("translate", "raw", "change"),
    [
        (roberta_to_config, ROBERTA, {"hidden_act": "relu"}),
        (roberta_to_config, ROBERTA, {"is_decoder": True}),
        (modernbert_to_config, MODERNBERT, {"attention_bias": True}),
        (modernbert_to_config, MODERNBERT, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (deberta_to_config, DEBERTA, {"conv_kernel_size": 3}),
        (deberta_to_config, DEBERTA, {"pos_att_type": "c2p"}),
        (deberta_to_config, DEBERTA, {"share_att_key": False}),
        (deberta_to_config, DEBERTA, {"position_biased_input": True}),
    ],
)
def test_features_that_we_lack_are_refused(translate, raw, change):
    with pytest.raises(ValueError, match="does not have. Choose a model without it"):
        translate(raw | change)


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("bert", {"positions": "alibi"}, "'learned', 'rope', 'relative'"),
        ("modernbert", {"windows": (0, 4)}, "each of the 4 layers"),
        ("longformer", {"windows": (0, 4, 4, 4)}, "global_first needs a window in every layer"),
        ("deberta-v2", {"relative_buckets": 0}, "relative_buckets must be above 0"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(family, change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIGS[family], **change)


def test_what_config_json_cannot_say_is_not_exported(tmp_path):
    config = dataclasses.replace(CONFIGS["bert"], windows=(0, 4, 4, 0))
    module = Encoder(config)
    with pytest.raises(ValueError, match="'bert' can describe, got.*windows.*of the EncoderConfig"):
        save_hf(module, random_params(module), tmp_path / "export")


def test_a_head_of_ours_does_not_go_with_that_of_transformers():
    with pytest.raises(ValueError, match="hidden_dim must be None with pooling 'hf'"):
        shapes_of(Discriminator(CONFIGS["bert"], "hf", 8))
