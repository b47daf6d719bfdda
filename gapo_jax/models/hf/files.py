"""The files of an HF folder: safetensors in and out, JSON, and a folder that appears when whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy

from gapo_jax import io
from gapo_jax.models.hf.model_card import MARK

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsSource:
    """The tensors of a folder's safetensors, single or sharded: a `parameter_map.TensorSource`.

    `dtypes` are those that occur, in the spelling of the files ("F32", "BF16")."""

    def __init__(self, folder: Path) -> None:
        """Read the headers. Raises FileNotFoundError on a missing file, ValueError on a cut one."""
        self._files: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: set[str] = set()
        for path in _weight_files(folder):
            handle = open_safetensors(path)
            for name in handle.keys():
                self._files[name] = handle
                header = handle.get_slice(name)
                self.shapes[name] = tuple(header.get_shape())
                self.dtypes.add(header.get_dtype())

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in the dtype of the file."""
        return self._files[name].get_tensor(name)


def open_safetensors(path: Path) -> Any:
    """Open one safetensors file, memory-mapped.

    Raises:
        FileNotFoundError, ValueError: it is missing; it is truncated or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Wanted {path.name} in {path.parent}, got no such file. Download the model again."
        )
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"Wanted a whole safetensors file, got {path} of {path.stat().st_size} bytes, which is "
            f"truncated or damaged ({error}). Download it again."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, from the index if there is one."""
    if (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX)
        return [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    got = sorted(path.name for path in folder.iterdir())[:12]
    raise FileNotFoundError(
        f"Wanted {_SINGLE} or {_INDEX} in {folder}, got {got}. Download the safetensors files; a "
        "pytorch_model.bin must be converted to safetensors first."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; FileNotFoundError or ValueError if it is absent or broken."""
    if not path.is_file():
        raise FileNotFoundError(
            f"Wanted {path.name} in {path.parent}, got no such file. Give an HF model folder."
        )
    return io.read_json(path)


def save_tensors(path: Path, tensors: dict[str, np.ndarray], kind: str, **notes: str) -> None:
    """Write one safetensors file that others may read (the library makes it private).

    `kind` is the library that its dtypes are for, "pt" or "np"; `notes` go into its metadata.
    """
    safetensors_numpy.save_file(tensors, path, {"format": kind} | notes)
    path.chmod(0o644)


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], dtype: np.dtype, limit: int
) -> None:
    """Write safetensors of at most `limit` bytes each (a larger tensor alone), holding one."""
    shards: list[list[str]] = []
    batch: dict[str, np.ndarray] = {}
    total = size = 0

    def flush() -> None:
        shards.append(list(batch))
        save_tensors(folder / f"shard-{len(shards)}", batch, "pt")
        batch.clear()

    for name, array in tensors:
        array = array.astype(dtype)
        if batch and size + array.nbytes > limit:
            flush()
            size = 0
        batch[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-1").rename(folder / _SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    io.write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder beside `folder` and rename it into place if the block succeeds."""
    if folder.exists() and any(folder.iterdir()):
        card = folder / "README.md"
        if not (card.is_file() and MARK in card.read_text(encoding="utf-8")):
            raise ValueError(
                f"Wanted a new, empty or earlier export folder, got {folder}, which holds other "
                "files. Choose another folder."
            )
    with io.replace_folder(folder) as scratch:
        yield scratch
