"""Hugging Face `config.json` <-> our configs, per architecture.

A value that asks for something the networks lack raises ValueError here, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gapo_jax.models.decoder import DecoderConfig


def _only(raw: Mapping[str, Any], key: str, *supported: Any) -> None:
    """Raise ValueError unless `raw[key]` is absent, None or one of the supported values."""
    value = raw.get(key)
    if value is not None and value not in supported:
        raise ValueError(
            f"Wanted {key} in {list(supported)} in config.json, got {value!r}, which this "
            f"{raw.get('model_type')} network does not have. Choose a model without it."
        )


def _required(raw: Mapping[str, Any], key: str) -> Any:
    """Return `raw[key]`; ValueError if absent."""
    if raw.get(key) is None:
        raise ValueError(
            f"Wanted the key {key!r} in config.json, got none. Download the model's config again."
        )
    return raw[key]


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """Return an id, a list of ids or None as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def llama_to_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Translate a Llama `config.json` (transformers 4 or 5 spelling) to a `DecoderConfig`.

    `pad_id` falls back to the first end-of-sequence id. Raises ValueError on rope scaling, biases
    and activations other than silu.
    """
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    _only({**raw, "rope_type": rope.get("rope_type", rope.get("type"))}, "rope_type", "default")
    _only(raw, "hidden_act", "silu", "swish")
    for key in ("attention_bias", "mlp_bias"):
        _only(raw, key, False)
    heads, width = _required(raw, "num_attention_heads"), _required(raw, "hidden_size")
    eos_ids = _token_ids(raw.get("eos_token_id"))
    pad_id = raw.get("pad_token_id")
    return DecoderConfig(
        vocab_size=_required(raw, "vocab_size"),
        num_layers=_required(raw, "num_hidden_layers"),
        d_model=width,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or width // heads,
        d_ff=_required(raw, "intermediate_size"),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_positions=raw.get("max_position_embeddings", 2048),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        eos_ids=eos_ids,
        pad_id=pad_id if pad_id is not None and pad_id >= 0 else (*eos_ids, 0)[0],
        bos_id=raw.get("bos_token_id"),
    )


def llama_from_config(config: DecoderConfig) -> dict[str, Any]:
    """Translate a `DecoderConfig` to `config.json` keys that transformers 4 and 5 both read."""
    eos_ids = list(config.eos_ids)
    return {
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
        "pad_token_id": config.pad_id,
        "bos_token_id": config.bos_id,
    }
