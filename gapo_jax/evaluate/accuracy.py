"""Constraint accuracy by the verifiers, with bootstrap intervals over prompts.

The four figures of IFEval (arXiv 2311.07911, section 3): share of prompts all of whose
constraints hold (prompt level) and share of constraints that hold (instruction level), each
strict and loose. The discriminator has no say here: it is the adversary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gapo_jax.constraints.verifier_pool import VerifierPool, question
from gapo_jax.evaluate.text_health import text_health as text_health
from gapo_jax.types import PromptRow

METRICS = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
_CHUNK = 200  # resamples drawn at a time, so that memory stays flat


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the verifiers say about one response; one entry a constraint in the four tuples."""

    key: str
    prompt: str
    response: str
    ids: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def verify(
    rows: Sequence[PromptRow], responses: Sequence[str], pool: VerifierPool | None = None
) -> list[Verdict]:
    """Check responses against the constraints of their prompts, by the processes of a `pool`.

    Raises:
        ValueError: when the lengths differ; for an unknown instruction id or arguments that do
            not fit, with the row (counted from 1) and its key.
    """
    if len(rows) != len(responses):
        raise ValueError(f"got {len(rows)} prompts and {len(responses)} responses")
    asked = [
        question(response, row.constraints, row.prompt)
        for row, response in zip(rows, responses, strict=True)
    ]
    verdicts = []
    for row, one, found in zip(rows, asked, (pool or VerifierPool()).ask(asked)(), strict=True):
        if found.error is not None:
            number = len(verdicts) + 1
            raise ValueError(f"row {number} (key {row.key!r}): {found.error}") from found.error
        verdicts.append(
            Verdict(row.key, row.prompt, one.response, one.ids, found.strict, found.loose)
        )
    return verdicts


def _check_some(verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        raise ValueError("nothing to summarise: got no verdicts")


def _units(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Group the samples of one prompt: they are not independent, so they are drawn together."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.key, verdict.prompt), []).append(verdict)
    return list(groups.values())


def category(type_id: str) -> str:
    """Return the category of an instruction id: `keywords` for `keywords:existence`."""
    return type_id.split(":")[0]


def _groups(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """Return what is counted apart: ("types", id) and ("categories", name), each sorted."""
    ids = {name for verdict in verdicts for name in verdict.ids}
    found = [("types", name) for name in sorted(ids)]
    return found + [("categories", name) for name in sorted({category(name) for name in ids})]


def _counts(units: Sequence[Sequence[Verdict]], groups: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return sums per unit: float64 [unit, metric, 2], the last axis (held, of how many).

    Metrics are METRICS, then strict and loose of each group (`_groups`).
    """
    column = {group: index for index, group in enumerate(groups)}
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


def _resampled(sums: Sequence[np.ndarray], seed: int, resamples: int) -> list[np.ndarray]:
    """Return rates [resample, metric] for each array of sums, with the same draws of units."""
    rng = np.random.default_rng(seed)
    units = sums[0].shape[0]
    rates: list[list[np.ndarray]] = [[] for _ in sums]
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = rng.multinomial(units, np.full(units, 1 / units), size=size)
        for found, array in zip(rates, sums, strict=True):
            totals = np.einsum("su,umc->smc", weights, array, optimize=True)
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(totals[..., 0] / totals[..., 1])
    return [np.concatenate(found) for found in rates]


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    draws = draws[np.isfinite(draws)]  # a rare type may be absent from a resample
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (value, value)
    return {"value": float(value), "low": float(low), "high": float(high)}


def summarise(verdicts: Sequence[Verdict], seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """Summarise verdicts: accuracies with 95% percentile bootstrap intervals over prompts.

    Samples of the same prompt are drawn together. The result depends on the arguments alone.

    Returns:
        {metric: {"value", "low", "high"}} for the four METRICS; "types": {id: {"strict": {...},
        "loose": {...}, "count"}}; "categories" the same by the part of the id before the colon;
        "prompts", "responses", "instructions", "empty_responses".
    """
    _check_some(verdicts)
    units = _units(verdicts)
    groups = _groups(verdicts)
    sums = _counts(units, groups)
    total = sums.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = total[:, 0] / total[:, 1]
    (draws,) = _resampled([sums], seed, resamples)
    result: dict[str, Any] = {
        name: _interval(rate[i], draws[:, i]) for i, name in enumerate(METRICS)
    }
    result |= {"types": {}, "categories": {}}
    for index, (family, name) in enumerate(groups):
        at = len(METRICS) + 2 * index
        result[family][name] = {
            "strict": _interval(rate[at], draws[:, at]),
            "loose": _interval(rate[at + 1], draws[:, at + 1]),
            "count": int(total[at, 1]),
        }
    result["prompts"] = len(units)
    result["responses"] = len(verdicts)
    result["instructions"] = int(total[2, 1])
    result["empty_responses"] = sum(not verdict.response.strip() for verdict in verdicts)
    return result


def satisfied(verdicts: Sequence[Verdict]) -> dict[int, list[int]]:
    """Return {constraints asked: responses that satisfy 0, 1, ... all of them}, strict."""
    found: dict[int, list[int]] = {}
    for verdict in verdicts:
        size = len(verdict.ids)
        found.setdefault(size, [0] * (size + 1))[sum(verdict.strict)] += 1
    return dict(sorted(found.items()))


def paired_difference(
    before: Sequence[Verdict], after: Sequence[Verdict], seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """Return after - before on the same prompts: 95% intervals by a bootstrap over prompts.

    Both sides are resampled with the same draws, so what the prompts share cancels out.

    Returns:
        {metric: {"value", "low", "high"}}; "types": {id: {"strict": {...}, "loose": {...}}} and
        "categories" likewise.

    Raises:
        ValueError: when the two sides do not hold the same prompts.
    """
    _check_some(before)
    _check_some(after)
    sides = [{(u[0].key, u[0].prompt): u for u in _units(side)} for side in (before, after)]
    if sides[0].keys() != sides[1].keys():
        odd = sorted(sides[0].keys() ^ sides[1].keys())
        raise ValueError(
            f"a paired difference needs the same prompts on both sides: {len(odd)} stand on one "
            f"side only (first key: {odd[0][0]!r})"
        )
    groups = _groups((*before, *after))
    sums = [_counts([side[key] for key in sides[0]], groups) for side in sides]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = [array.sum(axis=0)[:, 0] / array.sum(axis=0)[:, 1] for array in sums]
    draws = _resampled(sums, seed, resamples)
    change, spread = values[1] - values[0], draws[1] - draws[0]
    result: dict[str, Any] = {
        name: _interval(change[i], spread[:, i]) for i, name in enumerate(METRICS)
    }
    result |= {"types": {}, "categories": {}}
    for index, (family, name) in enumerate(groups):
        at = len(METRICS) + 2 * index
        result[family][name] = {
            "strict": _interval(change[at], spread[:, at]),
            "loose": _interval(change[at + 1], spread[:, at + 1]),
        }
    return result


def format_table(summary: dict[str, Any]) -> str:
    """Return a summary as a plain text table, in percent: the four figures, then each category
    and each type."""

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
