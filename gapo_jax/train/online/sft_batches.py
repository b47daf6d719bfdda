"""Demonstrations for an SFT term in the policy loss, which holds the generator to text that obeys.

UniAPL (arXiv 2509.25148) mixes demonstrations into every gradient step; here they are the accepted
sides of the preferential pairs, so nothing is needed beyond what the discriminator learns from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gapo_jax.config import Config, system_text
from gapo_jax.data.batching import batch_at
from gapo_jax.data.preferences import Side, accepted_rows
from gapo_jax.rng import Stream
from gapo_jax.train.build import Models
from gapo_jax.train.offline.examples import Encoder, cut_off_texts, fit
from gapo_jax.types import PreferentialPair, Rollout


@dataclasses.dataclass(frozen=True)
class SFTBatches:
    """The accepted sides that fit, and how they are encoded; `rows` of them make a batch."""

    sides: tuple[Side, ...]
    encoder: Encoder
    system: str | None
    seed: int
    rows: int

    def batch(self, step: int) -> Rollout:
        """Return the batch of policy update `step`: a function of seed and step alone."""
        chosen = batch_at(
            self.seed, Stream.SFT_ORDER, step=step, n=len(self.sides), batch_size=self.rows
        )
        return self.encoder.rows([self.sides[i] for i in chosen], self.system)


def make_sft_batches(
    config: Config, models: Models, pairs: Sequence[PreferentialPair], workdir: Path
) -> SFTBatches:
    """Return the accepted sides of the pairs as examples.

    Raises:
        ValueError: most are too long; names the limits to raise.
    """
    rows = config.ppo.sft_rows
    examples, encoder = fit(
        config, models, accepted_rows(pairs), cut_off_texts(workdir), batch_size=rows
    )
    sides = tuple(side for example in examples for side in example)
    return SFTBatches(sides, encoder, system_text(config), config.seed, rows)
