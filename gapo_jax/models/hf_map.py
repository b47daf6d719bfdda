"""One table per architecture: Hugging Face tensor name <-> parameter path, read both ways.

A row (`Rule`) names the tensor in HF's spelling and in llama.cpp's (GGUF), the parameter it fills,
its HF shape in letters, and whether it is transposed (torch's Linear stores [out, in], ours
[in, out]). `{layer}` in a name means one tensor per layer, stacked on the leading L axis. Import
uses every tensor exactly once and fills every parameter exactly once, or raises with both lists;
export is the same table read backwards, so import then export gives the source tensors bit for bit.

To add an architecture: write its rules and its two config translations, and put an `Architecture`
into `ARCHITECTURES`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gapo_jax.models import hf_config
from gapo_jax.models.decoder import DecoderConfig
from gapo_jax.models.encoder import EncoderConfig

Config = DecoderConfig | EncoderConfig


class TensorSource(Protocol):
    """Named tensors of a file or folder under HF names; `shapes` costs no tensor read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        ...


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row: see the module docstring. `rotary` names the head count (N or K) by which GGUF
    interleaves the rows; `when` is a condition on the config under which the row exists."""

    hf: str
    path: str
    shape: str
    transpose: bool = False
    gguf: str | None = None
    rotary: str | None = None
    when: Callable[[Any], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model family: its table, its config translations, and what its checkpoints may also hold.

    `ignored` lists patterns of tensors that carry nothing for us; `aliases` are (pattern,
    replacement) pairs that bring older spellings to the table's.
    """

    model_type: str
    class_name: str
    kind: str
    rules: tuple[Rule, ...]
    to_config: Callable[[Mapping[str, Any]], Config]
    from_config: Callable[[Any], dict[str, Any]]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()


def _tied(config: DecoderConfig) -> bool:
    return config.tie_embeddings


def _untied(config: DecoderConfig) -> bool:
    return not config.tie_embeddings


def _layer_rules(
    prefix: str, rows: Sequence[tuple[str, str, str, bool, str | None, str | None]]
) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            prefix + hf, "layers/" + path, shape, transpose, gguf and "blk.{layer}." + gguf, rotary
        )
        for hf, path, shape, transpose, gguf, rotary in rows
    )


LLAMA_RULES = (
    Rule("model.embed_tokens.weight", "embed/embedding", "V D", gguf="token_embd.weight"),
    *_layer_rules(
        "model.layers.{layer}.",
        [
            ("input_layernorm.weight", "attn_norm/scale", "D", False, "attn_norm.weight", None),
            ("self_attn.q_proj.weight", "attn/q/kernel", "NH D", True, "attn_q.weight", "N"),
            ("self_attn.k_proj.weight", "attn/k/kernel", "KH D", True, "attn_k.weight", "K"),
            ("self_attn.v_proj.weight", "attn/v/kernel", "KH D", True, "attn_v.weight", None),
            ("self_attn.o_proj.weight", "attn/o/kernel", "D NH", True, "attn_output.weight", None),
            (
                "post_attention_layernorm.weight",
                "mlp_norm/scale",
                "D",
                False,
                "ffn_norm.weight",
                None,
            ),
            ("mlp.gate_proj.weight", "mlp/gate/kernel", "F D", True, "ffn_gate.weight", None),
            ("mlp.up_proj.weight", "mlp/up/kernel", "F D", True, "ffn_up.weight", None),
            ("mlp.down_proj.weight", "mlp/down/kernel", "D F", True, "ffn_down.weight", None),
        ],
    ),
    Rule("model.norm.weight", "final_norm/scale", "D", gguf="output_norm.weight"),
    Rule("lm_head.weight", "lm_head/kernel", "V D", True, gguf="output.weight", when=_untied),
)


def _affine(hf: str, path: str, shape: str) -> list[tuple[str, str, str, bool, None, None]]:
    """The kernel and bias rows of one torch Linear."""
    return [
        (f"{hf}.weight", f"{path}/kernel", shape, True, None, None),
        (f"{hf}.bias", f"{path}/bias", shape.split()[0], False, None, None),
    ]


def _norm(hf: str, path: str) -> list[tuple[str, str, str, bool, None, None]]:
    """The scale and bias rows of one torch LayerNorm."""
    return [
        (f"{hf}.weight", f"{path}/scale", "D", False, None, None),
        (f"{hf}.bias", f"{path}/bias", "D", False, None, None),
    ]


BERT_RULES = (
    Rule("embeddings.word_embeddings.weight", "embed/word/embedding", "V D"),
    Rule("embeddings.position_embeddings.weight", "embed/position/embedding", "P D"),
    Rule("embeddings.token_type_embeddings.weight", "embed/type/embedding", "S D"),
    Rule("embeddings.LayerNorm.weight", "embed/norm/scale", "D"),
    Rule("embeddings.LayerNorm.bias", "embed/norm/bias", "D"),
    *_layer_rules(
        "encoder.layer.{layer}.",
        [
            *_affine("attention.self.query", "attn/q", "D D"),
            *_affine("attention.self.key", "attn/k", "D D"),
            *_affine("attention.self.value", "attn/v", "D D"),
            *_affine("attention.output.dense", "attn/o", "D D"),
            *_norm("attention.output.LayerNorm", "attn_norm"),
            *_affine("intermediate.dense", "mlp/up", "F D"),
            *_affine("output.dense", "mlp/down", "D F"),
            *_norm("output.LayerNorm", "mlp_norm"),
        ],
    ),
)
# BERT's classifier is linear(tanh(linear(first token))): our head with `hidden_dim == d_model` over
# "cls" pooling is the same function, so that discriminator is a BertForSequenceClassification.
BERT_CLASSIFIER_RULES = (
    *(dataclasses.replace(r, hf="bert." + r.hf, path="encoder/" + r.path) for r in BERT_RULES),
    Rule("bert.pooler.dense.weight", "head/up/kernel", "D D", True),
    Rule("bert.pooler.dense.bias", "head/up/bias", "D"),
    Rule("classifier.weight", "head/out/kernel", "1 D", True),
    Rule("classifier.bias", "head/out/bias", "1"),
)

_LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    kind="decoder",
    rules=LLAMA_RULES,
    to_config=hf_config.llama_to_config,
    from_config=hf_config.llama_from_config,
    # Rotary tables that old versions stored.
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
_BERT = Architecture(
    model_type="bert",
    class_name="BertModel",
    kind="encoder",
    rules=BERT_RULES,
    to_config=hf_config.bert_to_config,
    from_config=hf_config.bert_from_config,
    # A counter, and the heads of pretraining and classification: the encoder ends before them.
    ignored=(r"embeddings\.position_ids", r"pooler\..*", r"cls\..*", r"classifier\..*"),
    aliases=((r"^bert\.", ""), (r"LayerNorm\.gamma$", "LayerNorm.weight"))
    + ((r"LayerNorm\.beta$", "LayerNorm.bias"),),
)
BERT_CLASSIFIER = dataclasses.replace(
    _BERT,
    class_name="BertForSequenceClassification",
    rules=BERT_CLASSIFIER_RULES,
    ignored=(),
    aliases=(),
)
ARCHITECTURES = {architecture.model_type: architecture for architecture in (_LLAMA, _BERT)}


def architecture(model_type: str | None, kind: str) -> Architecture:
    """Return the table of `model_type`, which must be of `kind` ("decoder" or "encoder").

    Raises ValueError naming the nearest supported architecture.
    """
    known = {name: arch for name, arch in ARCHITECTURES.items() if arch.kind == kind}
    if model_type in known:
        return known[model_type]
    close = difflib.get_close_matches(str(model_type), known, 1, 0.5) or list(known)
    raise ValueError(
        f"Wanted {_article(kind)} of type {sorted(known)}, got model_type "
        f"{model_type!r}. The nearest supported choice is {close[0]!r}: give a model of that type."
    )


def _article(kind: str) -> str:
    return f"{'an' if kind == 'encoder' else 'a'} {kind}"


def architecture_of(config: Config) -> Architecture:
    """Return the architecture that a config of ours is written as."""
    return ARCHITECTURES["llama" if isinstance(config, DecoderConfig) else "bert"]


def _sizes(config: Config) -> dict[str, int]:
    """Sizes of the letters that the tables' shapes use."""
    sizes = {"V": config.vocab_size, "D": config.d_model, "F": config.d_ff, "1": 1}
    if isinstance(config, DecoderConfig):
        sizes["NH"] = config.num_heads * config.head_dim
        sizes["KH"] = config.num_kv_heads * config.head_dim
    else:
        sizes |= {"P": config.max_positions, "S": config.type_vocab_size}
    return sizes


def rules_of(arch: Architecture, config: Config) -> list[Rule]:
    """Return the rows that exist for this config."""
    return [rule for rule in arch.rules if rule.when is None or rule.when(config)]


def expand(rule: Rule, config: Config) -> list[str]:
    """Return the HF names of a row: one, or one per layer."""
    if "{layer}" not in rule.hf:
        return [rule.hf]
    return [rule.hf.format(layer=layer) for layer in range(config.num_layers)]


def hf_shape(rule: Rule, config: Config) -> tuple[int, ...]:
    """Return the shape that one HF tensor of the row must have."""
    sizes = _sizes(config)
    return tuple(sizes[letter] for letter in rule.shape.split())


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:20]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{len(names)} ({', '.join(shown)}{more})" if names else "none"


def match(arch: Architecture, config: Config, source: TensorSource) -> dict[str, str]:
    """Return {table's HF name: source's name}, having checked names and shapes, reading nothing.

    Raises ValueError with both lists unless each tensor is used once and each parameter filled
    once, and ValueError on a shape that contradicts the config.
    """
    ignored = list(arch.ignored)
    if isinstance(config, DecoderConfig) and config.tie_embeddings:
        # A tied file may repeat the embedding as lm_head; transformers does not read it either.
        ignored.append(r"lm_head\.weight")
    wanted = {name: rule for rule in rules_of(arch, config) for name in expand(rule, config)}
    found: dict[str, str] = {}
    unused = []
    for name in source.shapes:
        canonical = name
        for pattern, replacement in arch.aliases:
            canonical = re.sub(pattern, replacement, canonical)
        if canonical in wanted and canonical not in found:
            found[canonical] = name
        elif not any(re.fullmatch(pattern, canonical) for pattern in ignored):
            unused.append(name)
    missing = wanted.keys() - found.keys()
    if missing or unused:
        raise ValueError(
            f"Wanted each {arch.model_type} tensor used once and each parameter filled once, got "
            f"tensors without a parameter: {_listed(unused)}; parameters without a tensor: "
            f"{_listed(missing)}. The file is incomplete, or config.json is of another model."
        )
    for canonical, name in found.items():
        want = hf_shape(wanted[canonical], config)
        if tuple(source.shapes[name]) != want:
            raise ValueError(
                f"Wanted shape {want} for {name} ({wanted[canonical].shape}), got "
                f"{tuple(source.shapes[name])}. The config does not belong to these weights."
            )
    return found


def import_params(arch: Architecture, config: Config, source: TensorSource) -> dict[str, Any]:
    """Return the float32 numpy parameter tree read from `source`, one tensor at a time.

    Everything is checked by `match` before the first tensor is read.
    """
    names = match(arch, config, source)
    params: dict[str, Any] = {}
    for rule in rules_of(arch, config):
        hf_names = expand(rule, config)
        shape = hf_shape(rule, config)
        shape = shape[::-1] if rule.transpose else shape
        stacked = "{layer}" in rule.hf
        leaf = np.empty((len(hf_names), *shape), np.float32)
        for layer, name in enumerate(hf_names):
            tensor = source.read(names[name])
            leaf[layer] = tensor.T if rule.transpose else tensor
        node = params
        *parents, last = rule.path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf if stacked else leaf[0]
    return params


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a/b/c", leaf) of a nested dictionary."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def export_tensors(
    arch: Architecture, config: Config, params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (HF name, array in the parameter's dtype) of a whole tree; the table read backwards.

    Raises ValueError with both lists unless each parameter is used once and each tensor is filled
    once, and on a shape that contradicts the config, before anything is yielded.
    """
    leaves = dict(flatten(params))
    rules = {rule.path: rule for rule in rules_of(arch, config)}
    extra, missing = leaves.keys() - rules.keys(), rules.keys() - leaves.keys()
    if extra or missing:
        raise ValueError(
            f"Wanted the parameters of {arch.class_name}, got parameters without a tensor: "
            f"{_listed(extra)}; tensors without a parameter: {_listed(missing)}. Merge adapters "
            "and pass the tree of one network."
        )
    for path, rule in rules.items():
        want = hf_shape(rule, config)
        want = want[::-1] if rule.transpose else want
        want = (config.num_layers, *want) if "{layer}" in rule.hf else want
        if tuple(leaves[path].shape) != want:
            raise ValueError(
                f"Wanted shape {want} for parameter {path}, got {tuple(leaves[path].shape)}. "
                "The config does not belong to these parameters."
            )
    return _exported(list(rules.values()), config, leaves)


def _exported(
    rules: Sequence[Rule], config: Config, leaves: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    for rule in rules:
        leaf = np.asarray(leaves[rule.path])
        names = expand(rule, config)
        parts = leaf if "{layer}" in rule.hf else leaf[None]
        for name, part in zip(names, parts, strict=True):
            yield name, np.ascontiguousarray(part.T if rule.transpose else part)
