"""Batches of rows of one's own: a function of the seed and the number of the update alone.

Within a round (or an epoch, if that is shorter) examples are cut into batches by length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gapo_jax.config import Config
from gapo_jax.data.batching import batch_at, like_lengths
from gapo_jax.data.row_table import RowTable
from gapo_jax.rng import Stream, stream
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.rows import OwnRows
from gapo_jax.train.discriminator.batches import labelled_batches
from gapo_jax.train.discriminator.steps import TextBatch
from gapo_jax.train.offline.row_arrays import Widths, labelled_texts, make_batch
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.train.state import GAPOState


def batch_places(
    config: Config, sizes: np.ndarray, update: int, size: int, *counters: int
) -> np.ndarray:
    """Return the examples of an update, by their place among those that are learned from.

    Args:
        config: the run.
        sizes: lengths of all of them.
        update: counted over the whole run, or over what `counters` name.
        size: examples in a batch.
        counters: of the streams of random numbers.
    """
    together = max(1, min(config.offline.steps_per_round, len(sizes) // size))
    window, nth = divmod(update, together)
    path, count = (config.seed, Stream.OFFLINE_ORDER, *counters), together * size
    picks = batch_at(*path, step=window, n=len(sizes), batch_size=count)
    rng = stream(config.seed, Stream.OFFLINE_WIDTHS, *counters, window)
    return picks[list(like_lengths(sizes[picks], size, 1, rng))[nth]]


@dataclasses.dataclass(frozen=True)
class RowBatches:
    """The batches of an offline method that trains the generator."""

    ctx: TrainContext
    rows: OwnRows
    shapes: Widths
    sizes: np.ndarray
    widths: Sequence[int] = ()  # the batches are as wide as they shall be

    def begin_round(self, state: GAPOState, index: int) -> None:
        """Do nothing: a batch depends on its number alone."""

    def batch(self, update: int) -> OfflineBatch:
        """Return the examples of an update."""
        size, pad_id = self.ctx.config.offline.batch_size, self.ctx.models.decoder.config.pad_id
        table, places = places_of(self.ctx.config, self.rows, self.sizes, update, size)
        return make_batch(table, self.rows.want, self.shapes, places, pad_id)


def places_of(
    config: Config, rows: OwnRows, sizes: np.ndarray, update: int, size: int
) -> tuple[RowTable, np.ndarray]:
    """Return the table and the places of the examples of an update; `sizes` are the lengths of
    those that are learned from, of rows that are no stream."""
    if rows.stream is None:
        return rows.table, rows.train[batch_places(config, sizes, update, size)]
    number, nth = divmod(update, max(1, rows.stream.size // size))
    table = rows.stream.block(number)
    kept = np.flatnonzero(~np.isin(table.prompts, rows.set_aside))
    if not len(kept):
        raise ValueError(
            f"config.data.source={config.data.source} has none that can be learned from in a part "
            f"of {table.facts.rows} rows; shuffle it, or set config.data.streaming=False"
        )
    return table, kept[batch_places(config, table.lengths[kept], nth, size, number)]


def row_batches(ctx: TrainContext, rows: OwnRows) -> RowBatches:
    """Return the batches of a method that learns from the rows of a run."""
    sizes = rows.table.lengths[rows.train]
    shapes = Widths.of(ctx.config, rows.table)
    if rows.stream is not None:  # how long its rows are is not known yet
        shapes = Widths.up_to(ctx.config, rows.max_tokens)
    return RowBatches(ctx, rows, shapes, sizes)


@dataclasses.dataclass(frozen=True)
class RowTextBatches:
    """The batches of the discriminator: pairs with both labels, labelled texts with theirs."""

    ctx: TrainContext
    rows: OwnRows
    sizes: np.ndarray
    widths: Sequence[int] = ()

    def begin_round(self, state: GAPOState, index: int) -> None:
        """Do nothing: a batch depends on its number alone."""

    def batch(self, update: int) -> TextBatch:
        """Return the texts of an update."""
        settings = self.ctx.config.discriminator
        sides = 1 if set(self.rows.table.facts.kinds) == {"labelled"} else 2
        size = max(1, settings.batch_size // sides)
        table, places = places_of(self.ctx.config, self.rows, self.sizes, update, size)
        texts = labelled_texts(table.take(places), settings.positive_label)
        (batch,) = labelled_batches(self.ctx.models.disc_tokenizer, texts, settings)
        return batch


def row_text_batches(ctx: TrainContext, rows: OwnRows) -> RowTextBatches:
    """Return the batches of a discriminator that learns from the rows of a run."""
    return RowTextBatches(ctx, rows, rows.table.lengths[rows.train])
