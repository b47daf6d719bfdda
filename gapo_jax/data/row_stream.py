"""Rows that are read while they are learned from: block after block, and again from the beginning.

A block is a table (`row_table.py`) of the next `size` examples, fewer where the source ends; one
is on the disk at a time, beside the first, whose held-out rows are measured to the end. Which rows
a block has depends on the source alone, and the index in `blocks.json` says where each begins, so a
continued run goes on in the same place without encoding anew what came before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from gapo_jax import io
from gapo_jax.data.row_table import Encoder, Reading, RowTable, write_table
from gapo_jax.data.tables import NumberedRow

INDEX = "blocks.json"


class RowStream:
    """The blocks of a source.

    Args:
        rows: reads the source from its beginning.
        reading, encoder, name: as `write_table` takes them.
        folder: of the tables.
        size: examples of a block.
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[NumberedRow]],
        reading: Reading,
        encoder: Encoder,
        name: Callable[[int], str],
        folder: Path,
        size: int,
    ) -> None:
        self.size, self._folder = size, folder
        self._read, self._options = rows, (reading, encoder, name)
        # Rows of the present walk through the source that lie before each block.
        self._starts: list[int] = [0]
        if (folder / INDEX).exists():
            self._starts = io.read_json(folder / INDEX)
        self._source: Iterator[NumberedRow] = iter(())
        self._at: int | None = None  # the block that `_source` stands before
        self._open: tuple[int, RowTable] | None = None

    def block(self, number: int) -> RowTable:
        """Return a block; those before it are read too where they have not been.

        Raises:
            ValueError: nothing of the source can be learned from.
        """
        if self._open is None or self._open[0] != number:
            for k in range(min(number, len(self._starts) - 1), number + 1):
                self._make(k)
            self._open = number, RowTable(self._path(number))
        return self._open[1]

    def left_out(self) -> str:
        """Return the rows that were left out of the blocks so far, each once, a line each."""
        paths = [self._path(k).with_suffix(".txt") for k in range(len(self._starts))]
        texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
        return "".join(dict.fromkeys("".join(texts).splitlines(keepends=True)))

    def _path(self, number: int) -> Path:
        return self._folder / f"block_{number}"

    def _make(self, number: int) -> None:
        """Write a block, whose start is known, unless it is there."""
        if self._path(number).with_suffix(".json").exists() and number + 1 < len(self._starts):
            return
        start = self._starts[number]
        if self._at != number:
            self._source = itertools.islice(self._read(), start, None)
        taken = _Counted(self._source, self._read, start)
        facts = write_table(self._path(number), taken, *self._options, limit=self.size)
        self._source, self._at = taken.source, number + 1
        if not facts.examples and number == 0:
            why = f"; {facts.reasons[0]}" if facts.reasons else ""
            raise ValueError(f"the source has no row that can be learned from{why}")
        if number + 1 == len(self._starts):
            self._starts.append(taken.place)
            io.write_json(self._folder / INDEX, self._starts)
        if number > 1:
            for end in (".arrow", ".json"):
                self._path(number - 1).with_suffix(end).unlink(missing_ok=True)


class _Counted:
    """Iterates over a source from some place on to its end, or once more from its beginning where
    nothing is left, and knows its place in it."""

    def __init__(
        self,
        source: Iterator[NumberedRow],
        again: Callable[[], Iterator[NumberedRow]],
        place: int,
    ) -> None:
        self.source, self.place = source, place
        self._again = again

    def __iter__(self) -> Iterator[NumberedRow]:
        before = self.place
        for _ in range(2):
            for row in self.source:
                self.place += 1
                yield row
            ended = self.place
            self.source, self.place = self._again(), 0
            if ended != before:
                return
            before = 0
