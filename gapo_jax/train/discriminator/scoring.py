"""What a discriminator says of texts: their logits under one snapshot, and how right they are."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from gapo_jax.config import DiscriminatorConfig
from gapo_jax.losses import class_metrics
from gapo_jax.train.build import TrainSteps
from gapo_jax.train.discriminator.batches import encode_texts, pair_texts
from gapo_jax.train.discriminator.texts import LabelledText, Text
from gapo_jax.types import ACCEPTED, Params, PreferentialPair


def score_texts(
    steps: TrainSteps,
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
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
        arrays = encode_texts(tokenizer, [texts[i] for i in rows], config)
        scored.append((rows, steps.disc_score(params, *arrays)))
    # Fetched at the end, so that a batch is tokenised while the device scores the one before.
    for rows, batch_logits_B in scored:
        logits_B[rows] = np.asarray(batch_logits_B)[: len(rows)]
    return logits_B


def text_metrics(logits_B: np.ndarray, texts: Sequence[LabelledText]) -> dict[str, float]:
    """Return per-class accuracies and scores of scored texts, and the accuracy on targets."""
    kinds_B = jnp.array([text.kind for text in texts], jnp.int32)
    targets_B = np.array([text.target for text in texts], np.float32)
    by_class = class_metrics(jnp.asarray(logits_B), kinds_B, targets_B=jnp.asarray(targets_B))
    metrics = {key: float(value) for key, value in by_class.items()}
    metrics["disc/accuracy"] = float(np.mean((logits_B > 0) == (targets_B > 0.5)))
    return {key: value for key, value in metrics.items() if not np.isnan(value)}


def pair_order_accuracy(logits_B: np.ndarray, texts: Sequence[LabelledText]) -> float:
    """Return how often the accepted text of a pair scores above the rejected one.

    The texts stand as `pair_texts` gives them: accepted, rejected, accepted, rejected, ...
    """
    accepted = np.array([text.kind == ACCEPTED for text in texts])
    return float(np.mean(logits_B[accepted] > logits_B[~accepted]))


def evaluate_pairs(
    steps: TrainSteps,
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PreferentialPair],
    config: DiscriminatorConfig,
) -> dict[str, float]:
    """Measure the discriminator on held-out pairs: real text only, fixed, never trained on."""
    if not pairs:
        return {}
    texts = [text for pair in pairs for text in pair_texts(pair, 1.0)]
    logits_B = score_texts(steps, params, tokenizer, texts, config)
    metrics = text_metrics(logits_B, texts)
    return {
        "disc/heldout_accuracy": metrics["disc/accuracy"],
        "disc/heldout_acc_accepted": metrics["disc/acc_accepted"],
        "disc/heldout_acc_rejected": metrics["disc/acc_rejected"],
        "disc/heldout_pair_order": pair_order_accuracy(logits_B, texts),
    }
