"""The discriminator's phases: warm-up on pairs, scoring of text, the update in every round."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from gapo_jax.config import DiscriminatorConfig
from gapo_jax.data.batching import batch_at, epoch_order
from gapo_jax.data.discriminator_text import encode_discriminator
from gapo_jax.losses import class_metrics
from gapo_jax.train.discriminator.batches import (
    LabelledText,
    batches,
    make_batch,
    pair_texts,
    widths,
)
from gapo_jax.train.online.steps import Steps
from gapo_jax.train.state import TrainState
from gapo_jax.types import ACCEPTED, Preference, PreferentialPair


def mean_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Average metric dictionaries key by key; NaN (a class without rows) does not count, but in a
    loss or a gradient norm it must be seen."""
    rows = jax.device_get(list(rows))
    means = {}
    for key in rows[0] if rows else ():
        values = np.array([row[key] for row in rows], np.float64)
        if not key.endswith(("loss", "grad_norm")):
            values = values[~np.isnan(values)]
        if len(values):
            means[key] = float(values.mean())
    return means


def score_texts(
    steps: Steps,
    params: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[LabelledText],
    config: DiscriminatorConfig,
) -> np.ndarray:
    """Return the logits of texts, float32 [B], under one snapshot of the discriminator.

    Texts are batched by length, so that short ones do not pay for long ones.
    """
    sizes = [len(text.prompt) + len(text.response) for text in texts]
    order = np.argsort(sizes, kind="stable")
    logits_B, scored = np.zeros(len(texts), np.float32), []
    for start in range(0, len(texts), config.batch_size):
        rows = order[start : start + config.batch_size]
        batch = make_batch(tokenizer, [texts[i] for i in rows], np.ones(len(rows)), config)
        scores = steps.disc_score(params, batch.tokens_BT, batch.mask_BT, batch.type_ids_BT)
        scored.append((rows, scores))
    # Fetched at the end, so that a batch is tokenised while the device scores the one before.
    for rows, scores in scored:
        logits_B[rows] = np.asarray(scores)[: len(rows)]
    return logits_B


def text_metrics(logits_B: np.ndarray, texts: Sequence[LabelledText]) -> dict[str, float]:
    """Return per-class accuracies and scores of scored texts, and the accuracy on targets."""
    kinds_B = np.array([text.kind for text in texts], np.int32)
    metrics = {
        key: float(value)
        for key, value in class_metrics(jnp.asarray(logits_B), jnp.asarray(kinds_B)).items()
    }
    targets_B = np.array([text.target for text in texts])
    metrics["disc/accuracy"] = float(np.mean((logits_B > 0) == (targets_B > 0.5)))
    return {key: value for key, value in metrics.items() if not np.isnan(value)}


def pair_order_accuracy(logits_B: np.ndarray, texts: Sequence[LabelledText]) -> float:
    """Return how often the accepted text of a pair scores above the rejected one.

    The texts stand as `pair_texts` gives them: accepted, rejected, accepted, rejected, ...
    """
    accepted = np.array([text.kind == ACCEPTED for text in texts])
    return float(np.mean(logits_B[accepted] > logits_B[~accepted]))


def evaluate_pairs(
    steps: Steps,
    params: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferentialPair],
    config: DiscriminatorConfig,
) -> dict[str, float]:
    """Measure the discriminator on held-out pairs: real text only, fixed, never trained on."""
    if not pairs:
        return {}
    texts = [text for pair in pairs for text in pair_texts(pair, 1.0)]
    logits_B = score_texts(steps, params, tokenizer, texts, config)
    found = text_metrics(logits_B, texts)
    return {
        "disc/heldout_accuracy": found["disc/accuracy"],
        "disc/heldout_acc_accepted": found["disc/acc_accepted"],
        "disc/heldout_acc_rejected": found["disc/acc_rejected"],
        "disc/heldout_pair_order": pair_order_accuracy(logits_B, texts),
    }


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
    shuffled = batch_at(seed, epoch, in_use or len(pairs), len(pairs))
    order = sorted(shuffled, key=lambda i: len("".join(pairs[i].sides[0])))
    groups = [order[i : i + per_batch] for i in range(0, len(order), per_batch)]
    return [groups[i] for i in epoch_order(seed + 1, epoch, len(groups))]


def warmup_epoch(
    network: TrainState,
    steps: Steps,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Preference],
    config: DiscriminatorConfig,
    *,
    seed: int,
    epoch: int,
    key: jax.Array,
    in_use: int | None = None,
    progress: Any = lambda batches: batches,
) -> tuple[TrainState, dict[str, float]]:
    """Train one epoch on {(P_acc, R, 1), (P_rej, R, 0)} (Algorithm 1, warm-up), or on the first
    `in_use` pairs for as long."""
    rows = []
    for group in progress(warmup_order(pairs, config.batch_size, seed, epoch, in_use)):
        texts = [text for i in group for text in pair_texts(pairs[i], config.positive_label)]
        for batch in batches(tokenizer, texts, config):
            network, metrics = steps.disc_update(network, batch, key)
            rows.append(metrics)
    return network, mean_metrics(rows)


def round_update(
    network: TrainState,
    steps: Steps,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[LabelledText],
    config: DiscriminatorConfig,
    key: jax.Array,
) -> tuple[TrainState, dict[str, float]]:
    """Update the discriminator on a round's texts, gated by its accuracy on them beforehand.

    Above `gate_high` the update is skipped (the generator would only see a saturated judge),
    below `gate_low` it is made twice.
    """
    gated = config.gate_high < 1 or config.gate_low > 0
    metrics: dict[str, float] = {}
    passes = 1
    if gated:
        logits_B = score_texts(steps, network.params, tokenizer, texts, config)
        metrics = text_metrics(logits_B, texts)
        if config.loss == "bradley_terry":  # which fixes no zero for the logits
            metrics["disc/accuracy"] = float(np.mean(logits_B[::2] > logits_B[1::2]))
        if metrics["disc/accuracy"] > config.gate_high:
            passes = 0
        elif metrics["disc/accuracy"] < config.gate_low:
            passes = 2
    rows = []
    for _ in range(passes):
        for batch in batches(tokenizer, texts, config):
            network, found = steps.disc_update(network, batch, key)
            rows.append(found)
    # The gate's metrics are those of one snapshot; without it, those of each update's own forward.
    metrics = mean_metrics(rows) | metrics
    metrics["disc/updates"] = float(len(rows))
    return network, metrics


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


def prime(
    network: TrainState,
    steps: Steps,
    tokenizer: PreTrainedTokenizerBase,
    config: DiscriminatorConfig,
    key: jax.Array,
    longest: int | None = None,
) -> None:
    """Compile scoring and update for every padded length now, so that no later round compiles.

    Lengths that texts of up to `longest` tokens do not need are left out. The update runs on a
    copy of the network, which is thrown away.
    """
    text = LabelledText("a", "b", ACCEPTED, 1.0)
    batch = make_batch(tokenizer, [text], np.ones(1), config)
    every = widths(config.max_tokens)
    needed = every if longest is None else every[: bisect.bisect_left(every, longest) + 1]
    for width in needed:
        pad = ((0, 0), (0, width - batch.tokens_BT.shape[1]))
        wide = batch.replace(
            tokens_BT=jnp.pad(batch.tokens_BT, pad),
            mask_BT=jnp.pad(batch.mask_BT, pad),
            type_ids_BT=jnp.pad(batch.type_ids_BT, pad),
        )
        steps.disc_score(network.params, wide.tokens_BT, wide.mask_BT, wide.type_ids_BT)
        copy = jax.tree.map(lambda leaf: leaf.copy(), network)
        steps.disc_update(copy, wide, key)
