"""The discriminator before the first round: its programs are compiled, and it learns from pairs
alone (Algorithm 1 of GAPO, part 1)."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import PreTrainedTokenizerBase

from gapo_jax.config import DiscriminatorConfig
from gapo_jax.data.batching import batch_at, epoch_order, text_buckets
from gapo_jax.data.discriminator_text import encode_discriminator
from gapo_jax.methods import method_of
from gapo_jax.rng import Stream
from gapo_jax.train.build import TrainSteps
from gapo_jax.train.checks import check_finite, warmup_rates
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.batches import (
    labelled_batches,
    make_batch,
    pair_texts,
    pairs_in_use,
)
from gapo_jax.train.discriminator.scoring import evaluate_pairs
from gapo_jax.train.discriminator.texts import LabelledText
from gapo_jax.train.metrics import mean_metrics, progress
from gapo_jax.train.runtime import RunInterrupted
from gapo_jax.train.state import GAPOState, TrainState, copy_tree
from gapo_jax.types import ACCEPTED, Preference

_norm = jax.jit(optax.tree.norm)


def warm_up(ctx: TrainContext, state: GAPOState) -> GAPOState:
    """Train the discriminator on pairs alone, for `warmup_epochs` epochs.

    Raises:
        RunInterrupted: a signal asked for a stop. Nothing is saved, as all of it is a function of
            the seed.
        RunStopped: the discriminator is not finite; nothing is saved.
    """
    config, discriminator = ctx.config, state.discriminator
    settings, pairs = config.discriminator, ctx.pairs.compared
    tokenizer = ctx.models.disc_tokenizer
    steps = dataclasses.replace(ctx.steps, disc_update=stoppable(ctx, ctx.steps.disc_update))
    for epoch in range(settings.warmup_epochs):
        # In the rounds of an adversarial method the curriculum goes on.
        done = 0.0 if method_of(config).adversarial else epoch / settings.warmup_epochs
        known = pairs_in_use(config, len(pairs), done)
        order = warmup_order(pairs, settings.batch_size, config.seed, epoch, known)
        with ctx.clock("warmup"):
            discriminator, metrics = warmup_epoch(
                discriminator,
                steps,
                tokenizer,
                pairs,
                settings,
                order=progress(order, "discriminator warm-up"),
                key=state.key,
            )
            # The weights too: what the last update made of them is in no loss yet.
            norm = {"disc/weight_norm": float(_norm(discriminator.params))}
            when = f"epoch {epoch + 1} of the discriminator's warm-up"
            check_finite(metrics | norm, when, warmup_rates(settings))
            metrics |= evaluate_pairs(
                steps, discriminator.params, tokenizer, ctx.pairs.heldout, settings
            )
        metrics["time/warmup_s"] = ctx.clock.last["warmup"]
        ctx.writer.write(0, 0, "warmup", metrics)
    average = None if state.disc_average is None else copy_tree(discriminator.params)
    return state.replace(discriminator=discriminator, disc_average=average)


def stoppable(ctx: TrainContext, update: Callable[..., Any]) -> Callable[..., Any]:
    """Return an update that first stops the run (RunInterrupted) if a signal asked for it.

    It waits for the update before its own: on a CPU, XLA takes 16 of them ahead, and all would have
    to end before the process can. The next batch is tokenised meanwhile all the same.
    """
    last: Any = None

    def step(*inputs: Any) -> Any:
        nonlocal last
        jax.block_until_ready(last)
        if signal_name := ctx.asked_to_stop():
            raise RunInterrupted(signal_name)
        state, last = update(*inputs)
        return state, last

    return step


def warmup_order(
    pairs: Sequence[Preference],
    batch_size: int,
    seed: int,
    epoch: int,
    in_use: int | None = None,
) -> list[list[int]]:
    """Return the batches of one warm-up epoch as indices of pairs: batches of like length.

    Batches are cut from the pairs in order of length and come in random order, so that a batch is
    padded little and still both classes are equally present in it. Where only the first `in_use`
    pairs are, they come the more often: an epoch has the same number of updates.
    """
    per_batch = max(1, batch_size // 2)
    shuffled = batch_at(
        seed, Stream.WARMUP_PAIRS, epoch, step=0, n=in_use or len(pairs), batch_size=len(pairs)
    )
    order = sorted(shuffled, key=lambda i: len("".join(pairs[i].sides[0])))
    groups = [order[i : i + per_batch] for i in range(0, len(order), per_batch)]
    return [groups[i] for i in epoch_order(seed, Stream.WARMUP_BATCHES, epoch, n=len(groups))]


def warmup_epoch(
    state: TrainState,
    steps: TrainSteps,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Preference],
    config: DiscriminatorConfig,
    *,
    order: Iterable[Sequence[int]],
    key: jax.Array,
) -> tuple[TrainState, dict[str, float]]:
    """Train one epoch on {(P_acc, R, 1), (P_rej, R, 0)}, batch by batch in the given order."""
    updates = []
    for group in order:
        texts = [text for i in group for text in pair_texts(pairs[i], config.positive_label)]
        for batch in labelled_batches(tokenizer, texts, config):
            state, metrics = steps.disc_update(state, batch, key)
            updates.append(metrics)
    return state, mean_metrics(updates)


def compile_discriminator(ctx: TrainContext, state: GAPOState) -> None:
    """Compile scoring and update for every width that texts of the run can need."""
    config, tokenizer = ctx.config, ctx.models.disc_tokenizer
    with ctx.clock("compile"):
        longest = longest_text(
            tokenizer,
            [*ctx.pairs.compared, *ctx.pairs.heldout],
            [row.prompt for row in ctx.prompts.train],
            config.sampling.max_new_tokens,
            config.discriminator,
        )
        compile_widths(
            state.discriminator, ctx.steps, tokenizer, config.discriminator, state.key, longest
        )


def longest_text(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Preference],
    prompts: Sequence[str],
    new_tokens: int,
    config: DiscriminatorConfig,
) -> int:
    """Return how many tokens the texts of a run have at most, as far as can be told beforehand:
    those of its pairs, and answers to its prompts of twice as many as the generator's own."""
    known = [text for pair in pairs for text in pair_texts(pair, 1.0)]
    lengths = [
        encode_discriminator(tokenizer, *texts, config.max_tokens)[0].shape[1]
        for texts in (
            ([text.prompt for text in known], [text.response for text in known]),
            (prompts, [""] * len(prompts)),
        )
    ]
    return max(lengths[0], lengths[1] + 2 * new_tokens)


def compile_widths(
    state: TrainState,
    steps: TrainSteps,
    tokenizer: PreTrainedTokenizerBase,
    config: DiscriminatorConfig,
    key: jax.Array,
    longest: int | None = None,
) -> None:
    """Compile scoring and update for every width now, so that no later round compiles.

    Widths that texts of up to `longest` tokens do not need are left out. The update runs on a copy
    of the discriminator, which is thrown away.
    """
    text = LabelledText("a", "b", ACCEPTED, 1.0)
    batch = make_batch(tokenizer, [text], np.ones(1), config)
    widths = text_buckets(config.max_tokens)
    needed = widths if longest is None else widths[: bisect.bisect_left(widths, longest) + 1]
    for width in needed:
        pad = ((0, 0), (0, width - batch.tokens_BT.shape[1]))
        wide = batch.replace(
            tokens_BT=jnp.pad(batch.tokens_BT, pad),
            mask_BT=jnp.pad(batch.mask_BT, pad),
            type_ids_BT=jnp.pad(batch.type_ids_BT, pad),
        )
        steps.disc_score(state.params, wide.tokens_BT, wide.mask_BT, wide.type_ids_BT)
        copy = jax.tree.map(lambda leaf: leaf.copy(), state)
        steps.disc_update(copy, wide, key)
