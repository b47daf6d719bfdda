"""`config.json` of the encoder families <-> `EncoderConfig`.

A value that asks for something the network lacks raises ValueError before any weight is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gapo_jax.models.encoder_config import EncoderConfig
from gapo_jax.models.hf.architecture import Json
from gapo_jax.models.hf.config_values import accept_only, required
from gapo_jax.records import JsonObject


def _shape(raw: Json, **fields: Any) -> EncoderConfig:
    """Return an `EncoderConfig` of the keys that all families share, and of `fields`."""
    common = {
        "family": raw.get("model_type", "bert"),
        "vocab_size": required(raw, "vocab_size"),
        "num_layers": required(raw, "num_hidden_layers"),
        "d_model": required(raw, "hidden_size"),
        "num_heads": required(raw, "num_attention_heads"),
        "d_ff": required(raw, "intermediate_size"),
    }
    return EncoderConfig(**(common | fields))


def _post_norm(raw: Json, default_pad: int, **fields: Any) -> EncoderConfig:
    """Return the `EncoderConfig` of a family with BERT's layers."""
    accept_only(raw, "hidden_act", "gelu")
    accept_only(raw, "position_embedding_type", "absolute")
    for key in ("is_decoder", "add_cross_attention"):
        accept_only(raw, key, False)
    pad_id = raw.get("pad_token_id")
    common = {
        "max_positions": raw.get("max_position_embeddings", 512),
        "type_vocab_size": raw.get("type_vocab_size", 2),
        "norm_eps": float(raw.get("layer_norm_eps", 1e-12)),
        "dropout": float(raw.get("hidden_dropout_prob", 0.1)),
        "pad_id": default_pad if pad_id is None else pad_id,
    }
    return _shape(raw, **(common | fields))


def _common_keys(config: EncoderConfig) -> JsonObject:
    """Return the keys of `config.json` that all families share."""
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_positions + config.position_offset,
        "pad_token_id": config.pad_id,
    }


def _post_norm_keys(config: EncoderConfig) -> JsonObject:
    """Return the keys of `config.json` that the families with BERT's layers share."""
    return _common_keys(config) | {
        "hidden_act": "gelu",
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def bert_to_config(raw: Json) -> EncoderConfig:
    """Translate a BERT `config.json` to an `EncoderConfig`.

    Raises:
        ValueError: relative positions, a decoder, or an activation other than the exact gelu.
    """
    return _post_norm(raw, default_pad=0)


def bert_from_config(config: EncoderConfig) -> JsonObject:
    """Translate an `EncoderConfig` to `config.json` keys of BERT."""
    return _post_norm_keys(config) | {"position_embedding_type": "absolute"}


def roberta_to_config(raw: Json) -> EncoderConfig:
    """Translate a RoBERTa `config.json`, whose positions of tokens begin after the padding id.

    Raises:
        ValueError: as `bert_to_config`.
    """
    config = _post_norm(raw, default_pad=1)
    offset = config.pad_id + 1
    return dataclasses.replace(
        config, position_offset=offset, max_positions=config.max_positions - offset
    )


def roberta_from_config(config: EncoderConfig) -> JsonObject:
    """Translate an `EncoderConfig` to `config.json` keys of RoBERTa."""
    return _post_norm_keys(config)


def longformer_to_config(raw: Json) -> EncoderConfig:
    """Translate a Longformer `config.json`, whose `attention_window` counts both sides together.

    Raises:
        ValueError: as `bert_to_config`, or a window is not even.
    """
    config = roberta_to_config(raw)
    window = raw.get("attention_window", 512)
    windows = window if isinstance(window, list) else [window] * config.num_layers
    if any(width % 2 or width < 2 for width in windows):
        raise ValueError(
            f"Wanted attention_window even and above 0 in config.json, got {window}. "
            "Download the model's config again."
        )
    halves = tuple(width // 2 for width in windows)
    return dataclasses.replace(config, windows=halves, global_first=True)


def longformer_from_config(config: EncoderConfig) -> JsonObject:
    """Translate an `EncoderConfig` to `config.json` keys of Longformer."""
    windows = [2 * half for half in config.windows]
    return _post_norm_keys(config) | {"attention_window": windows}


def deberta_to_config(raw: Json) -> EncoderConfig:
    """Translate a DeBERTa-v2 `config.json`, which the v3 models have, to an `EncoderConfig`.

    Raises:
        ValueError: something that v3 does not use: a convolution, absolute positions, or relative
            positions with separate projections, without buckets or norm, or in one direction only.
    """
    kinds = raw.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    checked = {
        **raw,
        "pos_att_type": "|".join(sorted(kind.strip().lower() for kind in kinds)),
        "relative_attention": raw.get("relative_attention", False),
        "share_att_key": raw.get("share_att_key", False),
        "position_biased_input": raw.get("position_biased_input", True),
        "norm_rel_ebd": raw.get("norm_rel_ebd", "none"),
        "conv_kernel_size": raw.get("conv_kernel_size", 0),
        "embedding_size": raw.get("embedding_size", raw.get("hidden_size")),
    }
    accept_only(checked, "pos_att_type", "c2p|p2c")
    accept_only(checked, "relative_attention", True)
    accept_only(checked, "share_att_key", True)
    accept_only(checked, "position_biased_input", False)
    accept_only(checked, "norm_rel_ebd", "layer_norm")
    accept_only(checked, "conv_kernel_size", 0)
    accept_only(checked, "embedding_size", raw.get("hidden_size"))
    accept_only(checked, "type_vocab_size", 0)
    accept_only(checked, "max_relative_positions", -1, 0, raw.get("max_position_embeddings", 512))
    return _post_norm(
        raw,
        default_pad=0,
        positions="relative",
        relative_buckets=required(raw, "position_buckets"),
        type_vocab_size=0,
        norm_eps=float(raw.get("layer_norm_eps", 1e-7)),
    )


def deberta_from_config(config: EncoderConfig) -> JsonObject:
    """Translate an `EncoderConfig` to `config.json` keys of DeBERTa-v2."""
    return _post_norm_keys(config) | {
        "relative_attention": True,
        "position_buckets": config.relative_buckets,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pooler_hidden_size": config.d_model,
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0.0,
    }


def modernbert_to_config(raw: Json) -> EncoderConfig:
    """Translate a ModernBERT `config.json`, in the spelling of transformers 4 or 5.

    Raises:
        ValueError: biases, scaled rotary angles, or an activation other than the exact gelu.
    """
    accept_only(raw, "hidden_activation", "gelu")
    accept_only(raw, "classifier_activation", "gelu")
    for key in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"):
        accept_only(raw, key, False)
    count = required(raw, "num_hidden_layers")
    every = raw.get("global_attn_every_n_layers", 3)
    kinds = raw.get("layer_types") or [
        "sliding_attention" if layer % every else "full_attention" for layer in range(count)
    ]
    scaling, ropes = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    thetas = []
    for kind, key, default in (
        ("full_attention", "global_rope_theta", 160000.0),
        ("sliding_attention", "local_rope_theta", 10000.0),
    ):
        rope = {**scaling, **(ropes.get(kind) or {})}
        accept_only(
            {**raw, "rope_type": rope.get("rope_type", rope.get("type"))}, "rope_type", "default"
        )
        thetas.append(float(rope.get("rope_theta") or raw.get(key) or default))
    reach = raw.get("local_attention", 128) // 2
    windows = tuple(reach if kind == "sliding_attention" else 0 for kind in kinds)
    pad_id = raw.get("pad_token_id", 50283)
    return _shape(
        raw,
        max_positions=raw.get("max_position_embeddings", 8192),
        type_vocab_size=0,
        norm_eps=float(raw.get("norm_eps", 1e-5)),
        dropout=float(raw.get("mlp_dropout", 0.0)),
        pad_id=0 if pad_id is None else pad_id,
        positions="rope",
        rope_thetas=(thetas[0], thetas[1]),
        windows=windows if any(windows) else (),
        pre_norm=True,
        use_bias=False,
        gated=True,
        hf_pooling=raw.get("classifier_pooling", "cls"),
    )


def modernbert_from_config(config: EncoderConfig) -> JsonObject:
    """Translate an `EncoderConfig` to `config.json` keys that transformers 4 and 5 both read."""
    windows = config.windows or (0,) * config.num_layers
    everywhere, near = config.rope_thetas
    return _common_keys(config) | {
        "hidden_activation": "gelu",
        "norm_eps": config.norm_eps,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "embedding_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "mlp_dropout": config.dropout,
        "local_attention": 2 * max(windows),
        "layer_types": ["sliding_attention" if reach else "full_attention" for reach in windows],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": everywhere},
            "sliding_attention": {"rope_type": "default", "rope_theta": near},
        },
        "global_rope_theta": everywhere,
        "local_rope_theta": near,
        "classifier_pooling": config.hf_pooling,
        "classifier_bias": False,
        "classifier_activation": "gelu",
    }
