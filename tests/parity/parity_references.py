"""Transformers' own models as references: tiny random ones, and the cached real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


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
    "initializer_range": 0.3,
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
# Every family and variant: the class of transformers and what differs from `_SIZES`.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied, multi-head": ("Llama", {"num_key_value_heads": 4}),
    "llama, one kv head, biases": (
        "Llama",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3 rope scaling": ("Llama", {"rope_parameters": _LLAMA3}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows in the upper layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "gemma2": ("Gemma2", {"num_hidden_layers": 4, "sliding_window": 7, "query_pre_attn_scalar": 5}),
    "gemma3": (
        "Gemma3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 7,
            "query_pre_attn_scalar": 5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]
            + ["sliding_attention"],
            "rope_parameters": {"full_attention": _LINEAR, "sliding_attention": _SHORT},
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 7}),
    "olmo2": ("Olmo2", {}),
    "gpt2": ("GPT2", {}),
}


def tiny_config(case: str, **changes: Any) -> Any:
    """The configuration of transformers for a case of `DECODERS`."""
    name, differences = DECODERS[case]
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
    return _jittered(AutoModelForCausalLM.from_config(config))


def tiny_classifier(case: str) -> Any:
    """A random decoder with a scalar head."""
    torch.manual_seed(0)
    config = tiny_config(case, num_labels=1)
    return _jittered(AutoModelForSequenceClassification.from_config(config))


def tiny_bert() -> BertModel:
    """A random BERT with norms and biases away from their initial 1 and 0."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return _jittered(BertModel(config))


def _jittered(model: Any) -> Any:
    """Move every parameter a little, so that no scale is exactly 1 and no bias exactly 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def gguf_model(path: Path) -> Any:
    """The model that transformers reads from a GGUF file, float32.

    `from_pretrained(gguf_file=...)` wants accelerate; this takes its reader without the dispatch.
    """
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    record = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    left = model.load_state_dict(record["tensors"], strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def padded_batch(vocab: int, side: str, length: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens [4, T] and a mask with 0, 1, 7 and T - 1 columns of padding on one side."""
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(3, vocab, (4, length)).astype(np.int32)
    mask_BT = np.ones_like(tokens_BT)
    for row, padding in enumerate((0, 1, 7, length - 1)):
        columns = slice(0, padding) if side == "left" else slice(length - padding, length)
        mask_BT[row, columns] = 0
    return np.where(mask_BT > 0, tokens_BT, 0), mask_BT


def torch_outputs(model: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray) -> Any:
    """The output of a causal model, with hidden states; positions from the first real token."""
    mask = torch.tensor(mask_BT).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    tokens = torch.tensor(tokens_BT).long()
    return model(tokens, attention_mask=mask, position_ids=positions, output_hidden_states=True)


def torch_logits(model: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of a causal model."""
    with torch.no_grad():
        return torch_outputs(model, tokens_BT, mask_BT).logits.numpy()


def torch_greedy(model: Any, prompt: list[int], count: int, eos_ids: list[int]) -> list[int]:
    """Greedy tokens after a prompt, by transformers' `generate`."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=eos_ids,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()
