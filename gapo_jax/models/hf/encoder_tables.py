"""The tables of the encoder families, and of the sequence classifiers that discriminators become.

To add a family, write its rows here and its translations in `encoder_configs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from gapo_jax.models.encoder_config import EncoderConfig
from gapo_jax.models.hf import encoder_configs
from gapo_jax.models.hf.architecture import Architecture, Json, Rule
from gapo_jax.records import JsonObject


def _affine(hf: str, path: str, shape: str, bias: bool = True) -> list[Rule]:
    """Return the rows of the kernel and bias of a torch Linear."""
    rows = [Rule(f"{hf}.weight", f"{path}/kernel", shape, True)]
    return rows + [Rule(f"{hf}.bias", f"{path}/bias", shape.split()[0])] * bias


def _norm(hf: str, path: str, bias: bool = True) -> list[Rule]:
    """Return the rows of the scale and bias of a torch LayerNorm."""
    rows = [Rule(f"{hf}.weight", f"{path}/scale", "D")]
    return rows + [Rule(f"{hf}.bias", f"{path}/bias", "D")] * bias


def _prefixed(hf: str, path: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return the rows with `hf` before their tensor names and `path` before their parameters."""
    return tuple(
        dataclasses.replace(r, hf=hf + r.hf, path=" ".join(path + one for one in r.paths))
        for r in rules
    )


def _post_norm_rules(projections: Mapping[str, str], *extra: Rule) -> tuple[Rule, ...]:
    """Return the table of a family that has BERT's names, given its projections of attention."""
    layer = [
        *(row for hf, name in projections.items() for row in _affine(hf, f"attn/{name}", "D D")),
        *_affine("attention.output.dense", "attn/o", "D D"),
        *_norm("attention.output.LayerNorm", "attn_norm"),
        *_affine("intermediate.dense", "mlp/up", "F D"),
        *_affine("output.dense", "mlp/down", "D F"),
        *_norm("output.LayerNorm", "mlp_norm"),
    ]
    return (
        Rule("embeddings.word_embeddings.weight", "embed/word/embedding", "V D"),
        *extra,
        *_norm("embeddings.LayerNorm", "embed/norm"),
        *_prefixed("encoder.layer.{layer}.", "layers/", layer),
    )


_SELF = {f"attention.self.{name}": name[0] for name in ("query", "key", "value")}
_TABLES = (
    Rule("embeddings.position_embeddings.weight", "embed/position/embedding", "P D"),
    Rule("embeddings.token_type_embeddings.weight", "embed/type/embedding", "S D"),
)
BERT_RULES = _post_norm_rules(_SELF, *_TABLES)
LONGFORMER_RULES = _post_norm_rules(
    _SELF | {f"{hf}_global": f"{name}_global" for hf, name in _SELF.items()}, *_TABLES
)
DEBERTA_RULES = _post_norm_rules(
    {f"attention.self.{name}_proj": name[0] for name in ("query", "key", "value")},
    Rule("encoder.rel_embeddings.weight", "embed/relative/embedding", "R D"),
    *_norm("encoder.LayerNorm", "embed/relative_norm"),
)
MODERNBERT_RULES = (
    Rule("embeddings.tok_embeddings.weight", "embed/word/embedding", "V D"),
    *_norm("embeddings.norm", "embed/norm", bias=False),
    *_prefixed(
        "layers.{layer}.",
        "layers/",
        [
            Rule("attn_norm.weight", "attn_norm/scale", "D", first_layer=1),
            Rule(
                "attn.Wqkv.weight",
                "attn/q/kernel attn/k/kernel attn/v/kernel",
                "D+D+D D",
                True,
            ),
            Rule("attn.Wo.weight", "attn/o/kernel", "D D", True),
            Rule("mlp_norm.weight", "mlp_norm/scale", "D"),
            Rule("mlp.Wi.weight", "mlp/gate/kernel mlp/up/kernel", "F+F D", True),
            Rule("mlp.Wo.weight", "mlp/down/kernel", "D F", True),
        ],
    ),
    *_norm("final_norm", "final_norm", bias=False),
)


def _head(up: str, out: str, bias: bool = True) -> list[Rule]:
    """Return the rows of a classifier's hidden layer and of its last linear map."""
    return _affine(up, "head/up", "D D", bias) + _affine(out, "head/out", "1 D")


def _family(
    model_type: str,
    stem: str,
    rules: tuple[Rule, ...],
    head: Sequence[Rule],
    to_config: Callable[[Json], EncoderConfig],
    from_config: Callable[[EncoderConfig], JsonObject],
    prefix: str | None = None,
) -> tuple[Architecture, Architecture]:
    """Return the encoder without a head, and the classifier, whose tensors begin with `prefix`."""
    prefix = prefix or model_type
    has_pooler = model_type in ("bert", "roberta", "longformer")
    encoder = Architecture(
        model_type=model_type,
        class_name=f"{stem}Model",
        kind="encoder",
        rules=rules + _POOLER * has_pooler,
        to_config=to_config,
        from_config=from_config,
        # Counters, and the heads of pretraining and classification, which the encoder ends before.
        ignored=_IGNORED,
        aliases=((rf"^{prefix}\.", ""), *_OLD_NAMES),
    )
    classifier = dataclasses.replace(
        encoder,
        class_name=f"{stem}ForSequenceClassification",
        rules=_prefixed(f"{prefix}.", "encoder/", rules) + tuple(head),
        ignored=(rf"{prefix}\.{_UNUSED}",),
        aliases=_OLD_NAMES,
    )
    return encoder, classifier


_POOLER = tuple(
    dataclasses.replace(rule, when=lambda config: config.pooler)
    for rule in _affine("pooler.dense", "pooler", "D D")
)
# DeBERTa-v3 stores a table of positions that it does not use.
_UNUSED = r"embeddings\.(position_ids|position_embeddings\.weight)"
_OLD_NAMES = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
_IGNORED = (
    _UNUSED,
    r"(pooler|cls|classifier|lm_head|head|decoder|lm_predictions|mask_predictions)\..*",
)
_TANH_HEAD = _head("classifier.dense", "classifier.out_proj")
_FAMILIES = (
    _family(
        "bert",
        "Bert",
        BERT_RULES,
        _head("bert.pooler.dense", "classifier"),
        encoder_configs.bert_to_config,
        encoder_configs.bert_from_config,
    ),
    _family(
        "roberta",
        "Roberta",
        BERT_RULES,
        _TANH_HEAD,
        encoder_configs.roberta_to_config,
        encoder_configs.roberta_from_config,
    ),
    _family(
        "longformer",
        "Longformer",
        LONGFORMER_RULES,
        _TANH_HEAD,
        encoder_configs.longformer_to_config,
        encoder_configs.longformer_from_config,
    ),
    _family(
        "modernbert",
        "ModernBert",
        MODERNBERT_RULES,
        _head("head.dense", "classifier", bias=False) + _norm("head.norm", "head/norm", bias=False),
        encoder_configs.modernbert_to_config,
        encoder_configs.modernbert_from_config,
        prefix="model",
    ),
    _family(
        "deberta-v2",
        "DebertaV2",
        DEBERTA_RULES,
        _head("pooler.dense", "classifier"),
        encoder_configs.deberta_to_config,
        encoder_configs.deberta_from_config,
        prefix="deberta",
    ),
)
ENCODERS = {encoder.model_type: encoder for encoder, _ in _FAMILIES}
# The classifier of each family: a `Discriminator` with pooling "hf".
CLASSIFIERS = {classifier.model_type: classifier for _, classifier in _FAMILIES}
