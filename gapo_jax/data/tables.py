"""Rows from any source: JSONL, JSON, Parquet and CSV files, saved `datasets`, the hub.

Every row comes with its number (counted from 1; the line of a JSONL file), so that whatever does
not fit can be named. A malformed line is a problem to count, not the end of a long job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_CSV_FIELD = 10_000_000  # characters of one field


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                yield number, f"not valid JSON ({error})"
                continue
            if isinstance(record, dict):
                yield number, record
            else:
                yield number, f"wanted a JSON object, got {type(record).__name__}"


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import csv

    csv.field_size_limit(_CSV_FIELD)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for number, record in enumerate(reader, 1):
            if None in record or None in record.values():
                yield number, f"wanted {len(reader.fieldnames or ())} columns, got another number"
            else:
                yield number, dict(record)


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: wanted a JSON list of rows, got {type(rows).__name__}")
    for number, record in enumerate(rows, 1):
        fits = isinstance(record, dict)
        yield number, record if fits else f"wanted an object, got {type(record).__name__}"


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    import pyarrow.parquet

    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            for record in batch.to_pylist():
                number += 1
                yield number, record


def _dataset(source: str, name: str | None, split: str, streaming: bool) -> Any:
    import datasets

    path = Path(source)
    if (path / "dataset_info.json").is_file():
        return datasets.load_from_disk(source)
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(source)[split]
    return datasets.load_dataset(source, name, split=split, streaming=streaming)


def iter_rows(
    source: str | Path, *, name: str | None = None, split: str = "train", streaming: bool = False
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (number, row) of a source, or (number, problem) for a row that cannot be read.

    Args:
      source: a .jsonl, .csv, .parquet or .json file, a folder of `save_to_disk`, or the id of a
        dataset on the hub ("google/IFEval").
      name: configuration of a hub dataset.
      split: split of a hub dataset or of a saved dictionary of splits.
      streaming: read a hub dataset row by row instead of fetching it first.

    Raises:
      FileNotFoundError: a file that is not there, or a dataset that cannot be found.
    """
    path = Path(source)
    if path.suffix in FILES:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        read = {".csv": _csv, ".parquet": _parquet, ".json": _json}.get(path.suffix, _jsonl)
        yield from read(path)
    else:
        for number, record in enumerate(_dataset(str(source), name, split, streaming), 1):
            yield number, dict(record)


def join_responses(
    rows: Iterator[tuple[int, dict[str, Any] | str]], responses: str | Path
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Add to each row the response that another file gives to its prompt, in file order.

    A row without one becomes a problem; rows of the file are {"prompt", "response"}.
    """
    waiting: dict[str, list[str]] = {}
    for _, record in iter_rows(responses):
        if isinstance(record, Mapping):
            prompt, response = record.get("prompt"), record.get("response")
            if isinstance(prompt, str) and isinstance(response, str):
                waiting.setdefault(prompt, []).append(response)
    for number, record in rows:
        if isinstance(record, Mapping):
            found = waiting.get(str(record.get("prompt")))
            if found:
                yield number, {**record, "response": found.pop(0)}
            else:
                yield number, f"no response to this prompt in {responses}"
        else:
            yield number, record
