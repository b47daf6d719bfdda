"""The tables: every tensor once, every parameter once, shapes held, both directions bit-exact."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gapo_jax.models import Decoder, DecoderConfig, Discriminator, Encoder, EncoderConfig
from gapo_jax.models.hf import parameter_map
from gapo_jax.models.hf.decoder_configs import (
    gemma2_to_config,
    gemma3_to_config,
    gpt2_to_config,
    llama_to_config,
    mistral_to_config,
    phi3_to_config,
    qwen2_to_config,
)
from gapo_jax.models.hf.encoder_configs import bert_to_config

DECODER = DecoderConfig(
    vocab_size=40, num_layers=3, d_model=12, num_heads=3, num_kv_heads=1, head_dim=6, d_ff=20
)
ENCODER = EncoderConfig(vocab_size=40, num_layers=2, d_model=12, num_heads=3, d_ff=20)


class Tensors(dict):
    """A dictionary of arrays as a `TensorSource`; counts the reads."""

    reads, dtype_of = 0, {}

    @property
    def shapes(self):
        return {name: array.shape for name, array in self.items()}

    @property
    def dtypes(self):
        return {name: self.dtype_of.get(name, "F32") for name in self}

    def read(self, name):
        self.reads += 1
        return self[name]


def _params(module):
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, jnp.ones_like(tokens))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes["params"])


CASES = {
    "tied decoder": (parameter_map.ARCHITECTURES["llama"], DECODER, Decoder(DECODER)),
    "untied decoder": (
        parameter_map.ARCHITECTURES["llama"],
        dataclasses.replace(DECODER, tie_embeddings=False),
        Decoder(dataclasses.replace(DECODER, tie_embeddings=False)),
    ),
    "encoder": (parameter_map.ARCHITECTURES["bert"], ENCODER, Encoder(ENCODER)),
    "classifier": (parameter_map.classifier_of(ENCODER), ENCODER, Discriminator(ENCODER, "hf")),
}


@pytest.mark.parametrize("case", CASES)
def test_tables_cover_the_networks_and_both_directions_agree(case):
    arch, config, module = CASES[case]
    params = _params(module)
    tensors = Tensors(parameter_map.export_tensors(arch, config, params))
    back = parameter_map.import_params(arch, config, tensors)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, params)))
    again = dict(parameter_map.export_tensors(arch, config, back))
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    assert tensors.reads == len(tensors)


@pytest.fixture
def llama():
    arch, config, module = CASES["tied decoder"]
    return arch, config, Tensors(parameter_map.export_tensors(arch, config, _params(module)))


def test_missing_and_unknown_tensors_are_both_listed_before_any_read(llama):
    arch, config, tensors = llama
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.3.input_layernorm.weight"] = np.zeros(12, np.float32)
    with pytest.raises(ValueError) as error:
        parameter_map.import_params(arch, config, tensors)
    assert "without a parameter: 1 (model.layers.3.input_layernorm.weight)" in str(error.value)
    assert "without a tensor: 1 (model.layers.1.mlp.up_proj.weight)" in str(error.value)
    assert tensors.reads == 0


def test_one_tensor_under_two_spellings_is_refused():
    arch, config, module = CASES["encoder"]
    tensors = Tensors(parameter_map.export_tensors(arch, config, _params(module)))
    name = "embeddings.LayerNorm.weight"
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors[name]
    with pytest.raises(ValueError, match=r"without a parameter: 1 \(bert.embeddings"):
        parameter_map.import_params(arch, config, tensors)
    del tensors[name]
    parameter_map.import_params(arch, config, tensors)


def test_wrong_shape_is_refused_before_any_read(llama):
    arch, config, tensors = llama
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((12, 12), np.float32)
    with pytest.raises(ValueError, match=r"Wanted shape \(6, 12\) for model.layers.0.self_attn.k"):
        parameter_map.import_params(arch, config, tensors)
    assert tensors.reads == 0


def test_what_carries_nothing_is_ignored(llama):
    arch, config, tensors = llama
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
    parameter_map.import_params(arch, config, tensors)
    untied = dataclasses.replace(config, tie_embeddings=False)
    assert "lm_head" in parameter_map.import_params(arch, untied, tensors)


def test_export_refuses_another_tree():
    arch, config, module = CASES["tied decoder"]
    params = _params(module)
    params["adapter"] = {"kernel": np.zeros(3)}
    del params["final_norm"]
    with pytest.raises(ValueError) as error:
        parameter_map.export_tensors(arch, config, params)
    assert "1 (adapter/kernel)" in str(error.value) and "1 (final_norm/scale)" in str(error.value)
    with pytest.raises(ValueError, match=r"for parameter embed/embedding, got \(40, 12\)"):
        other = dataclasses.replace(config, vocab_size=41)
        parameter_map.export_tensors(arch, other, _params(module))


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(ValueError, match="got model_type 'llama4'.*nearest supported.*'llama'"):
        parameter_map.architecture("llama4", "decoder")
    with pytest.raises(ValueError, match="got model_type 'gemma3'.*choice is 'gemma3_text'"):
        parameter_map.architecture("gemma3", "decoder")
    with pytest.raises(ValueError, match="got model_type 'rwkv'.*choice is 'llama'"):
        parameter_map.architecture("rwkv", "decoder")
    with pytest.raises(ValueError, match="Wanted an encoder"):
        parameter_map.architecture("llama", "encoder")


LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "num_hidden_layers": 3,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}


GPT2 = {"model_type": "gpt2", "vocab_size": 40, "n_layer": 3, "n_embd": 12, "n_head": 3}


def test_llama_config_both_spellings_of_rope_and_defaults():
    old = llama_to_config(LLAMA | {"rope_theta": 5e5, "eos_token_id": [7, 8], "rope_scaling": None})
    new = llama_to_config(
        LLAMA
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "eos_token_id": [7, 8]}
    )
    assert old == new and old.rope_theta == 5e5 and old.eos_ids == (7, 8) and old.pad_id == 7
    assert old.num_kv_heads == 3 and old.head_dim == 4 and not old.tie_embeddings
    assert llama_to_config(LLAMA).rope_theta == 10000.0


def test_what_older_files_leave_out_is_the_family_s_default():
    """Keys as on the hub, from before transformers wrote `layer_types`."""
    gemma = {**LLAMA, "head_dim": 256}
    config = gemma2_to_config(gemma | {"sliding_window": 4096})
    assert config.windows == (4096, 0, 4096)
    assert (config.attn_softcap, config.final_softcap, config.query_scalar) == (50.0, 30.0, 256.0)
    assert config.tie_embeddings and config.eos_ids == (1,) and config.activation == "gelu_tanh"
    config = gemma3_to_config(gemma | {"sliding_window": 512, "sliding_window_pattern": 3})
    assert config.windows == (512, 512, 0)
    assert (config.rope_theta, config.rope_local_theta) == (1e6, 10000.0)
    old = {"rope_theta": 5e5, "rope_local_base_freq": 7e3}
    config = gemma3_to_config(gemma | old | {"rope_scaling": {"type": "linear", "factor": 8.0}})
    assert (config.rope_theta, config.rope_local_theta) == (5e5, 7e3)
    assert config.rope_scaling == (8.0,)
    qwen = LLAMA | {"sliding_window": 99, "max_window_layers": 1}
    assert qwen2_to_config(qwen | {"use_sliding_window": False}).windows == ()
    assert qwen2_to_config(qwen | {"use_sliding_window": True}).windows == (0, 99, 99)
    mistral = LLAMA | {"num_key_value_heads": 1, "sliding_window": None}
    assert mistral_to_config(mistral).windows == ()
    assert gpt2_to_config(GPT2).d_ff == 48 and gpt2_to_config(GPT2).tie_embeddings


@pytest.mark.parametrize("case", ["tied decoder", "untied decoder", "encoder"])
def test_config_round_trip(case):
    arch, config, _ = CASES[case]
    assert arch.to_config({"model_type": arch.model_type} | arch.from_config(config)) == config


@pytest.mark.parametrize(
    ("translate", "change"),
    [
        (llama_to_config, {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}),
        (llama_to_config, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        (llama_to_config, {"hidden_act": "relu"}),
        (phi3_to_config, {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}),
        (phi3_to_config, {"partial_rotary_factor": 0.75}),
        (mistral_to_config, {"layer_types": ["chunked_attention"] * 3}),
        (gemma3_to_config, {"attn_logit_softcapping": 50.0}),
        (gemma3_to_config, {"use_bidirectional_attention": True}),
        (gpt2_to_config, GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
        (bert_to_config, {"hidden_act": "relu"}),
        (bert_to_config, {"position_embedding_type": "relative_key"}),
        (bert_to_config, {"is_decoder": True}),
    ],
)
def test_features_that_we_lack_are_refused(translate, change):
    with pytest.raises(ValueError, match="does not have. Choose a model without it"):
        translate(LLAMA | change)


def test_incomplete_config_names_the_key():
    incomplete = {key: value for key, value in LLAMA.items() if key != "intermediate_size"}
    with pytest.raises(ValueError, match="'intermediate_size'"):
        llama_to_config(incomplete)
