"""Tiny random torch models and their parameters in our tree, mapped here by hand.

The mapping is written out once more, and plainly, so that the tests of the modules do not lean on
the import table that `test_parameter_map.py` tests.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from gapo_jax.models import DecoderConfig, EncoderConfig


def _stack(state, num_layers, name, transpose=True):
    tensors = [state[name.format(layer)].numpy() for layer in range(num_layers)]
    return np.stack([tensor.T if transpose else tensor for tensor in tensors])


def llama(*, tied=True, seed=0, **changes):
    """A random LlamaForCausalLM with 2 kv heads for 6 heads, our config and our parameters."""
    torch.manual_seed(seed)
    config = DecoderConfig(
        vocab_size=300, num_layers=3, d_model=48, num_heads=6, num_kv_heads=2, head_dim=8, d_ff=80,
        rope_theta=500.0, norm_eps=1e-5, max_positions=64, tie_embeddings=tied, **changes,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size, num_hidden_layers=config.num_layers,
            hidden_size=config.d_model, num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
            intermediate_size=config.d_ff, rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.max_positions, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            initializer_range=0.15, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
    state = model.state_dict()

    def kernel(name):
        return {"kernel": _stack(state, config.num_layers, f"model.layers.{{}}.{name}.weight")}

    def scale(name):
        key = f"model.layers.{{}}.{name}.weight"
        return {"scale": _stack(state, config.num_layers, key, transpose=False)}

    params = {
        "embed": {"embedding": state["model.embed_tokens.weight"].numpy()},
        "layers": {
            "attn_norm": scale("input_layernorm"),
            "attn": {letter: kernel(f"self_attn.{letter}_proj") for letter in "qkvo"},
            "mlp_norm": scale("post_attention_layernorm"),
            "mlp": {name: kernel(f"mlp.{name}_proj") for name in ("gate", "up", "down")},
        },
        "final_norm": {"scale": state["model.norm.weight"].numpy()},
    }
    if not tied:
        params["lm_head"] = {"kernel": state["lm_head.weight"].numpy().T}
    return model, config, params


def bert(**changes):
    """A random BertModel, our config and our parameters."""
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=120, num_layers=3, d_model=32, num_heads=4, d_ff=72, max_positions=40, **changes
    )
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=config.vocab_size, num_hidden_layers=config.num_layers,
            hidden_size=config.d_model, num_attention_heads=config.num_heads,
            intermediate_size=config.d_ff, max_position_embeddings=config.max_positions,
            type_vocab_size=config.type_vocab_size, layer_norm_eps=config.norm_eps,
            initializer_range=0.2,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "LayerNorm.weight" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                tensor.uniform_(-0.3, 0.3)
    state = model.state_dict()

    def linear(name):
        key = f"encoder.layer.{{}}.{name}"
        return {
            "kernel": _stack(state, config.num_layers, key + ".weight"),
            "bias": _stack(state, config.num_layers, key + ".bias"),
        }

    def norm(name):
        key = f"encoder.layer.{{}}.{name}.LayerNorm"
        return {
            "scale": _stack(state, config.num_layers, key + ".weight", transpose=False),
            "bias": _stack(state, config.num_layers, key + ".bias"),
        }

    def table(name):
        return {"embedding": state[f"embeddings.{name}_embeddings.weight"].numpy()}

    params = {
        "embed": {
            "word": table("word"),
            "position": table("position"),
            "type": table("token_type"),
            "norm": {
                "scale": state["embeddings.LayerNorm.weight"].numpy(),
                "bias": state["embeddings.LayerNorm.bias"].numpy(),
            },
        },
        "layers": {
            "attn": {
                "q": linear("attention.self.query"),
                "k": linear("attention.self.key"),
                "v": linear("attention.self.value"),
                "o": linear("attention.output.dense"),
            },
            "attn_norm": norm("attention.output"),
            "mlp": {"up": linear("intermediate.dense"), "down": linear("output.dense")},
            "mlp_norm": norm("output"),
        },
    }
    return model, config, params


@pytest.fixture(scope="session")
def make_llama():
    return llama


@pytest.fixture(scope="session")
def make_bert():
    return bert
