"""The README.md of an exported folder: what was trained, from what, how well, how to load it."""

from __future__ import annotations

import html
from collections.abc import Mapping

from flax import linen as nn

from gapo_jax.hub import HUB_ID
from gapo_jax.models.encoder import Encoder
from gapo_jax.models.heads import Discriminator
from gapo_jax.models.hf.architecture import Architecture
from gapo_jax.models.hf.files import MARK
from gapo_jax.records import Json

_HEAD = """
## The head

The discriminator is this encoder plus `discriminator_head.safetensors` (kernels are [in, out]):
{pooled} of the encoder's last hidden states, then {head}, in float32; one logit per text,
positive = the response obeys its prompt. transformers has no class for this head. With
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` it runs the
`modeling_discriminator.py` of this folder, which computes these logits; **without
`trust_remote_code` it makes up a random head**, and says so in a warning alone (train with pooling
"hf" for a head that it knows). Without that file, load the parts:

```python
import torch
from safetensors.torch import load_file
from transformers import AutoModel
encoder = AutoModel.from_pretrained({arguments})
head = load_file(f"{{folder}}/discriminator_head.safetensors")
{given}hidden = encoder(**batch).last_hidden_state
{code}
logits = (pooled @ head["out/kernel"] + head["out/bias"])[:, 0]
```
"""
_GLOBAL = """first = torch.zeros_like(batch["attention_mask"])
first[:, 0] = 1  # the first token sees all
batch = {**batch, "global_attention_mask": first}
"""
_MEAN = """mask = batch["attention_mask"][..., None].float()
pooled = (hidden * mask).sum(1) / mask.sum(1)"""
_CLS = "pooled = hidden[:, 0]"
_HIDDEN = '\npooled = (pooled @ head["up/kernel"] + head["up/bias"]).tanh()'
# Characters that would start a link, an image, code or a new cell.
_MARKUP = str.maketrans({character: f"\\{character}" for character in "\\`[]|"})


def plain(text: object) -> str:
    """Return a text from elsewhere as one line of Markdown that shows it and does nothing else."""
    return html.escape(" ".join(str(text).split()), quote=False).translate(_MARKUP)


def write(
    module: nn.Module,
    arch: Architecture,
    dtype: str,
    method: str | None = None,
    base: str | None = None,
    metrics: Json | None = None,
) -> str:
    """Return the text of the card.

    Args:
        module: the exported network.
        arch: what it was written as.
        dtype: of its weights.
        method: how it was trained.
        base: what it was made from; a hub id also goes into the front matter.
        metrics: names to numbers, text, or {"value", "low", "high"} with a 95% interval.
    """
    front = ["---", "library_name: transformers", "tags:", "- gapo_jax"]
    if base and HUB_ID.fullmatch(base):
        front.append(f"base_model: {base}")
    kind = type(module).__name__.lower()
    lines = [
        *front,
        "---",
        "",
        f"# {arch.class_name}, a {kind}" + (f" trained by {plain(method)}" if method else ""),
        "",
        f"{MARK} (JAX/Flax) in {dtype}.",
        "",
        f"- method: {plain(method or 'none (converted, not trained)')}",
        f"- base: {plain(base or 'not stated')}",
    ]
    if metrics:
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {plain(name)} | {_number(value)} |" for name, value in metrics.items()]
    if isinstance(module, Discriminator) and not module.is_hf:
        lines.append(_head(module, arch))
    elif isinstance(module, Encoder):
        lines += ["", f"Load with `AutoModel.from_pretrained({_arguments(module, arch)})`."]
    return "\n".join(lines) + "\n"


def _number(value: object) -> str:
    """Return one cell of the metrics table."""
    if isinstance(value, Mapping):
        return f"{value['value']:.4g} (95% {value['low']:.4g} to {value['high']:.4g})"
    return f"{value:.4g}" if isinstance(value, float) else plain(value)


def _arguments(module: Encoder | Discriminator, arch: Architecture) -> str:
    """Return the arguments that load the encoder, without a pooler if it has none."""
    has_class = arch.model_type in ("bert", "roberta", "longformer")
    return "folder" + ", add_pooling_layer=False" * (has_class and not module.config.pooler)


def _head(module: Discriminator, arch: Architecture) -> str:
    """Return the section on a head that transformers has no class for."""
    hidden = module.hidden_dim is not None
    return _HEAD.format(
        pooled="the mean over real tokens" if module.pooling == "mean" else "the first token",
        head=f"a tanh layer of {module.hidden_dim} and a linear map" if hidden else "a linear map",
        arguments=_arguments(module, arch),
        given=_GLOBAL if module.config.global_first else "",
        code=(_MEAN if module.pooling == "mean" else _CLS) + (_HIDDEN if hidden else ""),
    )
