"""Where a model comes from: a folder, a GGUF file, or a hub id; and the cache of weights.

Bottom layer beside `types`: `models/` and `data/` both open model sources and may not import each
other. Nothing here reads a tensor. A hub that does not answer costs `TIMEOUT_S` seconds, then the
local hub cache is used, then an error says what to do.
"""

from __future__ import annotations

import functools
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

TIMEOUT_S = 5.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def cache_dir() -> Path:
    """Return the folder of cached weights: `$GAPO_JAX_CACHE`, else `~/.cache/gapo_jax`."""
    return Path(os.environ.get("GAPO_JAX_CACHE") or Path.home() / ".cache" / "gapo_jax")


def hub_answers(timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the model hub (`$HF_ENDPOINT`) answers within `timeout_s` seconds."""
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
    """Return the local folder of a hub repository, downloading what is not yet there.

    Raises FileNotFoundError when the hub does not answer in `timeout_s` seconds and the
    repository is not in the local hub cache, when the hub knows no such repository, or when the
    download breaks off.
    """
    import huggingface_hub

    online = hub_answers(timeout_s)
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            allow_patterns=list(patterns),
            local_files_only=not online,
            etag_timeout=timeout_s,
        )
    except Exception as error:
        # Of the hub's client or of the HTTP client below it, which is another in each version.
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
    """Return the local folder or `.gguf` file that `src` (path or hub id) stands for.

    Raises FileNotFoundError for a path that is not there, and as `snapshot` does for a hub id.
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


def open_gguf(path: str | os.PathLike[str]) -> gguf.GGUFReader:
    """Open a GGUF file (memory-mapped; no tensor is read).

    Raises FileNotFoundError if absent, ValueError if it is not GGUF, malformed or cut short.
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
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(
            f"Wanted a whole GGUF file, got a malformed or truncated one: {path} "
            f"({stat.st_size} bytes; {error}). Fetch it again."
        ) from error


@functools.lru_cache(maxsize=1)
def _parse_gguf(path: Path, mtime_ns: int, size: int) -> gguf.GGUFReader:
    """Parse once for both readers, model and tokenizer: a large vocabulary takes seconds."""
    return gguf.GGUFReader(path)


def gguf_value(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
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


def gguf_required(reader: gguf.GGUFReader, key: str) -> Any:
    """Return the Python value of a GGUF metadata key; ValueError if the file lacks it."""
    value = gguf_value(reader, key)
    if value is None:
        raise ValueError(
            f"Wanted the GGUF key {key!r}, got a file without it. Convert the model again with a "
            "current llama.cpp, or give its HF folder."
        )
    return value
