"""Tiny random decoders of every family, made by transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from parity_references import jittered
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

# What all tiny decoders have: few layers, a window (where there is one) shorter than the texts.
_SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.15,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
_SHORT = {"rope_type": "default", "rope_theta": 100.0}
# For every family the class of transformers and what differs from `_SIZES`.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "gemma2": (
        "Gemma2",
        {
            "num_hidden_layers": 3,
            "sliding_window": 7,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "num_hidden_layers": 3,
            "sliding_window": 7,
            "query_pre_attn_scalar": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": _LINEAR, "sliding_attention": _SHORT},
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 7}),
    "olmo2": ("Olmo2", {}),
    "gpt2": ("GPT2", {}),
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, untied, multi-head": ("Llama", {"num_key_value_heads": 4}),
    "llama, one kv head, biases": (
        "Llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3 rope scaling": ("Llama", {"rope_parameters": _LLAMA3}),
    "qwen2, windows in the upper layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
}


def tiny_config(case: str, **changes: Any) -> Any:
    """The configuration of transformers for a case of `FAMILIES` or `VARIANTS`."""
    name, differences = {**FAMILIES, **VARIANTS}[case]
    if name == "GPT2":
        keys = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "head_dim": ""}
        keys |= {"num_attention_heads": "n_head", "max_position_embeddings": "n_positions"}
        keys |= {"intermediate_size": "n_inner", "num_key_value_heads": ""}
        sizes = {keys.get(key, key): value for key, value in _SIZES.items()}
        sizes.pop("")
    else:
        rope = {"rope_type": "default", "rope_theta": 1000.0}
        sizes = {**_SIZES, "rope_parameters": rope}
    config_class = getattr(transformers, f"{name}TextConfig", None)
    config_class = config_class or getattr(transformers, f"{name}Config")
    return config_class(**{**sizes, **differences, **changes})


def tiny_decoder(case: str = "llama", **changes: Any) -> Any:
    """A random decoder whose logits are large enough (std about 1) to show an error."""
    torch.manual_seed(0)
    config = tiny_config(case, **changes)
    return jittered(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


def tiny_classifier(case: str) -> Any:
    """A random decoder with a scalar head."""
    torch.manual_seed(0)
    config = tiny_config(case, num_labels=1)
    return jittered(
        AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    )
