"""`config.json` of the decoder families <-> `DecoderConfig`.

A value that asks for something the network lacks raises ValueError here, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.hf.architecture import Json
from gapo_jax.models.hf.config_values import accept_only, required, token_ids
from gapo_jax.models.layers import Activation
from gapo_jax.records import JsonObject

# Hugging Face's names of activations.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_ACTIVATION_NAMES: dict[Activation, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
}


def _activation(raw: Json, key: str) -> Activation:
    accept_only(raw, key, *_ACTIVATIONS)
    return _ACTIVATIONS[required(raw, key)]


def _scaling(raw: Json, rope: Json) -> tuple[float, ...]:
    """Translate a dictionary of rope parameters to `DecoderConfig.rope_scaling`."""
    kind = rope.get("rope_type", rope.get("type")) or "default"
    seen = {**raw, **rope, "rope_type": kind}
    accept_only(seen, "rope_type", "default", "linear", "llama3")
    accept_only(seen, "partial_rotary_factor", 1, 1.0)
    keys = {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }[kind]
    return tuple(float(required(seen, key)) for key in keys)


def _rope_keys(theta: float, scaling: tuple[float, ...]) -> JsonObject:
    """Translate back what `_scaling` reads, in the spelling of transformers 5."""
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    if len(scaling) == 1:
        return {"rope_type": "linear", "rope_theta": theta, "factor": scaling[0]}
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": scaling[0],
        "low_freq_factor": scaling[1],
        "high_freq_factor": scaling[2],
        "original_max_position_embeddings": int(scaling[3]),
    }


def _windows(raw: Json, is_local: Callable[[int], bool]) -> tuple[int, ...]:
    """Return `DecoderConfig.windows`, from `layer_types` or, in older files, `is_local(layer)`."""
    layers = range(required(raw, "num_hidden_layers"))
    kinds = raw.get("layer_types") or [
        "sliding_attention" if is_local(layer) else "full_attention" for layer in layers
    ]
    for kind in kinds:
        accept_only(
            {**raw, "layer_types": kind}, "layer_types", "sliding_attention", "full_attention"
        )
    if "sliding_attention" not in kinds:
        return ()
    width = required(raw, "sliding_window")
    return tuple(width if kind == "sliding_attention" else 0 for kind in kinds)


def _to_config(raw: Json, family: str, **choices: Any) -> DecoderConfig:
    """Translate what all families but GPT-2 have in common; `choices` are further fields."""
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    heads, width = required(raw, "num_attention_heads"), required(raw, "hidden_size")
    values: dict[str, Any] = {
        "rope_theta": float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        "activation": _activation({"hidden_act": "silu", **raw}, "hidden_act"),
        "attn_bias": "all" if raw.get("attention_bias") else "none",
        "tie_embeddings": bool(raw.get("tie_word_embeddings", False)),
    }
    if "rope_scaling" not in choices:
        values["rope_scaling"] = _scaling(raw, rope)
    return DecoderConfig(
        family=family,
        vocab_size=required(raw, "vocab_size"),
        num_layers=required(raw, "num_hidden_layers"),
        d_model=width,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or width // heads,
        d_ff=required(raw, "intermediate_size"),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_positions=raw.get("max_position_embeddings", 2048),
        **_special_tokens(raw),
        **{**values, **choices},
    )


def _special_tokens(raw: Json) -> JsonObject:
    """Return the fields of token ids.

    `pad_id` falls back to the first end-of-sequence id where the file has none, -1, or an id that
    has no embedding, all of which occur.
    """
    eos_ids = token_ids(raw, "eos_token_id")
    pads = [i for i in token_ids(raw, "pad_token_id") if 0 <= i < required(raw, "vocab_size")]
    bos_ids = token_ids(raw, "bos_token_id")
    return {
        "eos_ids": eos_ids,
        "pad_id": (*pads, *eos_ids, 0)[0],
        "bos_id": bos_ids[0] if bos_ids else None,
    }


def llama_to_config(raw: Json) -> DecoderConfig:
    """Translate a Llama `config.json`, in the spelling of transformers 4 or 5.

    Raises:
        ValueError: rope scaling other than linear and Llama 3's, or an unknown activation. The
            other translations raise it likewise.
    """
    return _to_config(raw, "llama", mlp_bias=bool(raw.get("mlp_bias")))


def _qwen_to_config(raw: Json, family: str, **choices: Any) -> DecoderConfig:
    raw = {"max_position_embeddings": 32768, "sliding_window": 4096, **raw}
    first = raw.get("max_window_layers", 28)
    local = bool(raw.get("use_sliding_window")) and raw["sliding_window"] is not None
    # Without `use_sliding_window` transformers gives no layer a window.
    kinds = raw if local else {**raw, "layer_types": None}
    windows = _windows(kinds, lambda layer: local and layer >= first)
    return _to_config(raw, family, windows=windows, **choices)


def qwen2_to_config(raw: Json) -> DecoderConfig:
    """Translate a Qwen2 or Qwen2.5 `config.json`."""
    return _qwen_to_config(raw, "qwen2", attn_bias="qkv")


def qwen3_to_config(raw: Json) -> DecoderConfig:
    """Translate a Qwen3 `config.json`."""
    return _qwen_to_config({"head_dim": 128, **raw}, "qwen3", qk_norm="head")


def mistral_to_config(raw: Json) -> DecoderConfig:
    """Translate a Mistral `config.json`."""
    raw = {"max_position_embeddings": 131072, "sliding_window": 4096, **raw}
    raw |= {"num_key_value_heads": raw.get("num_key_value_heads", 8)}
    windowed = raw["sliding_window"] is not None
    return _to_config(raw, "mistral", windows=_windows(raw, lambda layer: windowed))


def phi3_to_config(raw: Json) -> DecoderConfig:
    """Translate a Phi-3 or Phi-4 `config.json` (but not that of a long-context variant)."""
    raw = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **raw}
    raw = {"eos_token_id": 32000, "bos_token_id": 1, "pad_token_id": 32000, **raw}
    windowed = raw.get("sliding_window") is not None
    return _to_config(raw, "phi3", windows=_windows(raw, lambda layer: windowed))


def olmo2_to_config(raw: Json) -> DecoderConfig:
    """Translate an OLMo 2 `config.json`."""
    raw = {"rms_norm_eps": 1e-5, **raw}
    return _to_config(raw, "olmo2", norm_placement="post", qk_norm="all")


_GEMMA = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
}


def _gemma_to_config(raw: Json, family: str, **choices: Any) -> DecoderConfig:
    accept_only(raw, "use_bidirectional_attention", False)
    return _to_config(
        raw,
        family,
        norm="rms_plus_one",
        norm_placement="both",
        activation=_activation(raw, "hidden_activation"),
        query_scalar=float(raw["query_pre_attn_scalar"]),
        final_softcap=float(raw.get("final_logit_softcapping") or 0.0),
        scale_embeddings=True,
        **choices,
    )


def gemma2_to_config(raw: Json) -> DecoderConfig:
    """Translate a Gemma 2 `config.json`."""
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    raw = {**_GEMMA, **caps, "max_position_embeddings": 8192, **raw}
    return _gemma_to_config(
        raw,
        "gemma2",
        windows=_windows(raw, lambda layer: layer % 2 == 0),
        attn_softcap=float(raw["attn_logit_softcapping"] or 0.0),
    )


def gemma3_to_config(raw: Json) -> DecoderConfig:
    """Translate the `config.json` of a Gemma 3 text model."""
    raw = {**_GEMMA, "max_position_embeddings": 131072, **raw}
    accept_only(raw, "attn_logit_softcapping", 0.0)
    every = raw.get("sliding_window_pattern") or 6
    nested = raw.get("rope_parameters") or {}
    far = {**(raw.get("rope_scaling") or {}), **(nested.get("full_attention") or {})}
    near = nested.get("sliding_attention") or {}
    if _scaling(raw, near):
        raise ValueError(
            "Wanted rope_parameters without scaling for sliding_attention in config.json, got "
            f"{near}, which this gemma3_text network does not have. Choose a model without it."
        )
    return _gemma_to_config(
        raw,
        "gemma3_text",
        qk_norm="head",
        windows=_windows(raw, lambda layer: (layer + 1) % every != 0),
        rope_theta=float(far.get("rope_theta") or raw.get("rope_theta") or 1e6),
        rope_scaling=_scaling(raw, far),
        rope_local_theta=float(
            near.get("rope_theta") or raw.get("rope_local_base_freq") or 10000.0
        ),
    )


def llama_from_config(config: DecoderConfig) -> JsonObject:
    """Translate a `DecoderConfig` of any family but GPT-2 to the keys of a `config.json`.

    transformers 4 and 5 both read them.
    """
    rope = _rope_keys(config.rope_theta, config.rope_scaling)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    raw = {
        "hidden_act": _ACTIVATION_NAMES[config.activation],
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling if config.rope_scaling else None,
        "rope_parameters": rope,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.attn_bias == "all",
        **_token_keys(config),
    }
    if config.family == "llama":
        raw["mlp_bias"] = config.mlp_bias
    else:
        raw["sliding_window"] = config.window or None
    if config.family in ("qwen2", "qwen3"):
        raw["use_sliding_window"] = config.window > 0
    if config.family in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        kinds = ("full_attention", "sliding_attention")
        raw["layer_types"] = [kinds[local] for local in config.local_layers]
    if config.family in ("gemma2", "gemma3_text"):
        raw |= _gemma_keys(config, rope)
    return raw


def _gemma_keys(config: DecoderConfig, rope: Json) -> JsonObject:
    """Return the keys of Gemma alone."""
    scalar = config.query_scalar or config.head_dim
    raw: JsonObject = {
        "hidden_activation": _ACTIVATION_NAMES[config.activation],
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": config.attn_softcap or None,
        "final_logit_softcapping": config.final_softcap or None,
    }
    if config.family == "gemma3_text":
        near = config.rope_local_theta or config.rope_theta
        raw["rope_local_base_freq"] = near
        raw["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": _rope_keys(near, ()),
        }
    return raw


def _token_keys(config: DecoderConfig) -> JsonObject:
    """Return the keys of token ids."""
    eos_ids = list(config.eos_ids)
    return {
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
        "pad_token_id": config.pad_id,
        "bos_token_id": config.bos_id,
    }


def gpt2_to_config(raw: Json) -> DecoderConfig:
    """Translate a GPT-2 `config.json`; ValueError on its variants of attention."""
    accept_only(raw, "scale_attn_weights", True)
    accept_only(raw, "add_cross_attention", False)
    accept_only(raw, "scale_attn_by_inverse_layer_idx", False)
    raw = {"eos_token_id": 50256, "bos_token_id": 50256, "n_positions": 1024, **raw}
    heads, width = required(raw, "n_head"), required(raw, "n_embd")
    return DecoderConfig(
        family="gpt2",
        vocab_size=required(raw, "vocab_size"),
        num_layers=required(raw, "n_layer"),
        d_model=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        d_ff=raw.get("n_inner") or 4 * width,
        norm_eps=float(raw.get("layer_norm_epsilon", 1e-5)),
        max_positions=raw["n_positions"],
        tie_embeddings=bool(raw.get("tie_word_embeddings", True)),
        positions="learned",
        norm="layer",
        attn_bias="all",
        mlp_bias=True,
        activation=_activation({"activation_function": "gelu_new", **raw}, "activation_function"),
        gated=False,
        **_special_tokens(raw),
    )


def gpt2_from_config(config: DecoderConfig) -> JsonObject:
    """Translate a `DecoderConfig` to the keys of a GPT-2 `config.json`."""
    activation = config.activation
    return {
        # The same function; under the two names torch rounds in another order.
        "activation_function": {"gelu_tanh": "gelu_new"}.get(activation, activation),
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.d_model,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **_token_keys(config),
    }
