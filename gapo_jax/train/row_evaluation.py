"""Measuring a network on rows that are held out: before, during and after training.

What is measured follows from what the rows hold: the likelihood of demonstrations, and which side
of a pair, or which label, the implicit rewards (or the discriminator's logits) put first. Names are
those of TRL's trainers where these have one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gapo_jax import io
from gapo_jax.config import Config
from gapo_jax.data.batching import length_sorted_batches
from gapo_jax.data.row_table import RowTable
from gapo_jax.evaluate.second_opinion import auc
from gapo_jax.methods import method_of
from gapo_jax.train.context import TrainContext
from gapo_jax.train.discriminator.scoring import score_texts
from gapo_jax.train.metrics import read_metrics
from gapo_jax.train.offline.row_arrays import Widths, labelled_texts, make_batch
from gapo_jax.train.offline.steps import RowSums
from gapo_jax.train.state import GAPOState

_FILE = "rows_{}.jsonl"  # as other processes of a run get a copy of such files
# Measures of which a smaller number is the better one; of all others a larger one is.
FALLING = ("nll_loss", "perplexity")


def measure_rows(ctx: TrainContext, state: Callable[[], GAPOState], name: str) -> dict[str, float]:
    """Return what the held-out rows say of a state, which is made if it is needed; read back from
    `rows_NAME.jsonl` of the workdir where it is there already."""
    path = Path(ctx.workdir) / _FILE.format(name)
    if not path.exists():
        with ctx.clock("eval"):
            io.write_jsonl(path, [heldout_metrics(ctx, state())])
    return io.read_jsonl(path)[0]


def heldout_metrics(
    ctx: TrainContext, state: GAPOState, development: bool = False
) -> dict[str, float]:
    """Return the metrics of a state on the held-out rows of a run, or on those of development."""
    assert ctx.rows is not None
    table, places = ctx.rows.heldout_table, ctx.rows.heldout
    if development:
        table, places = ctx.rows.table, ctx.rows.development
    if not len(places):
        return {}
    if ctx.rows.want == "comparisons":
        return text_metrics(*_text_scores(ctx, state, table, places))
    sums = policy_sums(ctx, state, table, places)
    columns = table.take(places)
    if ctx.rows.want == "demonstrations":
        return likelihood_metrics(sums)
    if ctx.rows.want == "labelled":
        good_B = np.array([rewards[0] for rewards in columns["rewards"]]) > 0.5
        return label_metrics(ctx.config, sums, good_B)
    return pair_metrics(ctx.config, sums, sides=len(columns["rewards"][0]))


def policy_sums(
    ctx: TrainContext, state: GAPOState, table: RowTable, places: np.ndarray
) -> RowSums:
    """Return the sums of the rows at some places of a table, float64 [B], in their order; the sides
    of an example follow each other."""
    assert ctx.rows is not None
    shapes, pad_id = Widths.of(ctx.config, table), ctx.models.decoder.config.pad_id
    size, made = ctx.config.offline.batch_size, {}
    for group in length_sorted_batches(table.lengths[places], size):
        # A batch that is not full repeats its first example: another size would be compiled anew.
        filled = np.concatenate([group, np.full(size - len(group), group[0])])
        batch = make_batch(table, "pairs", shapes, places[filled], pad_id)
        sums = ctx.steps.sum_rows(state.policy.params, ctx.models.ref_params, batch.rows)
        parts = [np.asarray(part, np.float64).reshape(size, -1) for part in jax.device_get(sums)]
        for row, example in enumerate(group):
            made[int(example)] = [part[row] for part in parts]
    ordered = [made[i] for i in range(len(places))]
    return RowSums(*(np.concatenate(part) for part in zip(*ordered, strict=True)))  # type: ignore[arg-type]


def likelihood_metrics(sums: RowSums) -> dict[str, float]:
    """Return the mean negative log-likelihood of a token, its exponential, and the share of tokens
    that are the likeliest ones."""
    tokens = max(float(np.sum(sums.tokens_B)), 1.0)
    nll = -float(np.sum(sums.policy_B)) / tokens
    return {
        "nll_loss": nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "mean_token_accuracy": float(np.sum(sums.correct_B)) / tokens,
    }


def implicit_rewards(config: Config, sums: RowSums) -> tuple[np.ndarray, np.ndarray]:
    """Return the implicit reward of every row and the log-prob that the method's loss compares.

    With a reference the reward is beta log(pi / ref) of the response, else beta times the mean
    log-prob of a token, as the losses of SimPO and ORPO have it.
    """
    method = method_of(config)
    options, tokens_B = method.section_of(config), np.maximum(np.asarray(sums.tokens_B), 1)
    policy_B = np.asarray(sums.policy_B)
    ref_B = np.asarray(sums.ref_B) if method.reference else np.zeros(len(policy_B))
    mean = not method.reference or getattr(options, "reduce", "sum") == "mean"
    if mean:
        policy_B, ref_B = policy_B / tokens_B, ref_B / tokens_B
    return options.beta * (policy_B - ref_B), policy_B


def pair_metrics(config: Config, sums: RowSums, sides: int = 2) -> dict[str, float]:
    """Return the metrics of pairs, of whose `sides` the first one is chosen over the second."""
    rewards_B, logps_B = implicit_rewards(config, sums)
    good_A, bad_A = (rewards_B.reshape(-1, sides)[:, k] for k in (0, 1))
    logps_AG = logps_B.reshape(-1, sides)
    chosen = RowSums(*(np.asarray(part).reshape(-1, sides)[:, 0] for part in sums))  # type: ignore[arg-type]
    order = float(np.mean(good_A > bad_A))
    return {
        "preference_accuracy": order,
        "preference_margin": float(np.mean(good_A - bad_A)),
        "rewards/accuracies": order,
        "rewards/chosen": float(np.mean(good_A)),
        "rewards/rejected": float(np.mean(bad_A)),
        "rewards/margins": float(np.mean(good_A - bad_A)),
        "logps/chosen": float(np.mean(logps_AG[:, 0])),
        "logps/rejected": float(np.mean(logps_AG[:, 1])),
        **likelihood_metrics(chosen),
    }


def label_metrics(config: Config, sums: RowSums, good_B: np.ndarray) -> dict[str, float]:
    """Return the metrics of labelled rows: a mean of each label, and how often a good row has a
    higher reward than a bad one, over all such pairs of rows."""
    rewards_B, logps_B = implicit_rewards(config, sums)
    metrics: dict[str, float] = {}
    for name, chosen_B in (("chosen", good_B), ("rejected", ~good_B)):
        if chosen_B.any():
            metrics[f"rewards/{name}"] = float(np.mean(rewards_B[chosen_B]))
            metrics[f"logps/{name}"] = float(np.mean(logps_B[chosen_B]))
    if good_B.any() and not good_B.all():
        margin = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        metrics |= {"rewards/margins": margin, "preference_margin": margin}
        metrics["preference_accuracy"] = auc(rewards_B, good_B)
    if good_B.any():
        good = RowSums(*(np.asarray(part)[good_B] for part in sums))  # type: ignore[arg-type]
        metrics |= likelihood_metrics(good)
    return metrics


def _text_scores(
    ctx: TrainContext, state: GAPOState, table: RowTable, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return the discriminator's logits of texts, which of them are good, and whether they are
    pairs."""
    columns = table.take(places)
    texts = labelled_texts(columns, 1.0)
    logits_B = score_texts(
        ctx.steps,
        state.discriminator.params,
        ctx.models.disc_tokenizer,
        texts,
        ctx.config.discriminator,
    )
    pairs = all(len(rewards) == 2 for rewards in columns["rewards"])
    return logits_B, np.array([text.target > 0.5 for text in texts]), pairs


def text_metrics(logits_B: np.ndarray, good_B: np.ndarray, pairs: bool) -> dict[str, float]:
    """Return how often a discriminator's logit is on the right side of 0, and how often it puts the
    good text first: of every pair, or of all pairs of differently labelled texts."""
    metrics = {"accuracy": float(np.mean((logits_B > 0) == good_B))}
    if pairs:
        good_A, bad_A = logits_B[::2], logits_B[1::2]
        metrics["preference_accuracy"] = float(np.mean(good_A > bad_A))
        metrics["preference_margin"] = float(np.mean(good_A - bad_A))
    elif good_B.any() and not good_B.all():
        metrics["preference_accuracy"] = auc(logits_B, good_B)
        margin = float(np.mean(logits_B[good_B]) - np.mean(logits_B[~good_B]))
        metrics["preference_margin"] = margin
    return metrics


def write_rows(ctx: TrainContext, metrics: Mapping[str, float], finished: int) -> None:
    """Write one metrics line of the held-out rows; a run that is continued may have it already."""
    step = finished * ctx.updates_per_round
    if not ctx.processes.first or not metrics:
        return
    if any(
        line["phase"] == "eval"
        and line["step"] == step
        and any(k.startswith("eval/") for k in line)
        for line in read_metrics(ctx.workdir)
    ):
        return
    values: dict[str, Any] = {f"eval/{name}": value for name, value in metrics.items()}
    values["time/eval_s"] = ctx.clock.last.get("eval", 0.0)
    ctx.writer.write(step, finished, "eval", values)
