"""Constraint accuracy by the verifiers, with bootstrap intervals over prompts.

The four figures of IFEval (arXiv 2311.07911, section 3): the share of prompts all of whose
constraints hold (prompt level) and the share of constraints that hold (instruction level), each
strict and loose. The discriminator takes no part: the policy is trained to please it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gapo_jax import io
from gapo_jax.constraints.text import final_answer
from gapo_jax.constraints.verifiers import VerifierPool, make_request
from gapo_jax.evaluate.bootstrap import interval, rates, resampled_rates
from gapo_jax.evaluate.text_health import text_health as text_health
from gapo_jax.records import JsonObject
from gapo_jax.types import PromptRow

METRICS = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdicts on one response; ids, strict and loose have one entry per constraint.

    `start_logprob` is the mean log-probability of its tokens under the frozen start, in nats, where
    it was measured.
    """

    key: str
    prompt: str
    response: str
    ids: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    start_logprob: float | None = None

    def to_json(self) -> JsonObject:
        """Return the verdict as a JSON-ready dictionary, without what was not measured."""
        record = dataclasses.asdict(self)
        if self.start_logprob is None:
            del record["start_logprob"]
        return record


def read_verdicts(path: str | Path) -> dict[str, list[Verdict]]:
    """Return the verdicts in an `eval_*.jsonl` file of a workdir by their held-out set.

    Raises:
        FileNotFoundError, ValueError: as `io.read_jsonl`.
    """
    sets: dict[str, list[Verdict]] = {}
    for record in io.read_jsonl(path):
        name = record.pop("set")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        sets.setdefault(name, []).append(Verdict(**fields))
    return sets


def verify(
    rows: Sequence[PromptRow], responses: Sequence[str], pool: VerifierPool | None = None
) -> list[Verdict]:
    """Verify responses against the constraints of their prompts, on the processes of a `pool`.

    Raises:
        ValueError: the lengths differ; an unknown instruction id or invalid arguments, with the row
            (counted from 1) and its key.
    """
    if len(rows) != len(responses):
        raise ValueError(
            f"expected one response per prompt, got {len(rows)} prompts and {len(responses)}"
            " responses"
        )
    requests = [
        make_request(response, row.constraints, row.prompt)
        for row, response in zip(rows, responses, strict=True)
    ]
    results = (pool or VerifierPool()).submit(requests)()
    verdicts = []
    for row, request, result in zip(rows, requests, results, strict=True):
        if result.error is not None:
            # The first error ends it: rows were checked when they were read, so this is a mistake
            # of the caller and not of the data.
            number = len(verdicts) + 1
            raise ValueError(f"row {number} (key {row.key!r}): {result.error}") from result.error
        verdicts.append(
            Verdict(row.key, row.prompt, request.response, request.ids, result.strict, result.loose)
        )
    return verdicts


def _check_some(verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        raise ValueError("expected verdicts to summarise, got no verdicts")


def _units(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Group the samples of one prompt, which a bootstrap draws together."""
    # By key and text: result files of the release have no key, and keys may repeat across files.
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.key, verdict.prompt), []).append(verdict)
    return list(groups.values())


def category(type_id: str) -> str:
    """Return the category of an instruction id: `keywords` for `keywords:existence`."""
    return type_id.split(":")[0]


def _groups(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """Return the groups with figures of their own: ("types", id), then ("categories", name)."""
    ids = {name for verdict in verdicts for name in verdict.ids}
    # Sorted, so that tables of two runs can be laid side by side.
    of_types = [("types", name) for name in sorted(ids)]
    return of_types + [("categories", name) for name in sorted({category(name) for name in ids})]


def _counts(units: Sequence[Sequence[Verdict]], groups: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return sums per unit: float64 [unit, metric, 2], the last axis (number that holds, counted).

    Metrics are METRICS, then strict and loose of each group (`_groups`).
    """
    column = {group: index for index, group in enumerate(groups)}
    # Sums and not rates of units: instruction-level accuracy is a ratio of sums over prompts of
    # different size, and a mean of ratios would be another figure.
    sums = np.zeros((len(units), len(METRICS) + 2 * len(groups), 2))
    for index, unit in enumerate(units):
        for verdict in unit:
            size = len(verdict.ids)
            sums[index, 0] += all(verdict.strict), 1
            sums[index, 1] += all(verdict.loose), 1
            sums[index, 2] += sum(verdict.strict), size
            sums[index, 3] += sum(verdict.loose), size
            for name, strict, loose in zip(verdict.ids, verdict.strict, verdict.loose):
                for group in (("types", name), ("categories", category(name))):
                    at = len(METRICS) + 2 * column[group]
                    sums[index, at] += strict, 1
                    sums[index, at + 1] += loose, 1
    return sums


def _entries(
    values: np.ndarray, draws: np.ndarray, groups: Sequence[tuple[str, str]]
) -> JsonObject:
    """Return {"value", "low", "high"} of each metric and group; draws are [metric, resample]."""
    entries = [interval(value, row) for value, row in zip(values, draws, strict=True)]
    result: JsonObject = dict(zip(METRICS, entries))
    result |= {"types": {}, "categories": {}}
    for index, (family, name) in enumerate(groups):
        at = len(METRICS) + 2 * index
        result[family][name] = {"strict": entries[at], "loose": entries[at + 1]}
    return result


def summarise(verdicts: Sequence[Verdict], seed: int = 0, resamples: int = 2000) -> JsonObject:
    """Summarise verdicts: accuracies with 95% percentile bootstrap intervals over prompts.

    Samples of the same prompt are drawn together. The result depends on the arguments alone.

    Returns:
        {metric: {"value", "low", "high"}} for the four METRICS; "types": {id: {"strict": {...},
        "loose": {...}, "count"}}; "categories" the same by the part of the id before the colon;
        "prompts", "responses", "instructions", "empty_responses" (without an answer).
    """
    _check_some(verdicts)
    units, groups = _units(verdicts), _groups(verdicts)
    sums = _counts(units, groups)
    total = sums.sum(axis=0)
    result = _entries(rates(total), resampled_rates(sums, seed, resamples), groups)
    for index, (family, name) in enumerate(groups):
        result[family][name]["count"] = int(total[len(METRICS) + 2 * index, 1])
    result["prompts"] = len(units)
    result["responses"] = len(verdicts)
    result["instructions"] = int(total[2, 1])
    result["empty_responses"] = sum(not final_answer(v.response).strip() for v in verdicts)
    return result


def satisfied(verdicts: Sequence[Verdict]) -> dict[int, list[int]]:
    """Return {number of constraints: responses that satisfy 0, 1, ... all of them}, strict."""
    by_size: dict[int, list[int]] = {}
    for verdict in verdicts:
        size = len(verdict.ids)
        by_size.setdefault(size, [0] * (size + 1))[sum(verdict.strict)] += 1
    return dict(sorted(by_size.items()))


def paired_difference(
    before: Sequence[Verdict], after: Sequence[Verdict], seed: int = 0, resamples: int = 2000
) -> JsonObject:
    """Return after - before on the same prompts: 95% intervals by a bootstrap over prompts.

    Both sides are resampled with the same draws, so that the differences between prompts cancel.

    Returns:
        {metric: {"value", "low", "high"}}; "types": {id: {"strict": {...}, "loose": {...}}} and
        "categories" likewise.

    Raises:
        ValueError: the two sides do not hold the same prompts.
    """
    _check_some(before)
    _check_some(after)
    # Paired by prompt and not by position: responses come in any order.
    sides = [{(u[0].key, u[0].prompt): u for u in _units(side)} for side in (before, after)]
    # Leaving the odd ones out in silence would compare other prompts than the reader thinks.
    if sides[0].keys() != sides[1].keys():
        odd = sorted(sides[0].keys() ^ sides[1].keys())
        raise ValueError(
            f"paired difference: expected the same prompts on both sides, got {len(odd)} that are "
            f"on one side only (first key: {odd[0][0]!r}); leave them out"
        )
    groups = _groups((*before, *after))
    # One bootstrap of both sides, so that they share the draws.
    sums = [_counts([side[key] for key in sides[0]], groups) for side in sides]
    both = np.concatenate(sums, axis=1)
    values, draws = rates(both.sum(axis=0)), resampled_rates(both, seed, resamples)
    size = len(values) // 2
    return _entries(values[size:] - values[:size], draws[size:] - draws[:size], groups)


def format_table(summary: JsonObject) -> str:
    """Return a summary as a plain text table in percent: the four figures, categories, types."""

    def line(name: str, strict: dict[str, float], count: str) -> str:
        span = f"[{100 * strict['low']:5.1f}, {100 * strict['high']:5.1f}]"
        return f"{name:<47} {100 * strict['value']:6.1f}  {span}  {count:>6}"

    lines = [f"{'':<47} {'%':>6}  {'95% interval':<14}  {'n':>6}"]
    for name in METRICS:
        count = summary["responses" if name.startswith("prompt") else "instructions"]
        lines.append(line(name, summary[name], str(count)))
    for family, title in (("categories", "category"), ("types", "type")):
        if summary[family]:
            lines.append(f"strict, by {title}")
        for name, entry in summary[family].items():
            lines.append(line(f"  {name}", entry["strict"], str(entry["count"])))
    return "\n".join(lines)
