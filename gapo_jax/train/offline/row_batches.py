"""Batches of rows of one's own: a function of the seed and the number of the update alone.

Within a round (or an epoch, if that is shorter) examples are cut into batches by length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gapo_jax.config import Config
from gapo_jax.data.batching import batch_at, like_lengths
from gapo_jax.rng import Stream, stream
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.rows import OwnRows
from gapo_jax.train.discriminator.batches import labelled_batches
from gapo_jax.train.discriminator.steps import TextBatch
from gapo_jax.train.offline.row_arrays import Widths, labelled_texts, make_batch
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.train.state import GAPOState


def batch_places(config: Config, sizes: np.ndarray, update: int, size: int) -> np.ndarray:
    """Return the examples of an update, by their place among those that are learned from.

    Args:
        config: the run.
        sizes: lengths of all of them.
        update: counted over the whole run.
        size: examples in a batch.
    """
    together = max(1, min(config.offline.steps_per_round, len(sizes) // size))
    window, nth = divmod(update, together)
    picks = batch_at(
        config.seed, Stream.OFFLINE_ORDER, step=window, n=len(sizes), batch_size=together * size
    )
    rng = stream(config.seed, Stream.OFFLINE_WIDTHS, window)
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
        config = self.ctx.config
        picks = batch_places(config, self.sizes, update, config.offline.batch_size)
        places, pad_id = self.rows.train[picks], self.ctx.models.decoder.config.pad_id
        return make_batch(self.rows.table, self.rows.want, self.shapes, places, pad_id)


def row_batches(ctx: TrainContext, rows: OwnRows) -> RowBatches:
    """Return the batches of a method that learns from the rows of a run."""
    sizes = rows.table.lengths[rows.train]
    return RowBatches(ctx, rows, Widths.of(ctx.config, rows.table), sizes)


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
        size = min(max(1, settings.batch_size // sides), len(self.sizes))
        picks = batch_places(self.ctx.config, self.sizes, update, size)
        texts = labelled_texts(
            self.rows.table.take(self.rows.train[picks]), settings.positive_label
        )
        (batch,) = labelled_batches(self.ctx.models.disc_tokenizer, texts, settings)
        return batch


def row_text_batches(ctx: TrainContext, rows: OwnRows) -> RowTextBatches:
    """Return the batches of a discriminator that learns from the rows of a run."""
    return RowTextBatches(ctx, rows, rows.table.lengths[rows.train])
