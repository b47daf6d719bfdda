"""The tables of the decoder families: Hugging Face's tensors, llama.cpp's, and our parameters.

All families but GPT-2 use the same names for what they share, so one list of rows serves them;
which rows exist depends on the config. To add a family, extend the rows, write its two translations
in `decoder_configs`, and add an `Architecture`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.hf import decoder_configs
from gapo_jax.models.hf.architecture import Architecture, Json, Rule

# Conditions on the config.


def _untied(config: DecoderConfig) -> bool:
    return not config.tie_embeddings


def _pre(config: DecoderConfig) -> bool:
    return config.norm_placement == "pre"


def _post(config: DecoderConfig) -> bool:
    return config.norm_placement != "pre"


def _both(config: DecoderConfig) -> bool:
    return config.norm_placement == "both"


def _not_post(config: DecoderConfig) -> bool:
    return config.norm_placement != "post"


def _qkv_bias(config: DecoderConfig) -> bool:
    return config.attn_bias != "none"


def _o_bias(config: DecoderConfig) -> bool:
    return config.attn_bias == "all"


def _mlp_bias(config: DecoderConfig) -> bool:
    return config.mlp_bias


def _norm_heads(config: DecoderConfig) -> bool:
    return config.qk_norm == "head"


def _norm_all(config: DecoderConfig) -> bool:
    return config.qk_norm == "all"


def _row(
    hf: str,
    path: str,
    shape: str,
    gguf: str,
    when: Callable[[DecoderConfig], bool] | None = None,
    rotary: Literal["N", "K"] | None = None,
) -> Rule:
    """Return a row of every layer; `path` is without the leading "layers/"."""
    return Rule(
        "model.layers.{layer}." + hf,
        " ".join("layers/" + one for one in path.split()),
        shape,
        transpose=" " in shape,
        gguf="blk.{layer}." + gguf,
        rotary=rotary,
        when=when,
    )


_NORMS = (
    _row("input_layernorm.weight", "attn_norm/scale", "D", "attn_norm.weight", _not_post),
    _row("post_attention_layernorm.weight", "mlp_norm/scale", "D", "ffn_norm.weight", _pre),
    _row(
        "post_attention_layernorm.weight",
        "attn_post_norm/scale",
        "D",
        "post_attention_norm.weight",
        _post,
    ),
    _row("pre_feedforward_layernorm.weight", "mlp_norm/scale", "D", "ffn_norm.weight", _both),
    _row(
        "post_feedforward_layernorm.weight",
        "mlp_post_norm/scale",
        "D",
        "post_ffw_norm.weight",
        _post,
    ),
)
_QK_NORMS = tuple(
    _row(f"self_attn.{x}_norm.weight", f"attn/{x}_norm/scale", shape, f"attn_{x}_norm.weight", when)
    for x, sizes in (("q", "NH"), ("k", "KH"))
    for shape, when in (("H", _norm_heads), (sizes, _norm_all))
)
_SPLIT = (
    _row("self_attn.q_proj.weight", "attn/q/kernel", "NH D", "attn_q.weight", rotary="N"),
    _row("self_attn.k_proj.weight", "attn/k/kernel", "KH D", "attn_k.weight", rotary="K"),
    _row("self_attn.v_proj.weight", "attn/v/kernel", "KH D", "attn_v.weight"),
    _row("self_attn.q_proj.bias", "attn/q/bias", "NH", "attn_q.bias", _qkv_bias, "N"),
    _row("self_attn.k_proj.bias", "attn/k/bias", "KH", "attn_k.bias", _qkv_bias, "K"),
    _row("self_attn.v_proj.bias", "attn/v/bias", "KH", "attn_v.bias", _qkv_bias),
    _row("mlp.gate_proj.weight", "mlp/gate/kernel", "F D", "ffn_gate.weight"),
    _row("mlp.up_proj.weight", "mlp/up/kernel", "F D", "ffn_up.weight"),
    _row("mlp.gate_proj.bias", "mlp/gate/bias", "F", "ffn_gate.bias", _mlp_bias),
    _row("mlp.up_proj.bias", "mlp/up/bias", "F", "ffn_up.bias", _mlp_bias),
)
_FUSED = (
    _row(
        "self_attn.qkv_proj.weight",
        "attn/q/kernel attn/k/kernel attn/v/kernel",
        "NH+KH+KH D",
        "attn_qkv.weight",
    ),
    _row("mlp.gate_up_proj.weight", "mlp/gate/kernel mlp/up/kernel", "F+F D", "ffn_up.weight"),
)


def _table(*rows: Rule) -> tuple[Rule, ...]:
    """Return a whole table around the given rows of a layer."""
    return (
        Rule("model.embed_tokens.weight", "embed/embedding", "V D", gguf="token_embd.weight"),
        *_NORMS,
        *rows,
        _row("self_attn.o_proj.weight", "attn/o/kernel", "D NH", "attn_output.weight"),
        _row("self_attn.o_proj.bias", "attn/o/bias", "D", "attn_output.bias", _o_bias),
        _row("mlp.down_proj.weight", "mlp/down/kernel", "D F", "ffn_down.weight"),
        _row("mlp.down_proj.bias", "mlp/down/bias", "D", "ffn_down.bias", _mlp_bias),
        Rule("model.norm.weight", "final_norm/scale", "D", gguf="output_norm.weight"),
        Rule("lm_head.weight", "lm_head/kernel", "V D", True, gguf="output.weight", when=_untied),
    )


_LLAMA_RULES = _table(*_SPLIT, *_QK_NORMS)
_PHI3_RULES = _table(*_FUSED)


def _gpt2_row(hf: str, path: str, shape: str) -> Rule:
    paths = " ".join("layers/" + one for one in path.split())
    return Rule("transformer.h.{layer}." + hf, paths, shape)


# GPT-2's Conv1D stores [in, out], as we do.
_GPT2_RULES = (
    Rule("transformer.wte.weight", "embed/embedding", "V D"),
    Rule("transformer.wpe.weight", "position/embedding", "P D"),
    _gpt2_row("ln_1.weight", "attn_norm/scale", "D"),
    _gpt2_row("ln_1.bias", "attn_norm/bias", "D"),
    _gpt2_row("attn.c_attn.weight", "attn/q/kernel attn/k/kernel attn/v/kernel", "D NH+KH+KH"),
    _gpt2_row("attn.c_attn.bias", "attn/q/bias attn/k/bias attn/v/bias", "NH+KH+KH"),
    _gpt2_row("attn.c_proj.weight", "attn/o/kernel", "NH D"),
    _gpt2_row("attn.c_proj.bias", "attn/o/bias", "D"),
    _gpt2_row("ln_2.weight", "mlp_norm/scale", "D"),
    _gpt2_row("ln_2.bias", "mlp_norm/bias", "D"),
    _gpt2_row("mlp.c_fc.weight", "mlp/up/kernel", "D F"),
    _gpt2_row("mlp.c_fc.bias", "mlp/up/bias", "F"),
    _gpt2_row("mlp.c_proj.weight", "mlp/down/kernel", "F D"),
    _gpt2_row("mlp.c_proj.bias", "mlp/down/bias", "D"),
    Rule("transformer.ln_f.weight", "final_norm/scale", "D"),
    Rule("transformer.ln_f.bias", "final_norm/bias", "D"),
    Rule("lm_head.weight", "lm_head/kernel", "V D", True, when=_untied),
)

LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    kind="decoder",
    rules=_LLAMA_RULES,
    to_config=decoder_configs.llama_to_config,
    from_config=decoder_configs.llama_from_config,
    # Rotary tables, which old versions stored.
    ignored=(r".*\.rotary_emb\.inv_freq",),
    gguf_name="llama",
)


def _like_llama(
    model_type: str,
    class_name: str,
    to_config: Callable[[Json], DecoderConfig],
    gguf_name: str | None,
    rules: tuple[Rule, ...] = _LLAMA_RULES,
) -> Architecture:
    return dataclasses.replace(
        LLAMA,
        model_type=model_type,
        class_name=class_name,
        rules=rules,
        to_config=to_config,
        gguf_name=gguf_name,
    )


_GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    kind="decoder",
    rules=_GPT2_RULES,
    to_config=decoder_configs.gpt2_to_config,
    from_config=decoder_configs.gpt2_from_config,
    # Causal masks. The first releases also lack the prefix.
    ignored=(r".*\.attn\.(masked_)?bias",),
    aliases=((r"^(h\.\d+|wte|wpe|ln_f)\.", r"transformer.\g<0>"),),
)
DECODERS = (
    LLAMA,
    _like_llama("qwen2", "Qwen2ForCausalLM", decoder_configs.qwen2_to_config, "qwen2"),
    _like_llama("qwen3", "Qwen3ForCausalLM", decoder_configs.qwen3_to_config, "qwen3"),
    # llama.cpp's name for Mistral is "llama", without windows.
    _like_llama("mistral", "MistralForCausalLM", decoder_configs.mistral_to_config, None),
    _like_llama("gemma2", "Gemma2ForCausalLM", decoder_configs.gemma2_to_config, "gemma2"),
    _like_llama("gemma3_text", "Gemma3ForCausalLM", decoder_configs.gemma3_to_config, "gemma3"),
    _like_llama("phi3", "Phi3ForCausalLM", decoder_configs.phi3_to_config, "phi3", _PHI3_RULES),
    _like_llama("olmo2", "Olmo2ForCausalLM", decoder_configs.olmo2_to_config, "olmo2"),
    _GPT2,
)


def reward_architecture(arch: Architecture) -> Architecture:
    """Return the sequence classifier of a decoder family, a `RewardModel`.

    Its table is the decoder's without the output matrix, under "decoder/", and the scalar head
    `score` under "head/".
    """
    rows = tuple(
        dataclasses.replace(
            rule, path=" ".join("decoder/" + path for path in rule.paths), gguf=None
        )
        for rule in arch.rules
        if rule.hf != "lm_head.weight"
    )
    name = arch.class_name.replace("LMHeadModel", "ForCausalLM")
    name = name.replace("Gemma3For", "Gemma3TextFor").replace("CausalLM", "SequenceClassification")
    return dataclasses.replace(
        arch,
        class_name=name,
        rules=(*rows, Rule("score.weight", "head/out/kernel", "1 D", True)),
        ignored=(*arch.ignored, r"lm_head\.weight"),
        gguf_name=None,
    )
