"""Responses saved while they are generated, so that a killed evaluation goes on where it stopped.

The batches are the same in every run with the same settings, and a batch is saved whole or not at
all, so a resumed evaluation has the same responses as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from gapo_jax import io
from gapo_jax.records import Json, JsonObject


def model_mark(source: str) -> str:
    """Return a mark that changes when a model's folder or file is rewritten; "" for a hub id."""
    path = Path(source)
    if not path.exists():
        return ""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    # Times and sizes and not the contents: hashing gigabytes would take longer than going on.
    stats = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def prompts_mark(prompts: Sequence[str]) -> str:
    """Return a mark of the prompts and their order."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]


class ResponseStore:
    """An append-only file of batches in the output folder.

    Args:
      folder: the output folder, made if missing.
      settings: everything that the responses depend on.

    Raises:
      ValueError: the folder holds responses made with other settings; names what differs.
    """

    NAME = "responses.partial.jsonl"

    def __init__(self, folder: Path, settings: Json) -> None:
        self.path = folder / self.NAME
        self.batches: dict[int, list[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        # As they will be read back: tuples become lists, or the settings would never be equal.
        given = json.loads(json.dumps(dict(settings)))
        kept = self._read()
        if kept is None:
            self._append(given, "w")
        elif kept != given:
            odd = {name for name in {*kept, *given} if kept.get(name) != given.get(name)}
            raise ValueError(
                f"{self.path}: expected responses of these settings, got some of other settings"
                f" ({', '.join(sorted(odd))}); give the same ones, another --out, or delete it"
            )

    def _read(self) -> JsonObject | None:
        """Read settings and whole batches; a line torn by a kill is cut off."""
        if not self.path.exists():
            return None
        records = [record for _, record in io.iter_jsonl(self.path, drop_torn=True)]
        if not records:
            return None
        io.write_jsonl(self.path, records, sync=True)
        self.batches = {record["batch"]: record["texts"] for record in records[1:]}
        return records[0]

    def _append(self, record: Json, mode: str = "a") -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.write(io.json_line(record))
            file.flush()
            # A batch may be minutes of a TPU; it outlives a crash of the machine as well.
            os.fsync(file.fileno())

    def add(self, batch: int, texts: Sequence[str]) -> None:
        """Save the responses of one batch."""
        self._append({"batch": batch, "texts": list(texts)})
        self.batches[batch] = list(texts)
