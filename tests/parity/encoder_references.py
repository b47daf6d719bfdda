"""Tiny random sequence classifiers of transformers, one for each encoder family, as references."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

_SHAPE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "num_labels": 1,
}
_NO_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
_ROBERTA = {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 66}
# name: (stem of the classes, what the config has beside the shape). The windows are a few tokens,
# so that 40 tokens are many blocks; `layer_types` and windows differ from layer to layer.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {"max_position_embeddings": 64, "attn_implementation": "eager"}),
    "roberta": ("Roberta", _ROBERTA | {"attn_implementation": "eager"}),
    "longformer": ("Longformer", _ROBERTA | {"attention_window": [8, 4, 8]}),
    "modernbert": (
        "ModernBert",
        {"local_attention": 8, "max_position_embeddings": 64, "pad_token_id": 0}
        | {"classifier_pooling": "mean", "attn_implementation": "eager"}
        | _NO_IDS,
    ),
    "deberta-v2": (
        "DebertaV2",
        {
            "max_position_embeddings": 64,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
}


def classifier(family: str, **more: Any) -> Any:
    """A random classifier of `family` with norms and biases away from their initial 1 and 0."""
    stem, changes = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{stem}Config")(**(_SHAPE | changes | more))
    model = getattr(transformers, f"{stem}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def torch_batch(
    model: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray, type_ids_BT: np.ndarray
) -> dict[str, torch.Tensor]:
    """The arguments of `model`: segment ids for BERT alone, Longformer's global token."""
    arrays = {"input_ids": tokens_BT, "attention_mask": mask_BT}
    if model.config.model_type == "bert":
        arrays["token_type_ids"] = type_ids_BT
    if model.config.model_type == "longformer":
        arrays["global_attention_mask"] = (np.cumsum(mask_BT, axis=1) == 1) & (mask_BT > 0)
    return {name: torch.tensor(array).long() for name, array in arrays.items()}
