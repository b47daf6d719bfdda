"""The sources of a run's rewards, and what each of them says of sampled responses.

Verifiers and the discriminator belong to the run itself. What is opened here are the others:
reward models and functions.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gapo_jax.config import Config
from gapo_jax.config.reward_sources import Source, parse_sources
from gapo_jax.methods import method_of
from gapo_jax.records import JsonObject
from gapo_jax.rewards.functions import (
    Call,
    FunctionScores,
    RewardFunction,
    TrainerState,
    filled,
)
from gapo_jax.sharding import Placement
from gapo_jax.train.online.reward_models import (
    RewardModelSource,
    check_reward_model,
    load_reward_source,
)
from gapo_jax.train.runtime import Processes, RunStopped
from gapo_jax.types import PromptRow, Rollout

log = logging.getLogger("gapo_jax")
# The columns of a row of our own tasks.
OWN_COLUMNS = ("key", "task", "constraints")


@dataclasses.dataclass(frozen=True)
class RewardSources:
    """The functions and reward models of a run, by the name of their source.

    Attributes:
        functions: their workers, which the first process of a run has.
        models: the networks.
        conversational: whether functions get lists of messages instead of texts, because a prompt
            of the run is a dialogue.
    """

    functions: Mapping[str, RewardFunction] = dataclasses.field(default_factory=dict)
    models: Mapping[str, RewardModelSource] = dataclasses.field(default_factory=dict)
    conversational: bool = False

    def close(self) -> None:
        """End the workers."""
        for function in self.functions.values():
            function.close()


class Sampled(NamedTuple):
    """Responses to be scored: their prompts, texts and token ids."""

    rows: Sequence[PromptRow]
    texts: Sequence[str]
    ids: Sequence[list[int]]


class SourceScores(NamedTuple):
    """What the sources say of a round's responses.

    Attributes:
        names: of the sources, in the order of the configuration.
        scores_BK: float32; NaN where a source says nothing.
        metrics: mean and deviation of each source, and what functions logged.
        extra: the columns that functions gave to `log_extra`.
    """

    names: tuple[str, ...]
    scores_BK: np.ndarray
    metrics: dict[str, float]
    extra: dict[str, list[Any]]


def run_sources(config: Config) -> tuple[Source, ...]:
    """Return the sources of a run."""
    return parse_sources(config.reward.asked)


def start_functions(
    config: Config, processes: Processes, columns: Sequence[str] | None
) -> dict[str, RewardFunction]:
    """Start the functions of a run in the first process; check that its reward models exist.

    Needs no model, so that what is wrong with a source is said before anything slow.

    Raises:
        ValueError, FileNotFoundError: a function cannot be loaded, or needs a column that the rows
            do not have; there is no such model.
    """
    functions: dict[str, RewardFunction] = {}
    if method_of(config).loop == "offline":
        return functions
    try:
        for source in run_sources(config):
            if source.kind == "model":
                check_reward_model(source.target)
            if source.kind == "function" and processes.first:
                function = RewardFunction(source.target, config.reward.timeout_s)
                functions[source.name] = function
                function.start(columns)
    except BaseException:
        for function in functions.values():
            function.close()
        raise
    return functions


def load_reward_models(config: Config, place: Placement) -> dict[str, RewardModelSource]:
    """Return the reward models of a run.

    Raises:
        FileNotFoundError, ValueError: as `load_reward_source`.
    """
    if method_of(config).loop == "offline":
        return {}
    return {
        source.name: load_reward_source(config, source.target, place)
        for source in run_sources(config)
        if source.kind == "model"
    }


def response_ids(rollout: Rollout) -> list[list[int]]:
    """Return the token ids of each response, up to and including its end."""
    mask_BR = np.asarray(rollout.response_mask_BR) > 0
    tokens_BR = np.asarray(rollout.tokens_BT)[:, -mask_BR.shape[1] :]
    return [tokens_R[mask_R].tolist() for tokens_R, mask_R in zip(tokens_BR, mask_BR, strict=True)]


def begin_scoring(
    config: Config,
    sources: RewardSources,
    processes: Processes,
    sampled: Sampled,
    finished: int,
    updates_per_round: int,
) -> Callable[[Mapping[str, np.ndarray]], SourceScores]:
    """Begin to score responses; return a function that takes the scores of `verifier` and
    `discriminator`, as far as they are asked, and returns those of all sources.

    Functions work in the meantime. They run in the first process alone and the others take its
    word: two calls of the same function need not give the same numbers, and all processes must
    learn from the same ones.

    Args:
        config, sources, processes: of the run.
        sampled: the responses.
        finished: rounds before this one.
        updates_per_round: what functions are told of the training.

    Raises (the function that is returned):
        RunStopped: a function failed, and `reward.strict`.
    """
    if sources.functions:
        steps = finished * updates_per_round, config.rounds * updates_per_round
        state = TrainerState(*steps, float(finished))
        call = function_call(sampled, sources.conversational, state)
        for function in sources.functions.values():
            function.submit(call)

    def collect(built_in: Mapping[str, np.ndarray]) -> SourceScores:
        columns = dict(built_in)
        for name, model in sources.models.items():
            columns[name] = model.logits(sampled.rows, sampled.texts)
        answers = [
            (name, dataclasses.asdict(function.collect()))
            for name, function in sources.functions.items()
        ]
        metrics: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}
        for name, answer in processes.gather("rewards", answers)[0]:
            scores = FunctionScores(**answer)
            columns[name] = np.array(filled(scores, config.reward.floor), np.float32)
            metrics |= _function_metrics(config, name, scores, finished)
            extra |= scores.extra
        names = tuple(source.name for source in run_sources(config))
        scores_BK = np.stack([np.asarray(columns[name], np.float32) for name in names], axis=1)
        metrics |= _means(names, scores_BK) | _total_errors(metrics)
        return SourceScores(names, scores_BK, metrics, extra)

    return collect


def _means(names: Sequence[str], scores_BK: np.ndarray) -> dict[str, float]:
    """Return mean and (unbiased) deviation of each source over the rows that it scores."""
    metrics: dict[str, float] = {}
    for name, scores_B in zip(names, scores_BK.T, strict=True):
        scored = scores_B[~np.isnan(scores_B)].astype(np.float64)
        if len(scored):
            metrics[f"reward/{name}/mean"] = float(scored.mean())
            metrics[f"reward/{name}/std"] = float(scored.std(ddof=1)) if len(scored) > 1 else 0.0
    return metrics


def _function_metrics(
    config: Config, name: str, scores: FunctionScores, finished: int
) -> dict[str, float]:
    """Return what a function logged and how many rows it failed for; say why it failed."""
    metrics = {f"reward/{name}/{key}": value for key, value in scores.metrics.items()}
    failed = sum(scores.failed)
    metrics[f"reward/{name}/errors"] = float(failed)
    if scores.reasons:
        what = (
            f"in round {finished + 1} the reward source {name!r} "
            f"{'; '.join(scores.reasons[:3])} ({failed} of {len(scores.failed)} responses without "
            "a score)"
        )
        if config.reward.strict:
            raise RunStopped(f"{what}; config.reward.strict=False goes on with the lowest score")
        log.warning("%s", what)
    return metrics


def function_call(sampled: Sampled, conversational: bool, state: TrainerState) -> Call:
    """Return responses as the arguments of a function, as TRL gives them."""
    prompts: list[Any] = [row.prompt for row in sampled.rows]
    completions: list[Any] = list(sampled.texts)
    if conversational:
        prompts = [
            [dict(turn) for turn in row.turns] or [{"role": "user", "content": row.prompt}]
            for row in sampled.rows
        ]
        completions = [[{"role": "assistant", "content": text}] for text in sampled.texts]
    return Call(prompts, completions, list(sampled.ids), columns_of(sampled.rows), state)


def columns_of(rows: Sequence[PromptRow]) -> dict[str, list[Any]]:
    """Return the columns of rows, one list each; None where a row lacks one."""
    records = [dict(row.columns) or _own_columns(row) for row in rows]
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _own_columns(row: PromptRow) -> JsonObject:
    values = row.key, row.task, [constraint.to_json() for constraint in row.constraints]
    return dict(zip(OWN_COLUMNS, values, strict=True))


def _total_errors(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return `reward/errors`, the sum over the functions; nothing where none is asked."""
    errors = [value for name, value in metrics.items() if name.endswith("/errors")]
    return {"reward/errors": math.fsum(errors)} if errors else {}
