"""Batches of rows of one's own: a function of the seed and the number of the update alone.

Within a round (or an epoch, if that is shorter) examples are cut into batches by length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from gapo_jax.config import Config
from gapo_jax.data.batching import like_lengths
from gapo_jax.rng import Stream, stream
from gapo_jax.train.context import TrainContext
from gapo_jax.train.datasets.rows import OwnRows
from gapo_jax.train.discriminator.batches import labelled_batches
from gapo_jax.train.discriminator.steps import TextBatch
from gapo_jax.train.offline.row_arrays import Widths, labelled_texts, make_batch
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.train.state import GAPOState


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of an epoch: two are kept, as drawing one for a million rows takes longer
    than an update of a small network."""
    return stream(seed, Stream.OFFLINE_ORDER, epoch).permutation(count)


def places_at(seed: int, start: int, size: int, count: int) -> np.ndarray:
    """Return the examples `start` to `start + size` of an endless walk through `count` of them,
    which comes to each once an epoch, in another order: int64 [size]."""
    parts = []
    while size:
        epoch, offset = divmod(start, count)
        part = _order(seed, epoch, count)[offset : offset + size]
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return np.concatenate(parts)


def batch_places(config: Config, sizes: np.ndarray, update: int, batch_size: int) -> np.ndarray:
    """Return the examples of an update, by their place among those that are learned from.

    `sizes` are the lengths of all of them.
    """
    count, seed = len(sizes), config.seed
    together = max(1, min(config.offline.steps_per_round, count // batch_size))
    window, nth = divmod(update, together)
    size = together * batch_size
    picks = places_at(seed, window * size, size, count)
    order = int(stream(seed, Stream.OFFLINE_WIDTHS, window).integers(2**32))
    return picks[list(like_lengths(sizes[picks], batch_size, 1, (order,)))[nth]]


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
