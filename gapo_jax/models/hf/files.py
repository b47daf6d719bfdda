"""The files of a Hugging Face folder: safetensors in and out, JSON, replacing a whole folder."""

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
from gapo_jax.records import JsonObject

# By its card a folder is known as an earlier export, which may be replaced.
MARK = "Exported by gapo_jax"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ROWS = 4096  # of a matrix that are compared at a time


class SafetensorsSource:
    """The tensors of a folder's safetensors, in one file or in shards: a `TensorSource`."""

    def __init__(self, folder: Path, explicit: str | None = None) -> None:
        """Read the headers of the files that transformers reads.

        Args:
            folder: the folder.
            explicit: the file that config.json names, if it names one.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, the index leads out of the folder, or a tensor is in two
                files.
        """
        # `safe_open` has no public type.
        self._files: JsonObject = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in _weight_files(folder, explicit):
            handle = open_safetensors(path)
            for name in handle.keys():
                if name in self._files:
                    raise ValueError(
                        f"Wanted each tensor once, got {name} in {path} and in another file of "
                        "the index. Download the model again."
                    )
                self._files[name] = handle
                header = handle.get_slice(name)
                self.shapes[name] = tuple(header.get_shape())
                self.dtypes[name] = header.get_dtype()

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in the dtype of the file."""
        return self._files[name].get_tensor(name)

    def are_equal(self, one: str, other: str) -> bool:
        """Return whether two matrices hold the same numbers; reads a part of them at a time."""
        shape = self.shapes[one]
        if shape != self.shapes[other] or len(shape) != 2:
            return False
        pair = [self._files[name].get_slice(name) for name in (one, other)]
        parts = (slice(i, min(i + _ROWS, shape[0])) for i in range(0, shape[0], _ROWS))
        return all(np.array_equal(*(matrix[part] for matrix in pair)) for part in parts)


def open_safetensors(path: Path) -> Any:
    """Open one safetensors file, memory-mapped.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is truncated or damaged.
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


def _weight_files(folder: Path, explicit: str | None) -> list[Path]:
    """Return the safetensors files of a folder in the order of preference of transformers.

    An index beside a model.safetensors is not read: it is often left over from older shards.
    """
    choices = [_SINGLE, _INDEX] if explicit is None else [_plain_name(explicit, folder)]
    for name in choices:
        path = folder / name
        if path.is_file():
            return _indexed(path) if name.endswith(".index.json") else [path]
    got = sorted(path.name for path in folder.iterdir())[:12]
    raise FileNotFoundError(
        f"Wanted {' or '.join(choices)} in {folder}, got {got}. Download the safetensors files; a "
        "pytorch_model.bin must be converted to safetensors first."
    )


def _indexed(path: Path) -> list[Path]:
    """Return the files that an index lists."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"Wanted a weight_map from tensors to files in {path}, got "
            f"{type(weight_map).__name__}. Download the index again."
        )
    return [
        path.parent / _plain_name(name, path) for name in sorted(set(map(str, weight_map.values())))
    ]


def _plain_name(name: str, where: Path) -> str:
    """Return the name of a file in the same folder; ValueError if it leads elsewhere."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError(
            f"Wanted the name of a file beside {where}, got {name!r}, which leads elsewhere. "
            "Download the model again, from a source that you trust."
        )
    return name


def read_json(path: Path) -> JsonObject:
    """Return a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Wanted {path.name} in {path.parent}, got no such file. Give an HF model folder."
        )
    record = io.read_json(path)
    if not isinstance(record, dict):
        raise ValueError(
            f"Wanted a JSON object in {path}, got {type(record).__name__}. Download it again."
        )
    return record


def save_tensors(path: Path, tensors: dict[str, np.ndarray], kind: str, **notes: str) -> None:
    """Write one safetensors file that others may read (the library makes it private).

    `kind` is the library that its dtypes are for, "pt" or "np"; `notes` go into its metadata.
    """
    safetensors_numpy.save_file(tensors, path, {"format": kind} | notes)
    path.chmod(0o644)


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], dtype: np.dtype, limit: int
) -> None:
    """Write safetensors of at most `limit` bytes each; a larger tensor has a file of its own.

    One file at a time is in memory. Several files get an index.
    """
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
    """Yield a temporary folder that takes the place of `folder` if the block succeeds.

    Raises:
        ValueError: `folder` holds something other than an earlier export.
    """
    if folder.exists() and any(folder.iterdir()):
        card = folder / "README.md"
        if not (card.is_file() and MARK in card.read_text(encoding="utf-8")):
            raise ValueError(
                f"Wanted a new, empty or earlier export folder, got {folder}, which holds other "
                "files. Choose another folder."
            )
    with io.replace_folder(folder) as scratch:
        yield scratch
