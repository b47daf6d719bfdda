"""Where a model comes from: a folder, a GGUF file, or a hub id; and the cache of weights.

`models/` and `data/` both open model sources and may not import each other, so this is in the
bottom layer beside `types`. Nothing here reads a tensor. If a hub does not answer within
`TIMEOUT_S` seconds, the local hub cache is used; if that has no copy either, the error says what to
do.
"""

from __future__ import annotations

import functools
import http.client
import math
import mmap
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
from gguf import GGUFReader, GGUFValueType

TIMEOUT_S = 5.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def cache_dir() -> Path:
    """Return the folder of cached weights: `$GAPO_JAX_CACHE`, else `~/.cache/gapo_jax`."""
    return Path(os.environ.get("GAPO_JAX_CACHE") or Path.home() / ".cache" / "gapo_jax")


def hub_answers(timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether the model hub (`$HF_ENDPOINT`) answers within `timeout_s` seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    request = urllib.request.Request(
        os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD"
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError, http.client.HTTPException):
        return False


def snapshot(
    repo_id: str, patterns: Sequence[str] = PATTERNS, timeout_s: float = TIMEOUT_S
) -> Path:
    """Return the local folder of a hub repository; downloads the files that are not there yet.

    Raises:
        FileNotFoundError: the hub does not answer within `timeout_s` seconds and the local hub
            cache has no copy, the hub knows no such repository, or the download breaks off.
    """
    import huggingface_hub  # starting it takes half a second, which local sources do not need

    online = hub_answers(timeout_s)
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            allow_patterns=list(patterns),
            local_files_only=not online,
            etag_timeout=timeout_s,
        )
    except Exception as error:
        # It comes from the hub's client or from the HTTP client below it, which varies by version.
        first = (str(error).splitlines() or [""])[0]
        got = (
            f"the hub answered: {type(error).__name__} {first}"
            if online
            else f"the hub did not answer within {timeout_s:g} s and its cache has no copy"
        )
        raise FileNotFoundError(
            f"Wanted the hub repository {repo_id!r}; {got}. Fetch it where the hub can be reached "
            f"(`hf download {repo_id} --local-dir FOLDER`) and give the folder, give another HF "
            "folder or .gguf file, or get the quickstart's weights with `python "
            "scripts/fetch_weights.py`."
        ) from error
    return Path(folder)


def resolve(src: str | os.PathLike[str]) -> Path:
    """Return the local folder or `.gguf` file that `src` (a path or a hub id) stands for.

    Raises:
        FileNotFoundError: there is no such path, or as `snapshot` for a hub id.
        ValueError: `src` is another kind of file.
    """
    path = Path(src).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ValueError(
            f"Wanted an HF folder, a hub id or a .gguf file, got the file {path}. "
            "Give the folder that holds it (with its config.json)."
        )
    if HUB_ID.fullmatch(str(src)) and path.suffix != ".gguf":
        return snapshot(str(src))
    raise FileNotFoundError(
        f"Wanted an HF folder, a hub id (owner/name) or a .gguf file, got {str(src)!r}, which is "
        "none of them. Check the path, or run `python scripts/fetch_weights.py`."
    )


def open_gguf(path: str | os.PathLike[str]) -> GGUFReader:
    """Open a GGUF file, memory-mapped; no tensor is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not GGUF, malformed or truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Wanted a GGUF file at {path}, got nothing. Run `python scripts/fetch_weights.py`."
        )
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ValueError(
            f"Wanted a GGUF file (first bytes b'GGUF'), got {magic!r} in {path}. Fetch it again."
        )
    stat = path.stat()
    try:
        return _parse_gguf(path, stat.st_mtime_ns, stat.st_size)
    except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        raise ValueError(
            f"Wanted a whole GGUF file, got a malformed or truncated one: {path} "
            f"({stat.st_size} bytes; {error}). Fetch it again."
        ) from error


@functools.lru_cache(maxsize=1)
def _parse_gguf(path: Path, mtime_ns: int, size: int) -> GGUFReader:
    """Parse once for both readers, model and tokenizer: a large vocabulary takes seconds."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _HeaderScan(data).check()
    return GGUFReader(path)


class _HeaderScan:
    """Walks through the header of a GGUF file and compares every count with the file's size.

    `gguf.GGUFReader` loops over whatever count the file announces, also beyond its end: 49 bytes
    that announce 2 ** 60 strings would fill the memory.
    """

    _WIDTHS = {int(kind): make().itemsize for kind, make in GGUFReader.gguf_scalar_to_np.items()}
    _MOST_DIMENSIONS = 8  # llama.cpp has 4

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place = data, 8
        # The reader, too, takes a version with empty low bytes for the other byte order.
        self._order: Literal["little", "big"] = "big" if data[4:6] == b"\0\0" else "little"

    def check(self) -> None:
        """Raise ValueError if the file ends before what it announces."""
        num_tensors, num_values = self._integer(8), self._integer(8)
        self._require(num_values, 8 + 4 + 1)
        self._require(num_tensors, 8 + 4 + 4 + 8)
        for _ in range(num_values):
            self._skip(self._integer(8), 1)
            self._skip_value()
        for _ in range(num_tensors):
            self._skip(self._integer(8), 1)
            self._check_tensor()

    def _check_tensor(self) -> None:
        dimensions = self._integer(4)
        if dimensions > self._MOST_DIMENSIONS:
            raise ValueError(f"it has a tensor of {dimensions} dimensions")
        elements = math.prod(self._integer(8) for _ in range(dimensions))
        block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(self._integer(4))]
        if self._integer(8) + elements // block * width > len(self._data):
            raise ValueError(f"it announces a tensor of {elements} numbers")

    def _skip_value(self) -> None:
        kind, count = self._integer(4), 1
        if kind == GGUFValueType.ARRAY:
            kind, count = self._integer(4), self._integer(8)
        if kind in self._WIDTHS:
            return self._skip(count, self._WIDTHS[kind])
        if kind != GGUFValueType.STRING:
            raise ValueError(f"it has values of type {kind}")
        self._require(count, 8)
        for _ in range(count):
            self._skip(self._integer(8), 1)
        return None

    def _integer(self, width: int) -> int:
        self._require(1, width)
        self._place += width
        return int.from_bytes(self._data[self._place - width : self._place], self._order)

    def _skip(self, count: int, width: int) -> None:
        self._require(count, width)
        self._place += count * width

    def _require(self, count: int, width: int) -> None:
        if self._place + count * width > len(self._data):
            raise ValueError(f"it announces {count} items at byte {self._place}")


def gguf_value(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """Return the Python value of a GGUF metadata key, or `default` if the file lacks it."""
    field = reader.get_field(key)
    if field is None:
        return default
    try:
        return field.contents()
    except (ValueError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Wanted a readable value of the GGUF key {key!r}, got {error}. Fetch the file again."
        ) from error


def gguf_required(reader: GGUFReader, key: str) -> Any:
    """Return the Python value of a GGUF metadata key; ValueError if the file lacks it."""
    value = gguf_value(reader, key)
    if value is None:
        raise ValueError(
            f"Wanted the GGUF key {key!r}, got a file without it. Convert the model again with a "
            "current llama.cpp, or give its HF folder."
        )
    return value
