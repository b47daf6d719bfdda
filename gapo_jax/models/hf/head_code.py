"""The Python file that an export has for a head which transformers has no class for.

It is text here, since it runs on torch in the reader's environment. `config.json` names it in
`auto_map`, and `AutoModelForSequenceClassification` then runs it if it is allowed to.
"""

HEAD_FILE = "discriminator_head.safetensors"
MODULE = "modeling_discriminator"
AUTO_MAP = {"AutoModelForSequenceClassification": f"{MODULE}.Discriminator"}
CODE = '''"""The discriminator in this folder, for transformers. Written by gapo_jax.

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)

model.safetensors is the encoder, discriminator_head.safetensors the head on top of it.
"""

import copy

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import cached_file

WITH_POOLER = ("bert", "roberta", "longformer")
HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def linear(head, name):
    kernel = head[f"{name}/kernel"]
    layer = nn.Linear(*kernel.shape)
    layer.weight.data, layer.bias.data = kernel.T.contiguous(), head[f"{name}/bias"]
    return layer


class Discriminator(PreTrainedModel):
    """One logit a text, positive = it obeys its prompt."""

    # Which attention to take is the encoder's business.
    _supports_sdpa = _supports_flash_attn = _supports_flash_attn_2 = _supports_flex_attn = True

    def __init__(self, encoder, head, pooling):
        super().__init__(copy.deepcopy(encoder.config))
        self.encoder, self.pooling = encoder, pooling
        hidden = [linear(head, "up"), nn.Tanh()] if "up/kernel" in head else []
        self.head = nn.Sequential(*hidden, linear(head, "out"))

    @classmethod
    def from_pretrained(cls, source, *args, config=None, output_loading_info=False, **kwargs):
        hub = {name: kwargs[name] for name in HUB if name in kwargs}
        with safe_open(cached_file(source, "discriminator_head.safetensors", **hub), "pt") as file:
            head = {name: file.get_tensor(name) for name in file.keys()}
            pooling = file.metadata()["pooling"]
        if config.model_type in WITH_POOLER:
            kwargs["add_pooling_layer"] = False
        encoder, info = AutoModel.from_pretrained(
            source, *args, config=config, output_loading_info=True, **kwargs
        )
        model = cls(encoder, head, pooling).eval()
        return (model, info) if output_loading_info else model

    def forward(self, input_ids, attention_mask=None, **inputs):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        first = (attention_mask.cumsum(1) == 1) & (attention_mask > 0)
        if self.config.model_type == "longformer":
            inputs.setdefault("global_attention_mask", first.long())
        hidden = self.encoder(input_ids, attention_mask=attention_mask, **inputs)
        # The mean over real tokens, or the first of them, and the head, all in float32 at least.
        wanted = (attention_mask if self.pooling == "mean" else first)[..., None]
        wide = torch.promote_types(hidden[0].dtype, torch.float32)
        pooled = (hidden[0].to(wide) * wanted).sum(1) / wanted.sum(1).clamp(min=1)
        return SequenceClassifierOutput(logits=self.head.to(wide)(pooled))
'''
