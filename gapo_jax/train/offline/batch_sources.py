"""What a round of an offline method learns from: the batch of each update, and the update."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from gapo_jax.data.preferences import Example
from gapo_jax.methods import asks_discriminator
from gapo_jax.train.buckets import compile_all_widths
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.batches import labelled_batches, pair_texts, pairs_in_use
from gapo_jax.train.discriminator.scoring import score_texts
from gapo_jax.train.discriminator.texts import GeneratedText
from gapo_jax.train.discriminator.update import DISCRIMINATOR_STREAM
from gapo_jax.train.discriminator.warmup import warmup_order
from gapo_jax.train.offline.examples import (
    cut_off_texts,
    fit,
    make_examples,
    offline_batch,
)
from gapo_jax.train.state import GAPOState, TrainState

log = logging.getLogger("gapo_jax")
Update = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


class Lesson(NamedTuple):
    """One round: the batch of update number n (counted over the whole run), and the update."""

    batch: Callable[[int], Any]
    update: Update


# (state at the start of a round, its index) -> its lesson
Teacher = Callable[[GAPOState, int], Lesson]


def policy_update(ctx: TrainContext, widths: Sequence[int] = ()) -> Update:
    """Return the compiled update of the generator by the run's method, for batches in buckets of
    the `widths`, if there are any."""
    step = compile_all_widths(ctx.steps.offline, widths)
    return lambda state, batch: step(state, batch, ctx.models.ref_params)


def fixed_teacher(ctx: TrainContext, state: GAPOState) -> Teacher:
    """Return the lessons of a method whose examples are made once, of the pairs.

    Raises:
        ValueError: the pairs give too few examples that fit.
    """
    examples, encoder = fit(
        ctx.config,
        ctx.models,
        make_examples(ctx.config, ctx.pairs.train),
        cut_off_texts(ctx.workdir),
    )
    config = ctx.config
    seen = config.rounds * ctx.updates_per_round * config.offline.batch_size
    log.info("%d examples, each learned from %.1f times", len(examples), seen / len(examples))
    rewards: dict[tuple[str, str], float] = {}
    if asks_discriminator(ctx.config):
        rewards = discriminator_rewards(ctx, state, examples)
    lesson = Lesson(
        functools.partial(offline_batch, ctx.config, encoder, examples, rewards),
        policy_update(ctx, encoder.widths),
    )
    return lambda state, index: lesson


def discriminator_rewards(
    ctx: TrainContext, state: GAPOState, examples: list[Example]
) -> dict[tuple[str, str], float]:
    """Return the warmed-up discriminator's logit of every (prompt, response)."""
    sides = list(dict.fromkeys((s.prompt, s.response) for sides in examples for s in sides))
    logits_N = score_texts(
        ctx.steps,
        state.discriminator.params,
        ctx.models.disc_tokenizer,
        [GeneratedText(*side, verified=False, round=0) for side in sides],
        ctx.config.discriminator,
    )
    return {side: float(logit) for side, logit in zip(sides, logits_N, strict=True)}


def discriminator_teacher(ctx: TrainContext, state: GAPOState) -> Teacher:
    """Return the lessons of the discriminator: the batches of its warm-up, epoch after epoch."""
    config, pairs = ctx.config, ctx.pairs.compared
    settings, tokenizer = config.discriminator, ctx.models.disc_tokenizer
    length = len(warmup_order(pairs, settings.batch_size, config.seed, 0))
    total = config.rounds * ctx.updates_per_round

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> list[list[int]]:
        known = pairs_in_use(config, len(pairs), epoch * length / total)
        return warmup_order(pairs, settings.batch_size, config.seed, epoch, known)

    key = jax.random.fold_in(state.key, DISCRIMINATOR_STREAM)

    def batch(step: int) -> Any:
        epoch, index = divmod(step, length)
        group = order(epoch)[index]
        texts = [text for i in group for text in pair_texts(pairs[i], settings.positive_label)]
        (only,) = labelled_batches(tokenizer, texts, settings)
        return only

    update = ctx.steps.disc_update
    lesson = Lesson(batch, lambda state, texts: update(state, texts, key))
    return lambda state, index: lesson
