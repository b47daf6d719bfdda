"""The encoder against transformers' BertModel."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gapo_jax.models import Encoder


def apply(module, params, *args, method="__call__", **kwargs):
    """`module.apply`, compiled as a whole: many times faster to compile than op by op."""
    bound = functools.partial(module.apply, method=method, **kwargs)
    return jax.jit(bound)({"params": params}, *args)


@pytest.fixture
def texts():
    """tokens, mask and segment ids [3, 11]: texts of 11, 6 and 2 tokens, padded on the right."""
    rng = np.random.default_rng(0)
    mask_BT = (np.arange(11) < np.array([[11], [6], [2]])).astype(np.int32)
    tokens_BT = rng.integers(1, 120, mask_BT.shape).astype(np.int32) * mask_BT
    type_ids_BT = (np.arange(11) >= 4).astype(np.int32) * mask_BT
    return tokens_BT, mask_BT, type_ids_BT


def as_torch(*arrays):
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.from_numpy(array).long() for name, array in zip(names, arrays)}


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_hidden_states_and_gradients_match_transformers(make_bert, texts, remat):
    model, config, params = make_bert(remat=remat)
    tokens_BT, mask_BT, type_ids_BT = texts
    encoder = Encoder(config)
    weights_BTD = np.random.default_rng(1).standard_normal((3, 11, 32)).astype(np.float32)
    weights_BTD *= mask_BT[..., None]

    @jax.jit
    def loss(params):
        hidden_BTD = apply(encoder, params, *texts)
        return (hidden_BTD * weights_BTD).sum(), hidden_BTD

    grads, hidden_BTD = jax.grad(loss, has_aux=True)(params)
    expected_BTD = model(**as_torch(*texts)).last_hidden_state
    real_BT = mask_BT > 0
    np.testing.assert_allclose(
        hidden_BTD[real_BT], expected_BTD.detach().numpy()[real_BT], atol=1e-4
    )
    (expected_BTD * torch.from_numpy(weights_BTD)).sum().backward()
    layer = model.encoder.layer[1]
    pairs = {
        "query": (grads["layers"]["attn"]["q"]["kernel"][1].T, layer.attention.self.query.weight),
        "up": (grads["layers"]["mlp"]["up"]["bias"][1], layer.intermediate.dense.bias),
        "norm": (grads["layers"]["attn_norm"]["scale"][1], layer.attention.output.LayerNorm.weight),
        "word": (grads["embed"]["word"]["embedding"], model.embeddings.word_embeddings.weight),
    }
    for name, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(
            ours, theirs.grad, atol=1e-3 * theirs.grad.abs().max().item(), err_msg=name
        )


def test_segment_ids_default_to_zero(make_bert, texts):
    model, config, params = make_bert()
    tokens_BT, mask_BT, _ = texts
    hidden_BTD = apply(Encoder(config), params, tokens_BT, mask_BT)
    with torch.no_grad():
        expected_BTD = model(**as_torch(tokens_BT, mask_BT)).last_hidden_state.numpy()
    real_BT = mask_BT > 0
    np.testing.assert_allclose(hidden_BTD[real_BT], expected_BTD[real_BT], atol=1e-4)


def test_dropout_needs_a_key_and_acts_only_in_training(make_bert, texts):
    _, config, params = make_bert(dropout=0.2)
    encoder = Encoder(config)
    still_BTD = apply(encoder, params, *texts)
    plain_BTD = apply(Encoder(dataclasses.replace(config, dropout=0.0)), params, *texts)
    np.testing.assert_array_equal(still_BTD, plain_BTD)

    @jax.jit
    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return encoder.apply({"params": params}, *texts, deterministic=False, rngs=rngs)

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert jnp.abs(dropped(0) - dropped(1)).max() > 0.1
    assert jnp.abs(dropped(0) - still_BTD).max() > 0.1


def test_a_text_beyond_the_positions_is_refused(make_bert):
    _, config, params = make_bert()
    tokens_BT = np.ones((1, 41), np.int32)
    with pytest.raises(ValueError, match="at most 40 tokens, got 41"):
        apply(Encoder(config), params, tokens_BT, tokens_BT)


def test_a_width_that_heads_do_not_divide_is_refused(make_bert):
    _, config, _ = make_bert()
    with pytest.raises(ValueError, match="num_heads must divide d_model, got 5 and 32"):
        dataclasses.replace(config, num_heads=5)
