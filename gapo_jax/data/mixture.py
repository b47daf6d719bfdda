"""Mix several sources by weight: a row's place is a function of (seed, epoch, index) alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from gapo_jax.rng import Stream, stream

_BLOCK = 1024  # indices in which every source has its exact share


class Mixture:
    """A weighted mixture of sources of known sizes.

    Every block of 1,024 indices holds each source in its exact proportion (largest remainders), in
    random order; a source is gone through without replacement, again and again in a new order.

    Args:
      sizes: rows of each source.
      weights: share of each; by default in proportion to the sizes.
      seed: of the order.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0
    ) -> None:
        weights = list(sizes if weights is None else weights)
        fits = len(weights) == len(sizes) and all(weight > 0 for weight in weights)
        if not sizes or min(sizes) < 1 or not fits:
            raise ValueError(
                f"a mixture wants sources with rows and one weight above 0 each, got sizes "
                f"{list(sizes)} and weights {weights}"
            )
        self.sizes, self.seed = tuple(int(size) for size in sizes), seed
        shares = np.asarray(weights, float) / sum(weights) * _BLOCK
        self.counts = np.floor(shares).astype(int)
        rest = np.argsort(-(shares - self.counts), kind="stable")
        self.counts[rest[: _BLOCK - self.counts.sum()]] += 1
        if self.counts.min() < 1:
            raise ValueError(f"a weight is below 1/{_BLOCK} of the whole: {weights}")

    def __len__(self) -> int:
        """Return the length of an epoch: as many rows as all sources have together."""
        return sum(self.sizes)

    def rows(self, epoch: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return int64 [n, 2]: source and row at each index, any indices in any order."""
        places = np.empty((len(indices), 2), np.int64)
        for place, index in enumerate(np.asarray(indices, np.int64)):
            block, within = divmod(int(index), _BLOCK)
            source, rank = self._block(epoch, block)[within]
            nth, position = divmod(block * int(self.counts[source]) + int(rank), self.sizes[source])
            places[place] = source, self._order(epoch, int(source), nth)[position]
        return places

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a handful of mixtures live as long as the run
    def _block(self, epoch: int, block: int) -> np.ndarray:
        order = stream(self.seed, Stream.MIXTURE_BLOCK, epoch, block).permutation(_BLOCK)
        sources = np.repeat(np.arange(len(self.sizes)), self.counts)[order]
        # Ranks count occurrences, so an epoch that ends within a block skips no row before it.
        ranks = np.zeros(_BLOCK, np.int64)
        for source, count in enumerate(self.counts):
            ranks[sources == source] = np.arange(count)
        return np.stack([sources, ranks], axis=1)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _order(self, epoch: int, source: int, nth: int) -> np.ndarray:
        rng = stream(self.seed, Stream.MIXTURE_ROWS, epoch, source, nth)
        return rng.permutation(self.sizes[source])
