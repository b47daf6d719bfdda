"""The rows of `decoder_tables` and `encoder_tables`, which `parameter_map` reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from gapo_jax.models.decoder_config import DecoderConfig
from gapo_jax.models.encoder_config import EncoderConfig

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
    """One row: a Hugging Face tensor and the parameter that it fills.

    `hf` is the tensor's name, in which `{layer}` means one tensor for each layer, stacked on the
    leading L axis; `gguf` its name in llama.cpp's files. `shape` is its HF shape in letters and
    `transpose` says that ours is the other way round (torch's Linear stores [out, in]). A tensor
    that holds several parameters lists their paths, separated by a blank, and their sizes with
    plus signs: "attn/q/kernel attn/k/kernel attn/v/kernel", "NH+KH+KH D". `rotary` names the head
    count (N or K) by which GGUF interleaves the rows of Llama's queries and keys; `when` is a
    condition on the config under which the row exists. `first_layer` is the first layer that has
    the tensor: in the layers below it the parameter is without use and holds ones.
    """

    hf: str
    path: str
    shape: str
    transpose: bool = False
    gguf: str | None = None
    rotary: str | None = None
    when: Callable[[Any], bool] | None = None
    first_layer: int = 0

    @property
    def paths(self) -> list[str]:
        """The parameters that the tensor fills, in order."""
        return self.path.split()


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model family: its table, its config translations, and what its checkpoints may also hold.

    `ignored` lists patterns of tensors that carry nothing for us; `aliases` are (pattern,
    replacement) pairs that bring other spellings to the table's. `gguf_name` is llama.cpp's name
    of a family whose files we read.
    """

    model_type: str
    class_name: str
    kind: str
    rules: tuple[Rule, ...]
    to_config: Callable[[Mapping[str, Any]], Any]
    from_config: Callable[[Any], dict[str, Any]]
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    gguf_name: str | None = None
