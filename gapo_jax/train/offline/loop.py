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
import math
from typing import Any

import numpy as np

from gapo_jax.train.build import needs_discriminator
from gapo_jax.train.discriminator.update import evaluate_pairs, mean_metrics
from gapo_jax.train.offline.batch_sources import Teacher, discriminator_teacher, fixed_teacher
from gapo_jax.train.offline.inverse_q import inverse_q_teacher
from gapo_jax.train.offline.sgpo import sgpo_teacher
from gapo_jax.train.online.loop import run_rounds, warmup
from gapo_jax.train.online.phases import TrainContext
from gapo_jax.train.runtime import RunStopped
from gapo_jax.train.state import GAPOState

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
    if ctx.last_saved is None:
        if needs_discriminator(ctx.config):
            state = warmup(ctx, state)
        ctx.save(state, 0)
    with ctx.clock("examples"):
        teach = TEACHERS.get(ctx.config.method, fixed_teacher)(ctx, state)
    return run_rounds(ctx, state, functools.partial(one_round, teach))


def one_round(teach: Teacher, ctx: TrainContext, state: GAPOState, index: int) -> GAPOState:
    """Play round `index` (from 0): its updates one after the other, then one line of metrics.

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
            ctx.training.steps,
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
    ctx.writer.write(number * updates, number, name, found)
    return state.replace(**{name: network}, round=state.round + 1)


def token_counts(batch: Any) -> np.ndarray:
    """Return (real, padded) tokens of the rows of a batch, float64 [2]."""
    mask_BT = np.asarray(batch.rows.mask_BT if hasattr(batch, "rows") else batch.mask_BT)
    frame = getattr(batch, "frame", None)
    width = frame.width if frame else mask_BT.shape[1]
    return np.array([mask_BT.sum(), len(mask_BT) * width], np.float64)


def check(ctx: TrainContext, metrics: dict[str, float], number: int) -> None:
    """Raise RunStopped when a loss or gradient is not finite, or own samples show a collapse."""
    keys = {"policy": "config.offline.optim", "disc": "config.discriminator.optim"}
    for network, key in keys.items():
        for name in ("loss", "grad_norm"):
            value = metrics.get(f"{network}/{name}", 0.0)
            if not math.isfinite(value):
                raise RunStopped(
                    f"{network}/{name} is {value} in round {number}; lower {key}.learning_rate"
                )
    limit = ctx.config.ppo.kl_limit
    if not metrics.get("kl/ref", 0.0) <= limit:
        raise RunStopped(
            f"KL to the reference is {metrics['kl/ref']:.3f} a token in round {number}, above "
            f"config.ppo.kl_limit={limit}: the policy is collapsing; lower "
            "config.offline.optim.learning_rate or config.inverse_q.strength"
        )
