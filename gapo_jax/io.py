"""Write files atomically, read and write JSONL: the one place of the package that does either.

A file or folder that was written here is the old one or the new one, never half of it, whenever
the program is killed. Lines end at a line feed alone: U+2028, which JSON text may hold, ends none.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import gzip
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

# A UTF-32 mark starts with the bytes of a UTF-16 one, so it is tried first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


def _partial(path: Path) -> Path:
    """Return where a file or folder is made before it gets its name; each process has its own."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextlib.contextmanager
def _replacing(path: str | Path, sync: bool) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `path` if the block succeeds."""
    path = Path(path)
    temporary = _partial(path)
    try:
        with temporary.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file atomically.

    Args:
        path: the file; its folder exists.
        data: all that it shall hold.
        sync: wait until the data is on the disk, so that it outlives a crash of the machine too.
    """
    with _replacing(path, sync) as file:
        file.write(data)


def write_text(path: str | Path, text: str, *, sync: bool = False) -> None:
    """Write a text in UTF-8 atomically; `sync` as in `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_json(path: str | Path, record: Any, *, sync: bool = False) -> None:
    """Write an indented JSON file atomically; `sync` as in `write_bytes`."""
    write_bytes(path, _encoded(record, indent=2), sync=sync)


def write_jsonl(
    path: str | Path, records: Iterable[Mapping[str, Any]], *, sync: bool = False
) -> int:
    """Write one JSON object a line atomically; return the number of lines.

    The records may be made while they are written; an error among them leaves the old file.
    """
    count = 0
    with _replacing(path, sync) as file:
        for record in records:
            file.write(_encoded(record))
            count += 1
    return count


def json_line(record: Mapping[str, Any], *, allow_nan: bool = True) -> str:
    """Return one line of a JSONL file, for files that grow line by line.

    Raises:
        ValueError: a number is not finite and `allow_nan` is off.
    """
    return _encoded(record, allow_nan=allow_nan).decode("utf-8")


def way_out(error: OSError) -> str:
    """Return what to do about an error of the file system, for the end of its message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            "Free some space, and the same command continues the run; or take a larger disk with "
            "another --workdir"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            "Give this user the right to write there (chmod, mount), and the same command "
            "continues the run; or take a folder that can be written to with another --workdir"
        )
    return "Mend that, and the same command continues the run; or take another --workdir"


def _encoded(record: Any, **options: Any) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False, **options) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8, but a JSON escape
        return (json.dumps(record, **options) + "\n").encode("ascii")


@contextlib.contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` if the block succeeds.

    What a killed process left of an earlier attempt is removed first: it may be as large as a
    model.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    scratch = _partial(folder)
    scratch.mkdir()
    try:
        yield scratch
        old = scratch.with_suffix(".old")
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of this process and of processes that have ended."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        pid, _, kind = left.name.removeprefix(f".{folder.name}.").partition(".")
        if kind not in ("partial", "old") or not pid.isdigit():
            continue
        if int(pid) == os.getpid() or not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


COMPRESSED = (".gz", ".zst")


def file_kind(path: str | Path) -> str:
    """Return the suffix that says what a file holds: `.jsonl` of `rows.jsonl.gz` too."""
    path = Path(path)
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


@contextlib.contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file to read its bytes, decompressed where it ends in `.gz` or `.zst`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is compressed is damaged or cut off; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if path.suffix == ".zst":
            # Python has a module for it from 3.14 on; `datasets` brings this one.
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as stream:
                yield io.BufferedReader(_Stream(stream))
        else:
            opened: Any = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
            with opened as file:
                yield file
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path}: not a whole {path.suffix} file ({error}); fetch it again"
        ) from error


class _Stream(io.RawIOBase):
    """Makes a file of Python's own kind out of a stream of pyarrow, which lacks lines."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def encoding_of(start: bytes) -> str:
    """Return the encoding that the first four bytes of a text show; UTF-8 without a mark."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    # Without a mark, the zero byte of an ASCII character in UTF-16 or UTF-32 tells.
    return json.detect_encoding(start) if b"\0" in start else "utf-8"


def read_text(path: str | Path) -> str:
    """Return a text file of any UTF encoding, without its byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not in the encoding that its first bytes show; names both.
    """
    with open_bytes(path) as file:
        data = file.read()
    encoding = encoding_of(data[:4])
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid {encoding.upper()} ({error.reason})") from error


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); mend or remove the file") from error


def _lines(path: Path) -> Iterator[bytes | str]:
    """Yield the lines of a file with their line feeds, as bytes where it is UTF-8."""
    with open_bytes(path) as file:
        start = file.read(4)
        encoding = encoding_of(start)
        if encoding.startswith("utf-8"):
            # What is decompressed cannot go back, so the first line gets its start again.
            first = start.removeprefix(codecs.BOM_UTF8)
            if not first.endswith(b"\n"):
                first += file.readline()
            yield from io.BytesIO(first)
            yield from file
            return
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, encoding, newline="\n") as text:
            yield from text
    except UnicodeError as error:
        raise ValueError(f"{path}: not valid {encoding.upper()} ({error})") from error


def scan_jsonl(
    path: str | Path, *, drop_torn: bool = False
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number from 1, object or problem) for each line that is not blank.

    Args:
        path: the file, in UTF-8, or in UTF-16 or UTF-32 where its first bytes say so.
        drop_torn: leave out a last line without a line feed, which a killed writer has left.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file as a whole is not in its encoding.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        if drop_torn and line[-1:] not in (b"\n", "\n"):
            return
        try:
            record = json.loads(line if isinstance(line, str) else line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            shown = line if isinstance(line, str) else line.decode("utf-8", "replace")
            yield number, f"not valid JSON ({error}): {shown.strip()[:80]!r}"
            continue
        fits = isinstance(record, dict)
        yield number, record if fits else f"wanted a JSON object, got {type(record).__name__}"


def iter_jsonl(
    path: str | Path, *, drop_torn: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) as `scan_jsonl`; a line that is no object is a ValueError, which
    names file and line."""
    for number, record in scan_jsonl(path, drop_torn=drop_torn):
        if isinstance(record, str):
            raise ValueError(f"{path}, line {number}: {record}")
        yield number, record


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return all objects of a JSONL file; as `iter_jsonl`, and ValueError when there is none."""
    records = [record for _, record in iter_jsonl(path)]
    if not records:
        raise ValueError(f"{path} has no rows: wanted one JSON object a line")
    return records
