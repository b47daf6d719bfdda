"""What a table of a model family consists of; `parameter_map` reads the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.encoder_config import EncoderConfig
from gapo_jax.records import Json, JsonObject

Config = DecoderConfig | EncoderConfig

# Dtypes of safetensors whose numbers are the weights themselves, not quantised ones.
FLOATS = ("F64", "F32", "F16", "BF16")


class TensorSource(Protocol):
    """The tensors of a file or folder under their Hugging Face names."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name; this reads no tensor."""
        ...

    @property
    def dtypes(self) -> Mapping[str, str]:
        """Return the dtype of every tensor by name, spelt as in safetensors ("F32", "BF16")."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        ...


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table: a Hugging Face tensor and the parameters that it fills.

    Attributes:
        hf: the tensor's name. `{layer}` in it means one tensor per layer; they are stacked on the
            leading L axis.
        path: the parameter, such as "layers/attn/q/kernel". For a tensor that holds several
            parameters their paths, separated by blanks.
        shape: the tensor's shape in letters, such as "NH D"; the sizes of several parameters are
            joined by plus signs, "NH+KH+KH D".
        transpose: whether the parameter has the axes in reverse (torch's Linear stores [out, in]).
        gguf: the tensor's name in the files of llama.cpp.
        rotary: the head count (N or K) by which llama.cpp interleaves the rows of Llama's queries
            and keys.
        when: a condition on the config under which the row exists.
        first_layer: the first layer that has the tensor. In the layers below, the parameter is not
            used and holds ones.
    """

    hf: str
    path: str
    shape: str
    transpose: bool = False
    gguf: str | None = None
    rotary: Literal["N", "K"] | None = None
    when: Callable[[Any], bool] | None = None
    first_layer: int = 0

    @property
    def paths(self) -> list[str]:
        """The parameters that the tensor fills, in order."""
        return self.path.split()

    @property
    def per_layer(self) -> bool:
        """Whether there is one tensor for each layer."""
        return "{layer}" in self.hf


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model family: its table and the translations of its `config.json`.

    Attributes:
        model_type: as in config.json.
        class_name: the class of transformers that has these tensors.
        kind: which of our networks it is.
        rules: the table.
        to_config: translates config.json to our config. It raises ValueError on a value that the
            network cannot compute.
        from_config: translates back.
        ignored: patterns of further tensors that a checkpoint may hold and that carry nothing.
        aliases: (pattern, replacement) pairs that turn other spellings into the table's.
        gguf_name: the name of the family in llama.cpp's files, if we read them.
    """

    model_type: str
    class_name: str
    kind: Literal["decoder", "encoder"]
    rules: tuple[Rule, ...]
    to_config: Callable[[Json], Any]
    from_config: Callable[[Any], JsonObject]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    gguf_name: str | None = None
