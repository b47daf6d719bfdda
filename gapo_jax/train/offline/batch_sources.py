"""What the updates of an offline method learn from: the batch of update number n."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from gapo_jax.data.preferences import Example
from gapo_jax.methods import asks_discriminator
from gapo_jax.train.buckets import Bucketed
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.batches import labelled_batches, pair_texts, pairs_in_use
from gapo_jax.train.discriminator.scoring import score_texts
from gapo_jax.train.discriminator.steps import TextBatch
from gapo_jax.train.discriminator.texts import GeneratedText
from gapo_jax.train.discriminator.warmup import warmup_order
from gapo_jax.train.offline.examples import (
    BySide,
    Encoder,
    cut_off_texts,
    fit,
    make_examples,
    offline_batch,
)
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.train.state import GAPOState

log = logging.getLogger("gapo_jax")


class BatchSource(Protocol):
    """Gives the batch of every update, a function of the seed and the number of the update; a
    method that samples in between does so at the beginning of a round."""

    @property
    def widths(self) -> Sequence[int]:
        """Widths of the buckets that the batches of the round come in, () for one."""
        ...

    def begin_round(self, state: GAPOState, index: int) -> None:
        """Make what round `index` (from 0) learns from, where that depends on the state."""
        ...

    def batch(self, update: int) -> OfflineBatch | TextBatch | Bucketed:
        """Return the batch of an update, counted over the whole run."""
        ...


@dataclasses.dataclass(frozen=True)
class ExampleBatches:
    """Batches of examples that are made once.

    Attributes:
        ctx: the run.
        encoder: of the examples.
        examples: all that batches are drawn from.
        rewards: take the place of the sides' own.
        references: log-probs of the sides under a reference that the batches bring along.
    """

    ctx: TrainContext
    encoder: Encoder
    examples: Sequence[Example]
    rewards: BySide | None = None
    references: BySide | None = None

    @property
    def widths(self) -> Sequence[int]:
        """Widths that the encoder chose for the lengths of the examples."""
        return self.encoder.widths

    def begin_round(self, state: GAPOState, index: int) -> None:
        """Do nothing: a batch depends on its number alone."""

    def batch(self, update: int) -> OfflineBatch | Bucketed:
        """Return the examples of an update, encoded."""
        return offline_batch(
            self.ctx.config, self.encoder, self.examples, update, self.rewards, self.references
        )


def pair_batches(ctx: TrainContext, state: GAPOState) -> ExampleBatches:
    """Return the batches of a method whose examples are the run's pairs.

    Raises:
        ValueError: the pairs give too few examples that fit.
    """
    config, models = ctx.config, ctx.models
    made = make_examples(config, ctx.pairs.train)
    examples, encoder = fit(config, models, made, cut_off_texts(ctx.workdir))
    seen = config.rounds * ctx.updates_per_round * config.offline.batch_size
    log.info("%d examples, each learned from %.1f times", len(examples), seen / len(examples))
    rewards = discriminator_rewards(ctx, state, examples) if asks_discriminator(config) else None
    return ExampleBatches(ctx, encoder, examples, rewards)


def discriminator_rewards(
    ctx: TrainContext, state: GAPOState, examples: Sequence[Example]
) -> BySide:
    """Return the warmed-up discriminator's logit of every (prompt, response)."""
    sides = list(dict.fromkeys((s.prompt, s.response) for sides in examples for s in sides))
    logits_B = score_texts(
        ctx.steps,
        state.discriminator.params,
        ctx.models.disc_tokenizer,
        [GeneratedText(*side, verified=False, round=0) for side in sides],
        ctx.config.discriminator,
    )
    return {side: float(logit) for side, logit in zip(sides, logits_B, strict=True)}


@dataclasses.dataclass(frozen=True)
class PairTextBatches:
    """The batches of the discriminator alone, as in its warm-up: `order(epoch)` gives the pairs of
    each batch of an epoch, by index."""

    ctx: TrainContext
    updates_per_epoch: int
    order: Callable[[int], list[list[int]]]
    widths: Sequence[int] = ()

    def begin_round(self, state: GAPOState, index: int) -> None:
        """Do nothing: a batch depends on its number alone."""

    def batch(self, update: int) -> TextBatch:
        """Return the texts of an update: both sides of some pairs."""
        epoch, place = divmod(update, self.updates_per_epoch)
        settings, pairs = self.ctx.config.discriminator, self.ctx.pairs.compared
        texts = [
            text
            for i in self.order(epoch)[place]
            for text in pair_texts(pairs[i], settings.positive_label)
        ]
        (batch,) = labelled_batches(self.ctx.models.disc_tokenizer, texts, settings)
        return batch


def pair_text_batches(ctx: TrainContext, state: GAPOState) -> PairTextBatches:
    """Return the batches of the discriminator, in which a curriculum takes the whole run."""
    del state
    config, pairs = ctx.config, ctx.pairs.compared
    draw = functools.partial(warmup_order, pairs, config.discriminator.batch_size, config.seed)
    updates_per_epoch, updates = len(draw(0)), config.rounds * ctx.updates_per_round

    # The updates of an epoch follow each other, and sorting the pairs for each of them takes long.
    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> list[list[int]]:
        done = epoch * updates_per_epoch / updates
        return draw(epoch, pairs_in_use(config, len(pairs), done))

    return PairTextBatches(ctx, updates_per_epoch, order)
