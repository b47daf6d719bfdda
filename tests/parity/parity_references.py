"""Transformers' own models as references: tiny random ones, and the cached real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


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
    return jittered(BertModel(config))


def jittered(model: Any) -> Any:
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
