"""The shapes of a few networks of the hub, so that a run can be planned without a download.

Planning compiles its programs for a machine that is not here; nothing is trained from these.
"""

from __future__ import annotations

import os

from gapo_jax import hub
from gapo_jax.models.hf import gguf_file
from gapo_jax.models.hf.architecture import Config, Json
from gapo_jax.models.hf.config_json import read_config
from gapo_jax.models.hf.parameter_map import ARCHITECTURES


def _qwen25(
    d_model: int, layers: int, heads: int, kv_heads: int, d_ff: int, **more: object
) -> Json:
    return {
        "model_type": "qwen2",
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": d_ff,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        **more,
    }


def _longformer(d_model: int, layers: int, heads: int) -> Json:
    return {
        "model_type": "longformer",
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * d_model,
        "hidden_act": "gelu",
        "attention_window": [512] * layers,
        "max_position_embeddings": 4098,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "vocab_size": 50265,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
    }


_SMALL = {"tie_word_embeddings": True, "vocab_size": 151936}
KNOWN: dict[str, Json] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen25(896, 24, 14, 2, 4864, **_SMALL),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen25(1536, 28, 12, 2, 8960, **_SMALL),
    "Qwen/Qwen2.5-7B-Instruct": _qwen25(3584, 28, 28, 4, 18944),
    "Qwen/Qwen2.5-7B": _qwen25(3584, 28, 28, 4, 18944, eos_token_id=151643),
    "allenai/longformer-base-4096": _longformer(768, 12, 12),
    "allenai/longformer-large-4096": _longformer(1024, 24, 16),
}


def shape_of(src: str | os.PathLike[str]) -> Config:
    """Return the shape of a network: one of `KNOWN`, or that of a folder, hub id or `.gguf` file.

    Raises:
        FileNotFoundError: it is not known and cannot be had; the message lists the known ones.
        ValueError: as `read_config`.
    """
    raw = KNOWN.get(str(src))
    if raw is None:
        try:
            path = hub.resolve(src)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} Known without any download: {', '.join(KNOWN)}."
            ) from error
        if path.is_file():
            return gguf_file.read_config(hub.open_gguf(path))[1]
        return read_config(path)[1]
    return ARCHITECTURES[raw["model_type"]].to_config(raw)
