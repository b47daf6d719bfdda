"""What to mine and how, and the (task, response) rows of its sources: one thing for one machine
and for many."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator

from gapo_jax.data import schemas, tables
from gapo_jax.data.mining import Mining

log = logging.getLogger("gapo_jax")
TaskRow = tuple[str, str]  # task, response


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How preferential prompts come of sources.

    Attributes:
      sources: files, folders or datasets of the hub (`tables.iter_rows`); on many machines each is
        read by one of them, so that large data is best given as several files.
      settings: how to mine.
      pairs: pairs for training at most; None keeps all.
      test_fraction: share of the tasks kept for the test side.
      schema: of all rows; None recognises it row by row.
      responses: file of {prompt, response} rows to join to the rows of the sources; those that
        answer no prompt are named where there is one source only.
      name, split, streaming: of datasets of the hub.
      rows: read the first rows of each source only.
      strict: end at the first row that does not fit.
    """

    sources: tuple[str, ...]
    settings: Mining
    pairs: int | None = None
    test_fraction: float = 0.1
    schema: str | None = None
    responses: str | None = None
    name: str | None = None
    split: str = "train"
    streaming: bool = False
    rows: int | None = None
    strict: bool = False

    def read(self, source: str) -> Iterator[TaskRow | str]:
        """Yield the (task, response) rows of a source, or what is wrong with a row.

        Raises:
          FileNotFoundError, ValueError: the source as a whole cannot be read; with `strict`, the
            first row that does not fit.
        """
        rows: Iterator[tables.NumberedRow] = tables.iter_rows(
            source, name=self.name, split=self.split, streaming=self.streaming
        )
        if self.responses:
            # What answers no prompt of this source may answer one of another source.
            rows = tables.join_responses(
                rows,
                self.responses,
                torn=source == self.sources[0],
                unasked=len(self.sources) == 1,
            )
        ignored: set[str] = set()
        for number, record in itertools.islice(rows, self.rows):
            try:
                if isinstance(record, str):
                    raise ValueError(record)
                schema = self.schema or schemas.recognise(record)
                task_row = schemas.prompt_and_response(record, schema)
                ignored.update(schemas.unused(record, schema))
                yield task_row
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"field {error} is missing" if isinstance(error, KeyError) else error
                problem = f"{source}, {tables.unit(source)} {number}: {reason}"
                if self.strict:
                    raise ValueError(problem) from error
                yield problem
        if ignored:
            log.warning("%s: %s", source, schemas.unused_text(ignored))
