"""Read rows from any source: JSONL, JSON, Parquet and CSV files, saved `datasets`, the hub.

Files may be compressed (`.gz`, `.zst`).

Every row comes with its number (from 1; the line of a JSONL file), so that a row that does not fit
can be named. A malformed line is a problem to count, not the end of a long job.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from gapo_jax import hub, io
from gapo_jax.records import JsonObject

JSONL = (".jsonl", ".ndjson")
FILES = (*JSONL, ".json", ".csv", ".parquet")
NumberedRow = tuple[int, JsonObject | str]  # its number, and the row or what is wrong with it
_CSV_FIELD = 10_000_000  # characters of one field
# Columns whose cells are lists or dictionaries; a CSV file holds them as JSON or Python literals.
_NESTED = (
    "instruction_id_list", "kwargs", "constraints", "messages", "accepted", "responses",
    "completions", "scores", "rewards", "ratings",
)  # fmt: skip
_LABELS = {"true": True, "1": True, "false": False, "0": False}


def _literal(text: str) -> Any:
    """Return the list or dictionary in a cell of a CSV file, or the cell unchanged."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _cells(record: Mapping[str, str]) -> JsonObject:
    made: JsonObject = dict(record)
    nested = (*_NESTED, "rejected") if "accepted" in made else _NESTED
    for name in nested:
        if made.get(name, "")[:1] in ("[", "{"):
            made[name] = _literal(made[name])
    if "label" in made:
        made["label"] = _LABELS.get(made["label"].strip().lower(), made["label"])
    return made


def _csv(path: Path) -> Iterator[NumberedRow]:
    csv.field_size_limit(_CSV_FIELD)
    with io.open_bytes(path) as raw:
        encoding = io.encoding_of(raw.read(4))
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    with (
        io.open_bytes(path) as raw,
        TextIOWrapper(raw, encoding, errors="surrogateescape", newline="") as file,
    ):
        try:
            yield from _csv_rows(path, csv.DictReader(file))
        except UnicodeDecodeError as error:  # UTF-8 has its bad bytes as surrogates instead
            raise ValueError(f"{path}: not valid {encoding.upper()} ({error.reason})") from error


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> Iterator[NumberedRow]:
    try:
        names = reader.fieldnames or ()
        "".join(names).encode("utf-8")
    except (csv.Error, UnicodeEncodeError) as error:
        raise ValueError(f"{path}: its first line is no header in UTF-8 ({error})") from error
    for number in itertools.count(1):
        try:
            record = next(reader)
            if None in record or None in record.values():
                yield number, f"wanted {len(names)} columns, got another number"
                continue
            "".join(record.values()).encode("utf-8")  # bad bytes are surrogates here
            yield number, _cells(record)
        except StopIteration:
            return
        except (csv.Error, UnicodeEncodeError) as error:
            yield number, f"not valid CSV in UTF-8 ({error})"


def _json(path: Path) -> Iterator[NumberedRow]:
    try:
        rows = json.loads(io.read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not valid JSON ({error}); a file of one object a line is .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: wanted a JSON list of rows, got {type(rows).__name__}")
    for number, record in enumerate(rows, 1):
        fits = isinstance(record, dict)
        yield number, record if fits else f"wanted an object, got {type(record).__name__}"


def _parquet(path: Path) -> Iterator[NumberedRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        source: Any = path
        if path.suffix in io.COMPRESSED:  # its index is at the end, so it is needed whole
            with io.open_bytes(path) as raw:
                source = pyarrow.BufferReader(raw.read())
        with pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a whole Parquet file ({error})") from error


def _hub_dataset(source: str, name: str | None, split: str, streaming: bool) -> Any:
    """Load a dataset of the hub, from the local cache if the hub does not answer."""
    import datasets
    import huggingface_hub

    if not hub.HUB_ID.fullmatch(source) and "/" in source:
        raise FileNotFoundError(
            f"no such file or folder, nor a dataset of the hub: {source!r}; wanted a file that "
            f"ends in one of {FILES}, a folder of `save_to_disk`, or an id such as google/IFEval"
        )
    online = hub.hub_answers()
    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)  # pyright: ignore
    settings = [(module, "HF_HUB_OFFLINE") for module in modules]
    before = [getattr(module, key) for module, key in settings]
    try:
        if not online:
            for module, key in settings:
                setattr(module, key, True)
        return datasets.load_dataset(source, name, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        got = (
            f"the hub answered: {str(error).splitlines()[0]}"
            if online
            else "the hub did not answer and the cache of `datasets` has no copy"
        )
        raise FileNotFoundError(
            f"wanted the dataset {source!r} (split {split!r}); {got}. Give a file that ends in one "
            f"of {FILES} instead, or run again where the hub can be reached"
        ) from error
    finally:
        for (module, key), value in zip(settings, before, strict=True):
            setattr(module, key, value)


def _dataset(source: str, name: str | None, split: str, streaming: bool) -> Any:
    import datasets

    path = Path(source)
    if (path / "dataset_info.json").is_file():
        return datasets.load_from_disk(source)
    if (path / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(source)
        if split not in saved:
            raise ValueError(
                f"{path}: wanted one of the splits {sorted(map(str, saved))}, got {split!r}"
            )
        return saved[split]
    if path.is_dir():
        return datasets.load_dataset(str(path), name, split=split, streaming=streaming)
    if path.is_file():
        raise ValueError(f"{path}: wanted a file that ends in one of {FILES}, got {path.suffix!r}")
    return _hub_dataset(source, name, split, streaming)


def content_key(source: str | Path, *, name: str | None = None, split: str = "train") -> str:
    """Return a short hash of what a source holds, without reading its rows.

    Of a file it is a hash of the bytes; of a folder or a dataset of the hub the fingerprint that
    `datasets` has of it.

    Raises:
      FileNotFoundError, ValueError: as `iter_rows`.
    """
    path = Path(source)
    if io.file_kind(path) in FILES:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
    fingerprint = str(_dataset(str(source), name, split, False)._fingerprint)
    return hashlib.blake2b(fingerprint.encode()).hexdigest()[:16]


def unit(source: str | Path) -> str:
    """Return what the numbers of a source's rows count: "line" for JSONL, else "row"."""
    return "line" if io.file_kind(source) in JSONL else "row"


def iter_rows(
    source: str | Path, *, name: str | None = None, split: str = "train", streaming: bool = False
) -> Iterator[NumberedRow]:
    """Yield (number, row) of a source, or (number, problem) for a row that cannot be read.

    Args:
      source: a .jsonl, .csv, .parquet or .json file, also with .gz or .zst behind it, a folder of
        `save_to_disk` or of such files, or the id of a dataset on the hub ("google/IFEval"). In a
        CSV file the cells of columns that are lists or dictionaries hold JSON.
      name: configuration of a hub dataset.
      split: split of a hub dataset or of a saved dictionary of splits.
      streaming: read a hub dataset or a folder of files row by row instead of fetching it first.

    Raises:
      FileNotFoundError: a file that is not there, or a dataset that cannot be found; a hub that
        does not answer is given up after seconds.
      ValueError: a file that cannot be read as what it is named after.
    """
    path, kind = Path(source), io.file_kind(source)
    if kind in JSONL:
        yield from io.scan_jsonl(path)
    elif kind in FILES:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        read = {".csv": _csv, ".parquet": _parquet, ".json": _json}[kind]
        yield from read(path)
    else:
        for number, record in enumerate(_dataset(str(source), name, split, streaming), 1):
            yield number, dict(record)


def scan_responses(
    path: str | Path,
) -> tuple[dict[str, list[tuple[int, str]]], list[tuple[int, str]]]:
    """Read {"prompt", "response"} rows of a file, as the IFEval release writes them.

    Returns:
      prompt -> (number, response) in file order, and (number, problem) of rows that do not fit.
    """
    responses: dict[str, list[tuple[int, str]]] = {}
    problems = []
    for number, record in iter_rows(path):
        if isinstance(record, str):
            problems.append((number, record))
            continue
        prompt, response = record.get("prompt"), record.get("response")
        if isinstance(prompt, str) and isinstance(response, str):
            responses.setdefault(prompt, []).append((number, response))
        else:
            problems.append((number, "wanted the strings 'prompt' and 'response'"))
    return responses, problems


def join_responses(
    rows: Iterable[NumberedRow],
    responses: str | Path,
    *,
    torn: bool = True,
    unasked: bool = True,
) -> Iterator[NumberedRow]:
    """Add to each row the response that another file gives to its prompt, in file order.

    Further responses to a prompt give further rows at the end. A row without a response becomes a
    problem. So do rows of the other file that do not fit (unless `torn` is off) or that answer none
    of the prompts (unless `unasked` is off).
    """
    waiting, problems = scan_responses(responses)
    asked: dict[str, NumberedRow] = {}
    for number, record in rows:
        if isinstance(record, str):
            yield number, record
            continue
        prompt = str(record.get("prompt"))
        asked[prompt] = number, record
        if waiting.get(prompt):
            yield number, {**record, "response": waiting[prompt].pop(0)[1]}
        else:
            yield number, f"no response to this prompt in {responses}"
    for number, problem in problems if torn else ():
        yield number, f"of {responses}: {problem}"
    for prompt, left in waiting.items():
        for number, response in left:
            if prompt in asked:
                row, record = asked[prompt]
                yield row, {**record, "response": response}  # type: ignore[dict-item]
            elif unasked:
                yield number, f"of {responses}: it answers none of the prompts"
