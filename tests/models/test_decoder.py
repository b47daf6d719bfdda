"""The decoder against transformers' LlamaForCausalLM, and the properties others build on."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gapo_jax.models import (
    Decoder,
    DecoderConfig,
    LayerStack,
    generation,
    positions_of,
    unembedding,
)


def apply(module, params, *args, method="__call__", **kwargs):
    """`module.apply`, compiled as a whole: many times faster to compile than op by op."""
    bound = functools.partial(module.apply, method=method, **kwargs)
    return jax.jit(bound)({"params": params}, *args)


LENGTHS = (9, 5, 1)


def tokens_and_mask(side, width=9, seed=0):
    """Random tokens [3, width], of which LENGTHS are real, padded on `side` with id 0."""
    mask_BT = (np.arange(width) < np.array(LENGTHS)[:, None]).astype(np.int32)
    if side == "left":
        mask_BT = mask_BT[:, ::-1].copy()
    tokens_BT = np.random.default_rng(seed).integers(3, 300, mask_BT.shape).astype(np.int32)
    return tokens_BT * mask_BT, mask_BT


def torch_outputs(model, tokens_BT, mask_BT):
    with torch.no_grad():
        out = model(
            torch.from_numpy(tokens_BT).long(),
            attention_mask=torch.from_numpy(mask_BT).long(),
            position_ids=torch.from_numpy(np.array(positions_of(mask_BT))).long(),
            output_hidden_states=True,
        )
    return out.logits.numpy(), out.hidden_states[-1].numpy()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_hidden_states_match_transformers(make_llama, side, tied):
    model, config, params = make_llama(tied=tied)
    tokens_BT, mask_BT = tokens_and_mask(side)
    decoder = Decoder(config)
    logits_BTV = apply(decoder, params, tokens_BT, mask_BT)
    hidden_BTD = apply(decoder, params, tokens_BT, mask_BT, method="hidden")
    expected_logits_BTV, expected_hidden_BTD = torch_outputs(model, tokens_BT, mask_BT)
    real_BT = mask_BT > 0
    assert logits_BTV.dtype == jnp.float32
    assert expected_logits_BTV[real_BT].std() > 0.3  # not all but zero
    np.testing.assert_allclose(logits_BTV[real_BT], expected_logits_BTV[real_BT], atol=1e-4)
    np.testing.assert_allclose(hidden_BTD[real_BT], expected_hidden_BTD[real_BT], atol=1e-4)
    np.testing.assert_allclose(hidden_BTD @ unembedding(params), logits_BTV, atol=1e-5)


def test_rope_theta_is_honoured(make_llama):
    _, config, params = make_llama()
    tokens_BT, mask_BT = tokens_and_mask("right")
    other = Decoder(dataclasses.replace(config, rope_theta=10000.0))
    ours_BTV = apply(Decoder(config), params, tokens_BT, mask_BT)
    assert np.abs(ours_BTV - apply(other, params, tokens_BT, mask_BT))[0].max() > 1e-2


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_gradients_match_torch(make_llama, remat):
    model, config, params = make_llama(remat=remat, tied=False)
    tokens_BT, mask_BT = tokens_and_mask("left")
    weights_BTV = (
        np.random.default_rng(1).standard_normal((*tokens_BT.shape, 300)) * mask_BT[..., None]
    )

    @jax.jit
    def loss(params):
        logits_BTV = apply(Decoder(config), params, tokens_BT, mask_BT)
        return (jax.nn.log_softmax(logits_BTV) * weights_BTV.astype(np.float32)).sum()

    grads = jax.grad(loss)(params)
    out = model(
        torch.from_numpy(tokens_BT).long(),
        attention_mask=torch.from_numpy(mask_BT).long(),
        position_ids=torch.from_numpy(np.array(positions_of(mask_BT))).long(),
    )
    model.zero_grad()
    (out.logits.log_softmax(-1) * torch.from_numpy(weights_BTV).float()).sum().backward()
    layer = model.model.layers[1]
    pairs = {
        "embedding": (grads["embed"]["embedding"], model.model.embed_tokens.weight.grad),
        "head": (grads["lm_head"]["kernel"].T, model.lm_head.weight.grad),
        "key": (grads["layers"]["attn"]["k"]["kernel"][1].T, layer.self_attn.k_proj.weight.grad),
        "down": (grads["layers"]["mlp"]["down"]["kernel"][1].T, layer.mlp.down_proj.weight.grad),
        "norm": (
            grads["layers"]["mlp_norm"]["scale"][1],
            layer.post_attention_layernorm.weight.grad,
        ),
    }
    for name, (ours, theirs) in pairs.items():
        scale = theirs.abs().max().item()
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * scale, err_msg=name)


def test_padding_changes_nothing(make_llama):
    _, config, params = make_llama()
    decoder = Decoder(config)
    tokens_BT, mask_BT = tokens_and_mask("left", width=14)
    noisy_BT = np.where(mask_BT > 0, tokens_BT, 77)
    logits_BTV = apply(decoder, params, tokens_BT, mask_BT)
    noisy_BTV = apply(decoder, params, noisy_BT, mask_BT)
    real_BT = mask_BT > 0
    assert np.isfinite(noisy_BTV).all()
    np.testing.assert_array_equal(logits_BTV[real_BT], noisy_BTV[real_BT])


def test_slices_of_the_stack_compose(make_llama):
    _, config, params = make_llama()
    decoder = Decoder(config)
    tokens_BT, mask_BT = tokens_and_mask("left")
    positions_BT = positions_of(mask_BT)
    hidden_BTD = apply(decoder, params, tokens_BT, method="embed_tokens")
    for start, stop in ((0, 2), (2, 3)):
        stack = LayerStack(config.part(start, stop))
        part = jax.tree.map(lambda stacked: stacked[start:stop], params["layers"])  # noqa: B023
        hidden_BTD = apply(stack, part, hidden_BTD, mask_BT, positions_BT)
    hidden_BTD = apply(decoder, params, hidden_BTD, method="final")
    expected_BTD = apply(decoder, params, tokens_BT, mask_BT, method="hidden")
    np.testing.assert_allclose(hidden_BTD, expected_BTD, atol=1e-5)


def test_slices_keep_their_windows_and_rotary_bases(make_llama):
    """Lower and upper layers run apart, as in training; each layer keeps its own kind."""
    _, config, params = make_llama()
    config = dataclasses.replace(config, windows=(3, 0, 3), rope_local_theta=50.0)
    tokens_BT, mask_BT = tokens_and_mask("left")
    positions_BT = positions_of(mask_BT)
    decoder = Decoder(config)
    hidden_BTD = apply(decoder, params, tokens_BT, method="embed_tokens")
    for start, stop in ((0, 1), (1, 3)):
        part = jax.tree.map(lambda stacked: stacked[start:stop], params["layers"])  # noqa: B023
        hidden_BTD = apply(
            LayerStack(config.part(start, stop)), part, hidden_BTD, mask_BT, positions_BT
        )
    hidden_BTD = apply(decoder, params, hidden_BTD, method="final")
    expected_BTD = apply(decoder, params, tokens_BT, mask_BT, method="hidden")
    np.testing.assert_allclose(hidden_BTD, expected_BTD, atol=1e-5)
    other = Decoder(dataclasses.replace(config, windows=(0, 3, 3)))
    other_BTD = apply(other, params, tokens_BT, mask_BT, method="hidden")
    assert np.abs(other_BTD - expected_BTD)[0].max() > 1e-2
    with pytest.raises(ValueError, match="take the config of a slice of layers with `part`"):
        dataclasses.replace(config, num_layers=1)


@pytest.mark.parametrize("samples", [1, 3])
def test_cached_decode_equals_the_full_forward(make_llama, samples):
    _, config, params = make_llama(tied=samples == 1)
    tokens_AP, mask_AP = tokens_and_mask("left")
    slots = 6
    rng = np.random.default_rng(5)
    response_BR = rng.integers(3, 300, (3 * samples, slots)).astype(np.int32)
    full_BT = np.concatenate([np.repeat(tokens_AP, samples, 0), response_BR], axis=1)
    full_mask_BT = np.concatenate(
        [np.repeat(mask_AP, samples, 0), np.ones_like(response_BR)], axis=1
    )
    expected_BTV = apply(Decoder(config), params, full_BT, full_mask_BT)

    weights = jax.jit(generation.decode_weights, static_argnums=1)(params, config)
    prefill = jax.jit(generation.prefill, static_argnums=1)
    hidden_AD, prompt_cache = prefill(params, config, tokens_AP, mask_AP)
    logits_AV = generation.next_logits(weights, hidden_AD)
    width = tokens_AP.shape[1]
    np.testing.assert_allclose(
        np.repeat(logits_AV, samples, 0), expected_BTV[:, width - 1], atol=1e-5
    )
    cache = generation.empty_cache(config, 3 * samples, slots)
    step_fn = jax.jit(generation.decode_step, static_argnums=1)
    for step in range(slots):
        hidden_BD, cache = step_fn(
            weights, config, response_BR[:, step], step, mask_AP, prompt_cache, cache
        )
        np.testing.assert_allclose(
            generation.next_logits(weights, hidden_BD), expected_BTV[:, width + step], atol=1e-5
        )


def test_params_are_float32_and_compute_dtype_is_configurable(make_llama):
    _, config, params = make_llama()
    tokens_BT, mask_BT = tokens_and_mask("right")
    half = Decoder(dataclasses.replace(config, dtype="bfloat16"))
    created = jax.jit(half.init)(jax.random.key(0), tokens_BT, mask_BT)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(created)} == {jnp.dtype("float32")}
    assert jax.tree.map(jnp.shape, created) == jax.tree.map(jnp.shape, params)
    hidden_BTD = apply(half, params, tokens_BT, mask_BT, method="hidden")
    assert hidden_BTD.dtype == jnp.bfloat16
    logits_BTV = apply(half, params, tokens_BT, mask_BT)
    exact_BTV = apply(Decoder(config), params, tokens_BT, mask_BT)
    assert logits_BTV.dtype == jnp.float32
    assert 0 < np.abs(logits_BTV - exact_BTV)[0].max() < 0.1 * np.abs(exact_BTV).max()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_kv_heads": 4}, "num_kv_heads must divide num_heads"),
        ({"head_dim": 7}, "even head_dim"),
        ({"remat": "some"}, "remat must be one of"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"windows": (4, 0, 5)}, "must have the same width"),
        ({"rope_scaling": (8.0, 1.0)}, "rope_scaling must be"),
    ],
)
def test_impossible_configs_say_what_is_wrong(make_llama, change, message):
    _, config, _ = make_llama()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


def test_the_second_call_compiles_nothing(make_llama):
    _, config, params = make_llama()
    tokens_BT, mask_BT = tokens_and_mask("left")
    forward = jax.jit(lambda params, tokens, mask: apply(Decoder(config), params, tokens, mask))
    forward(params, tokens_BT, mask_BT)
    forward(params, tokens_BT[::-1].copy(), mask_BT[::-1].copy())
    assert forward._cache_size() == 1
    assert hash(config) == hash(DecoderConfig(**dataclasses.asdict(config)))
