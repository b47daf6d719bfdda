"""Rows made ready to learn from, in an Arrow file that is mapped into memory.

Rows are read and encoded once, one after the other, and written as they come, so that a source may
be larger than the memory. A batch is a few places of the table, of which the system reads the pages
that it needs. What does not fit is named in a text file beside the table, with its line and why.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from gapo_jax import io
from gapo_jax.data.lint import encode_for_training
from gapo_jax.data.schemas import recognise, unused
from gapo_jax.data.tables import NumberedRow
from gapo_jax.data.training_rows import (
    Example,
    TrainOn,
    Want,
    examples_of,
    kind_of,
    prompt_hash,
    texts_of,
)
from gapo_jax.records import Json, JsonObject

_BATCH = 1000  # rows of the table that are written at once


@dataclasses.dataclass(frozen=True)
class Reading:
    """How rows are read: what is wanted of them, and how long they may be.

    Attributes:
        want, train_on, sides: as `training_rows.examples_of` takes them.
        max_tokens: of the longest side of an example, prompt, answer and template together.
        schema: of all rows; None recognises it row by row.
    """

    want: Want
    train_on: TrainOn = "all"
    sides: int = 2
    max_tokens: int = 1024
    schema: str | None = None


class Encoded(NamedTuple):
    """One side as a generator reads it: its ids, and the places between which it is trained on
    (start, end, start, end, ...)."""

    ids: Sequence[int]
    cuts: Sequence[int]


@dataclasses.dataclass
class Facts:
    """What was read and what became of it.

    Attributes:
        rows: rows of the source; `left_out`: those that gave nothing to learn from.
        examples: rows of the table; `tokens`: of all their sides.
        kinds: kind of row -> rows; `labels`: label -> examples, of labelled ones.
        unused: column that is not read -> rows.
        reasons: the first rows that were left out, with their reasons.
        last_only: dialogues whose earlier answers the chat template rewrites, so that their last
            answer alone is trained on.
    """

    rows: int = 0
    left_out: int = 0
    examples: int = 0
    tokens: int = 0
    kinds: dict[str, int] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    unused: dict[str, int] = dataclasses.field(default_factory=dict)
    reasons: list[str] = dataclasses.field(default_factory=list)
    last_only: int = 0


# Makes the columns of an example, without those that say where it comes from.
Encoder = Callable[[Example], JsonObject]


def token_encoder(tokenizer: Any, reading: Reading) -> Encoder:
    """Return the function that encodes an example for a generator.

    It raises ValueError for a side that is too long or has nothing to train on.
    """

    def encoded(example: Example) -> JsonObject:
        read = [encode_for_training(answer.turns, tokenizer) for answer in example]
        sides = [_side(ids, mask, reading) for ids, mask, _ in read]
        return {
            "last_only": any(last_only for _, _, last_only in read),
            "ids": [side.ids for side in sides],
            "cuts": [side.cuts for side in sides],
            "length": max(len(side.ids) for side in sides),
            "answer": max(len(side.ids) - side.cuts[0] for side in sides),
        }

    return encoded


def _side(ids: list[int], mask: list[int], reading: Reading) -> Encoded:
    if len(ids) > reading.max_tokens:
        raise ValueError(
            f"it has {len(ids)} tokens, more than config.data.max_tokens={reading.max_tokens}"
        )
    cuts = np.flatnonzero(np.diff([0, *mask, 0])).tolist()
    if not cuts:
        raise ValueError("it has nothing to train on")
    return Encoded(ids, cuts)


def text_encoder(example: Example) -> JsonObject:
    """Return an example as the texts that a discriminator reads."""
    texts = [texts_of(answer) for answer in example]
    length = max(len(prompt) + len(response) for prompt, response in texts)
    return {
        "prompts": [prompt for prompt, _ in texts],
        "responses": [response for _, response in texts],
        "length": length,
        "answer": length,
    }


def _columns(texts: bool) -> Any:
    import pyarrow as pa

    numbers = [("line", pa.int64()), ("prompt", pa.int64())]
    numbers += [("length", pa.int32()), ("answer", pa.int32())]
    rewards = ("rewards", pa.list_(pa.float32()))
    if texts:
        sides = [(name, pa.list_(pa.string())) for name in ("prompts", "responses")]
    else:
        sides = [(name, pa.list_(pa.list_(pa.int32()))) for name in ("ids", "cuts")]
    return pa.schema([*numbers, rewards, *sides])


def encoded_rows(
    rows: Iterable[NumberedRow],
    reading: Reading,
    encoder: Encoder,
    facts: Facts,
    limit: int | None = None,
) -> Iterator[JsonObject | tuple[int, str]]:
    """Yield the columns of every example of the rows, or (line, reason) for a row that gives none;
    `facts` counts along. After the row that makes `limit` examples full no further one is read."""
    kinds: collections.Counter[str] = collections.Counter(facts.kinds)
    labels: collections.Counter[str] = collections.Counter(facts.labels)
    ignored: collections.Counter[str] = collections.Counter(facts.unused)
    for number, record in rows:
        facts.rows += 1
        try:
            if isinstance(record, str):
                raise ValueError(record)
            schema = reading.schema or recognise(record)
            made = _examples(record, schema, reading, encoder)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            facts.left_out += 1
            reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            yield number, reason
            continue
        kinds[kind_of(record, schema)] += 1
        ignored.update(unused(record, schema))
        facts.kinds, facts.unused = dict(kinds), dict(ignored)
        for example in made:
            facts.examples += 1
            facts.last_only += example.pop("last_only", False)
            facts.tokens += sum(len(ids) for ids in example.get("ids", ()))
            if len(example["rewards"]) == 1 and reading.want in ("labelled", "comparisons"):
                labels[str(example["rewards"][0] > 0).lower()] += 1
                facts.labels = dict(labels)
            yield example | {"line": number}
        if limit is not None and facts.examples >= limit:
            return


def _examples(record: Json, schema: str, reading: Reading, encoder: Encoder) -> list[JsonObject]:
    """Return the columns of the examples of a row, all or none of which fit."""
    made = examples_of(record, schema, reading.want, train_on=reading.train_on, sides=reading.sides)
    return [
        encoder(example)
        | {
            "rewards": [answer.reward for answer in example],
            "prompt": prompt_hash(record, example),
        }
        for example in made
    ]


def write_table(
    path: Path,
    rows: Iterable[NumberedRow],
    reading: Reading,
    encoder: Encoder,
    name: Callable[[int], str],
    limit: int | None = None,
) -> Facts:
    """Read rows, encode them and write the table; return what became of them.

    Beside `NAME.arrow` stand `NAME.txt` with the rows that are left out, and `NAME.json` with the
    facts, which is written last: a table without it is not whole.

    Args:
        path: of the table, without a suffix.
        rows: as `tables.iter_rows` gives them.
        reading: what is wanted of them.
        encoder: `token_encoder` or `text_encoder`.
        name: says which row a number is.
        limit: read no further row once there are so many examples.
    """
    import pyarrow as pa

    facts, columns = Facts(), _columns(encoder is text_encoder)
    partial = {end: path.with_suffix(f".{os.getpid()}{end}.partial") for end in (".arrow", ".txt")}
    with contextlib.ExitStack() as stack:
        for file in partial.values():
            stack.callback(file.unlink, missing_ok=True)
        with partial[".txt"].open("w", encoding="utf-8", errors="backslashreplace") as left_out:
            sink = pa.OSFile(str(partial[".arrow"]), "wb")
            with sink, pa.ipc.new_stream(sink, columns) as writer:
                encoded = encoded_rows(rows, reading, encoder, facts, limit)
                made = _kept(encoded, left_out, facts, name)
                while batch := list(itertools.islice(made, _BATCH)):
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=columns))
        for end, file in partial.items():
            os.replace(file, path.with_suffix(end))
    io.write_json(path.with_suffix(".json"), dataclasses.asdict(facts))
    return facts


def _kept(
    made: Iterable[JsonObject | tuple[int, str]],
    left_out: TextIO,
    facts: Facts,
    name: Callable[[int], str],
) -> Iterator[JsonObject]:
    """Yield the examples, and write the rows that give none into a file."""
    for example in made:
        if isinstance(example, dict):
            yield example
            continue
        number, reason = example
        line = f"{name(number)}: {' '.join(reason.split())}"
        left_out.write(line + "\n")
        if len(facts.reasons) < 5:
            facts.reasons.append(line)


class RowTable:
    """A table of `write_table`, on the disk.

    Attributes:
        path: without a suffix.
        facts: of the rows.
        prompts, lengths, answers: int64 [n]: the hash of the prompt of each example, the size of
            its longest side, and the longest part of a side from the first trained token on.
    """

    def __init__(self, path: Path) -> None:
        """Open a table.

        Raises:
            FileNotFoundError: there is none, or it is not whole.
        """
        import datasets

        self.path = path
        self.facts = Facts(**io.read_json(path.with_suffix(".json")))
        self._rows = datasets.Dataset.from_file(str(path.with_suffix(".arrow")))
        self._rows = self._rows.with_format("arrow")
        columns = self._rows.data
        self.prompts, self.lengths, self.answers = (
            columns.column(name).to_numpy().astype(np.int64)
            for name in ("prompt", "length", "answer")
        )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.prompts)

    def take(self, places: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """Return the columns of the examples at these places, in their order."""
        table: Any = self._rows[[int(place) for place in places]]
        return table.to_pydict()
