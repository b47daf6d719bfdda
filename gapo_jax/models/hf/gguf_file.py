"""GGUF files (llama.cpp) as a source of tensors with Hugging Face names, without torch.

`gguf.quants.dequantize` expands quantised blocks. llama.cpp's converter interleaves the rows of q
and k of Llama-type models, because its rotary embedding rotates neighbouring pairs and Hugging
Face's rotates halves (`LlamaModel.permute` in convert_hf_to_gguf.py). Reading undoes that.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize

from gapo_jax import hub
from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.hf.architecture import Architecture, Rule
from gapo_jax.models.hf.config_json import translate
from gapo_jax.models.hf.parameter_map import ARCHITECTURES, Put, import_params, rules_of
from gapo_jax.records import JsonObject

# llama.cpp's names of the families whose files we read.
_FAMILIES = {arch.gguf_name: arch for arch in ARCHITECTURES.values() if arch.gguf_name}
# GGUF metadata key (behind the architecture's name) -> config.json key.
_CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Numbers of layers of Gemma's 27B models, whose scale of the queries is in no metadata key.
_GEMMA_27B_LAYERS = (46, 62)
_TOKEN_KEYS = {"eos": "eos_token_id", "bos": "bos_token_id", "padding": "pad_token_id"}
_QUANTISATIONS = tuple(
    gguf.GGMLQuantizationType[name]
    for name in "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
)


def read_config(reader: gguf.GGUFReader) -> tuple[Architecture, DecoderConfig]:
    """Return the architecture and the config that the metadata describes; no weight is read.

    Raises:
        ValueError: an architecture or a feature (rope scaling, experts) that is not supported, a
            size out of bounds, or a vocabulary that is larger than the embedding.
    """
    name = hub.gguf_required(reader, "general.architecture")
    if name not in _FAMILIES:
        close = difflib.get_close_matches(str(name), _FAMILIES, 1, 0.5) or ["llama"]
        raise ValueError(
            f"Wanted a GGUF file of an architecture in {sorted(_FAMILIES)}, got {name!r}. The "
            f"nearest supported choice is {close[0]!r}; or give the model's HF folder."
        )
    arch = _FAMILIES[name]
    raw: JsonObject = {"model_type": arch.model_type}
    for key, hf_key in _CONFIG_KEYS.items():
        value = hub.gguf_value(reader, f"{name}.{key}")
        if value is not None:
            # Of a float32 the shortest decimal is the number that was meant (1e-05).
            raw[hf_key] = float(str(np.float32(value))) if isinstance(value, float) else value
    for key, hf_key in _TOKEN_KEYS.items():
        raw[hf_key] = hub.gguf_value(reader, f"tokenizer.ggml.{key}_token_id")
    eot = hub.gguf_value(reader, "tokenizer.ggml.eot_token_id")
    if eot is not None and eot != raw["eos_token_id"]:
        raw["eos_token_id"] = [raw["eos_token_id"], eot]
    raw |= _features(reader, name, raw)
    shapes = {tensor.name: _shape(tensor) for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise ValueError(
            "Wanted a GGUF tensor token_embd.weight, got none. Fetch the model file again."
        )
    if "rope_freqs.weight" in shapes:
        raise ValueError(
            "Wanted a GGUF model without the tensor rope_freqs.weight, got one: it holds the rope "
            "scaling of Llama 3.1, for which config.json has other keys. Give the HF folder."
        )
    raw["vocab_size"] = shapes["token_embd.weight"][0]
    raw["tie_word_embeddings"] = "output.weight" not in shapes
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens.data) > raw["vocab_size"]:
        raise ValueError(
            f"Wanted at most {raw['vocab_size']} tokens (the rows of token_embd.weight), got a "
            f"vocabulary of {len(tokens.data)}. The file is damaged: fetch or convert it again."
        )
    config = translate(arch, raw, _path_of(reader))
    assert isinstance(config, DecoderConfig)
    return arch, config


def _path_of(reader: gguf.GGUFReader) -> Path:
    return Path(str(reader.data.filename))


def _features(reader: gguf.GGUFReader, name: str, raw: JsonObject) -> JsonObject:
    """Return the config.json keys of what only some files have; ValueError if not supported."""
    experts = hub.gguf_value(reader, f"{name}.expert_count")
    scaling = hub.gguf_value(reader, f"{name}.rope.scaling.type")
    for key, value in (("expert_count", experts), ("rope.scaling.type", scaling)):
        if value not in (None, "none", 0) and (key, value) != ("rope.scaling.type", "linear"):
            raise ValueError(
                f"Wanted a GGUF model without {name}.{key}, got {value!r}, which this network "
                "does not have. Choose a dense model without rope scaling."
            )
    if name == "llama" and raw.get("sliding_window"):
        raise ValueError(
            f"Wanted a GGUF model of architecture 'llama' without llama.attention.sliding_window, "
            f"got {raw['sliding_window']}: a Mistral with a window, which llama.cpp leaves out. "
            "Give the HF folder."
        )
    keys: JsonObject = {}
    if scaling == "linear":
        factor = hub.gguf_required(reader, f"{name}.rope.scaling.factor")
        keys["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if name.startswith("gemma"):
        large = raw.get("num_hidden_layers") in _GEMMA_27B_LAYERS
        width = raw["hidden_size"] // raw["num_attention_heads"]
        keys["query_pre_attn_scalar"] = width if large else raw.get("head_dim", 256)
    return keys


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """Return the shape in numpy order; GGUF writes the fastest axis first."""
    return tuple(int(size) for size in reversed(tensor.shape))


class GGUFSource:
    """The tensors of a GGUF file under Hugging Face names: a `TensorSource`.

    A tensor that is not in the table keeps its GGUF name, under which `match` reports it.
    """

    def __init__(self, reader: gguf.GGUFReader, arch: Architecture, config: DecoderConfig) -> None:
        """Index the file; ValueError on a quantisation that is not expanded."""
        self._config = config
        self._heads = {"N": config.num_heads, "K": config.num_kv_heads}
        rules = rules_of(arch, config)
        self._tensors: dict[str, tuple[gguf.ReaderTensor, Rule | None]] = {}
        for tensor in reader.tensors:
            if tensor.tensor_type not in _QUANTISATIONS:
                names = [kind.name for kind in _QUANTISATIONS]
                raise ValueError(
                    f"Wanted a quantisation in {names}, got {tensor.tensor_type.name} in "
                    f"{tensor.name}. Choose another file of the model, for example Q8_0."
                )
            name, rule = _hf_name(tensor.name, rules)
            self._tensors[name] = (tensor, rule)
        self.shapes = {name: _shape(tensor) for name, (tensor, _) in self._tensors.items()}
        self.dtypes = dict.fromkeys(self.shapes, "F32")  # in which `read` gives them

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as float32, with its rows in Hugging Face's order."""
        tensor, rule = self._tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(self.shapes[name])
        if rule is None:
            return values
        if self._config.norm == "rms_plus_one" and rule.path.endswith("norm/scale"):
            # llama.cpp stores the factors of Gemma's norms, without subtracting 1.
            return values - 1.0
        if rule.rotary is None or self._config.family != "llama":
            return values
        heads = self._heads[rule.rotary]
        pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)


def _hf_name(name: str, rules: Sequence[Rule]) -> tuple[str, Rule | None]:
    """Return the Hugging Face name and the row of a GGUF tensor, or its own name and None."""
    layer = re.match(r"blk\.(\d+)\.", name)
    generic = re.sub(r"^blk\.\d+\.", "blk.{layer}.", name)
    for rule in rules:
        if rule.gguf == generic:
            return (rule.hf.format(layer=layer[1]) if layer else rule.hf), rule
    return name, None


def load_gguf(path: Path, put: Put | None = None) -> tuple[DecoderConfig, JsonObject]:
    """Return `(config, params)` of a GGUF file; `put` as in `load.load_decoder`.

    Raises:
        FileNotFoundError, ValueError: as `hub.open_gguf`, `read_config` and `import_params`.
    """
    reader = hub.open_gguf(path)
    arch, config = read_config(reader)
    return config, import_params(arch, config, GGUFSource(reader, arch, config), put)
