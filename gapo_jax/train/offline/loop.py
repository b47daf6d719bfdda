"""The loop of the offline methods: rounds of updates on examples made before training.

`config.method` is sft, dpo, kto, simpo, orpo or rpo (preferential prompts or responses, see
`data/preferences.py`), discriminator (the reward model alone), inverse_q or sgpo, which sample in
between (`inverse_q.py`, `sgpo.py`). A round is `offline.steps_per_round` updates and the unit of
logging, evaluation and saving; the batch of an update depends on the seed and its number alone, so
a continued run is the same run. `step` in metrics.jsonl counts updates; `throughput/*` counts the
tokens of prompts and responses that pass through the update.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gapo_jax.methods import asks_discriminator
from gapo_jax.train.buckets import Bucketed
from gapo_jax.train.checks import check_finite, check_kl
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.scoring import evaluate_pairs
from gapo_jax.train.discriminator.warmup import warm_up
from gapo_jax.train.metrics import mean_metrics
from gapo_jax.train.offline.batch_sources import Teacher, discriminator_teacher, fixed_teacher
from gapo_jax.train.offline.inverse_q import inverse_q_teacher
from gapo_jax.train.offline.sgpo import sgpo_teacher
from gapo_jax.train.rounds import PhaseMetrics, run_rounds, save
from gapo_jax.train.state import GAPOState

# What to lower where the updates of a network leave no numbers.
RATES = {
    "policy": "config.offline.optim.learning_rate",
    "disc": "config.discriminator.optim.learning_rate",
}
TEACHERS = {
    "discriminator": discriminator_teacher,
    "inverse_q": inverse_q_teacher,
    "sgpo": sgpo_teacher,
}


def train(ctx: TrainContext, state: GAPOState) -> GAPOState:
    """Play all rounds that are left, saving at round boundaries; return the final state.

    Raises:
        RunInterrupted: asked to stop by a signal; everything needed to continue is saved.
        RunStopped: a loss is not finite or the policy collapses; the last good state, if there is
            one, is saved.
        ValueError: the data gives too few examples that fit; names the keys to change.
    """
    if state.last_saved is None:
        if asks_discriminator(ctx.config):
            state = warm_up(ctx, state)
        state = save(ctx, state, 0)
    with ctx.clock("examples"):
        teach = TEACHERS.get(ctx.config.method, fixed_teacher)(ctx, state)
    return run_rounds(ctx, state, functools.partial(one_round, teach))


def one_round(
    teach: Teacher, ctx: TrainContext, state: GAPOState, index: int
) -> tuple[GAPOState, PhaseMetrics]:
    """Run the updates of round `index` (from 0); return the state and one line of metrics.

    Raises:
        RunStopped: a loss is not finite or the policy has left the reference.
    """
    number, updates = index + 1, ctx.updates_per_round
    name = "discriminator" if ctx.config.method == "discriminator" else "policy"
    lesson = teach(state, index)
    network, rows = getattr(state, name), []
    tokens = np.zeros(2)
    with ctx.clock(name):
        for step in range(index * updates, number * updates):
            batch = lesson.batch(step)
            tokens += token_counts(batch)
            network, metrics = lesson.update(network, batch)
            rows.append(metrics)
        found = mean_metrics(rows)
    seconds = ctx.clock.last[name]
    check(ctx, found, number)
    if name == "discriminator":
        found |= evaluate_pairs(
            ctx.steps,
            network.params,
            ctx.models.disc_tokenizer,
            ctx.pairs.heldout,
            ctx.config.discriminator,
        )
    found |= {
        f"time/{name}_s": seconds,
        "throughput/real_tokens_per_s": float(tokens[0] / seconds),
        "throughput/padded_tokens_per_s": float(tokens[1] / seconds),
    }
    return state.replace(**{name: network}), {name: found}


def token_counts(batch: Any) -> np.ndarray:
    """Return (real, padded) tokens of the rows of a batch, float64 [2]."""
    whole = batch.batch if isinstance(batch, Bucketed) else batch
    mask_BT = np.asarray(whole.rows.mask_BT if hasattr(whole, "rows") else whole.mask_BT)
    width = batch.width if isinstance(batch, Bucketed) else mask_BT.shape[1]
    return np.array([mask_BT.sum(), len(mask_BT) * width], np.float64)


def check(ctx: TrainContext, metrics: dict[str, float], number: int) -> None:
    """Raise RunStopped when a loss or gradient is not finite, or own samples show a collapse."""
    when = f"round {number}"
    check_finite(metrics, when, RATES)
    remedy = f"lower {RATES['policy']} or config.inverse_q.strength"
    check_kl(metrics.get("kl/ref", 0.0), ctx.config.ppo.kl_limit, when, remedy)
