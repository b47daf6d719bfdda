"""The discriminator's part of a round (Algorithm 1 of GAPO, odd steps)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
import optax
from transformers import PreTrainedTokenizerBase

from gapo_jax.config import DiscriminatorConfig
from gapo_jax.methods import method_of
from gapo_jax.train.build import TrainSteps
from gapo_jax.train.checks import ONLINE_RATES, check_finite
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.batches import labelled_batches, pairs_in_use, round_texts
from gapo_jax.train.discriminator.pair_prompts import prompt_auc
from gapo_jax.train.discriminator.scoring import evaluate_pairs, score_texts, text_metrics
from gapo_jax.train.discriminator.texts import LabelledText, update_replay
from gapo_jax.train.metrics import mean_metrics
from gapo_jax.train.round import RoundRollout
from gapo_jax.train.state import GAPOState, TrainState
from gapo_jax.types import GENERATED


def update_discriminator(
    ctx: TrainContext, state: GAPOState, rollout: RoundRollout
) -> tuple[GAPOState, dict[str, float]]:
    """Update the discriminator on pairs, the round's text and replayed text, unless the method
    keeps it frozen; the round's text joins the replay buffer.

    Raises:
        RunStopped: a loss or a gradient is not finite.
    """
    if not method_of(ctx.config).adversarial:
        return state, {}
    with ctx.clock("discriminator"):
        state, metrics = _update(ctx, state, rollout)
    return state, metrics | {"time/discriminator_s": ctx.clock.last["discriminator"]}


def _update(
    ctx: TrainContext, state: GAPOState, rollout: RoundRollout
) -> tuple[GAPOState, dict[str, float]]:
    config, settings, index = ctx.config, ctx.config.discriminator, rollout.index
    known = pairs_in_use(config, len(ctx.pairs.compared), index / config.rounds)
    texts = round_texts(
        settings,
        ctx.pairs.compared[:known],
        rollout.generated,
        state.replay,
        seed=config.seed,
        round_index=index,
    )
    discriminator, metrics = update_on_texts(
        state.discriminator,
        ctx.steps,
        ctx.models.disc_tokenizer,
        texts,
        settings,
        state.key,
    )
    check_finite(metrics, f"round {index + 1}", ONLINE_RATES)
    metrics["disc/pairs_in_use"] = float(known)
    if texts and not math.isnan(
        told := prompt_auc(
            [text.prompt for text in texts], [text.kind == GENERATED for text in texts]
        )
    ):
        metrics["disc/prompt_auc"] = told
    if (index + 1) % config.eval.pairs_every == 0 or index + 1 == config.rounds:
        metrics |= evaluate_pairs(
            ctx.steps,
            discriminator.params,
            ctx.models.disc_tokenizer,
            ctx.pairs.heldout,
            settings,
        )
    replay = update_replay(
        state.replay,
        rollout.generated,
        settings.replay_capacity,
        seed=config.seed,
        round_index=index,
    )
    average = state.disc_average
    if average is not None:
        average = optax.incremental_update(discriminator.params, average, 1 - settings.ema_decay)
    return state.replace(discriminator=discriminator, disc_average=average, replay=replay), metrics


def update_on_texts(
    state: TrainState,
    steps: TrainSteps,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[LabelledText],
    config: DiscriminatorConfig,
    key: jax.Array,
) -> tuple[TrainState, dict[str, float]]:
    """Update the discriminator on a round's texts, gated by its accuracy on them beforehand.

    Above `gate_high` the update is skipped (rewards of a saturated discriminator teach the
    generator nothing), below `gate_low` it is made twice.
    """
    gated = config.gate_high < 1 or config.gate_low > 0
    gate_metrics: dict[str, float] = {}
    passes = 1
    if gated:
        logits_B = score_texts(steps, state.params, tokenizer, texts, config)
        gate_metrics = text_metrics(logits_B, texts)
        if config.loss == "bradley_terry":  # which fixes no zero for the logits
            gate_metrics["disc/accuracy"] = float(np.mean(logits_B[::2] > logits_B[1::2]))
        if gate_metrics["disc/accuracy"] > config.gate_high:
            passes = 0
        elif gate_metrics["disc/accuracy"] < config.gate_low:
            passes = 2
    updates = []
    for _ in range(passes):
        for batch in labelled_batches(tokenizer, texts, config):
            state, metrics = steps.disc_update(state, batch, key)
            updates.append(metrics)
    # The gate's metrics are those of one snapshot; without it, those of each update's own forward.
    means = mean_metrics(updates) | gate_metrics
    return state, means | {"disc/updates": float(len(updates))}
