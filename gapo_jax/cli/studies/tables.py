"""The tables of a study, in Markdown, from its lines alone.

All figures are percentage points of constraint accuracy, strict, with 95% intervals of the
bootstrap over seeds and prompts (`evaluate/seeds.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gapo_jax.cli.studies.definition import Study
from gapo_jax.evaluate.report import SETS
from gapo_jax.evaluate.seeds import difference_interval
from gapo_jax.records import Json

Lines = Sequence[Json]
_WIRES = "trip_wires"
_HEALTH = (
    ("echo_rate", "echoes"),
    ("repetition", "repeated 3-grams"),
    ("on_topic", "on topic"),
    ("exploit_rate", "exploits"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """An arm and its finished lines, seed by seed; `stopped` are the lines of runs that stopped
    themselves."""

    name: str
    label: str
    group: str
    lines: Lines
    stopped: Lines


def rows_of(study: Study, lines: Lines) -> list[Row]:
    """Return the arms of a study that have lines, in the order of the study."""
    rows = []
    for arm in study.arms:
        own = sorted((x for x in lines if x["arm"] == arm.name), key=lambda x: x["seed"])
        ended = [line for line in own if line["status"] == "finished"]
        stopped = [line for line in own if line["status"] != "finished"]
        if own:
            rows.append(Row(arm.name, arm.label or arm.name, arm.group, ended, stopped))
    return rows


def sets_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of the sets that were measured, without the trip wires."""
    names = dict.fromkeys(name for row in rows for line in row.lines for name in line["sets"])
    return [name for name in names if name != _WIRES]


def counts(line: Json, name: str, side: str, what: str = "held") -> np.ndarray:
    """Return float64 [prompt, 2]: the number that holds and the number counted.

    `what` is "held", "genuine" (constraints) or "whole" (samples).
    """
    numbers = line["sets"][name]
    asked = numbers["asked"] if what != "whole" else [numbers["samples"]] * len(numbers["asked"])
    return np.array([numbers[side][what], asked], np.float64).T


def gain(lines: Lines, name: str, what: str = "held") -> dict[str, float]:
    """Return after - before of a set over the seeds of some lines, with its interval."""
    before, after = (
        [counts(line, name, side, what) for line in lines] for side in ("before", "after")
    )
    return difference_interval(before, after)


def difference(
    lines: Lines, others: Lines, name: str, what: str = "held"
) -> dict[str, float] | None:
    """Return what `lines` have more than `others` after training, over the seeds of both, paired;
    None where they share no seed.

    Raises:
        ValueError: runs of one seed were measured on different prompts.
    """
    seeds = sorted({line["seed"] for line in lines} & {line["seed"] for line in others})
    if not seeds:
        return None
    sides = [[next(x for x in side if x["seed"] == s) for s in seeds] for side in (others, lines)]
    for first, second in zip(*sides, strict=True):
        if first["sets"][name]["prompts"] != second["sets"][name]["prompts"]:
            raise ValueError(
                f"{first['arm']} and {second['arm']}, seed {first['seed']}, were measured on "
                f"different prompts of {name}: make their `data` and `eval` sections agree"
            )
    first, second = ([counts(x, name, "after", what) for x in side] for side in sides)
    return difference_interval(first, second)


def cell(entry: Mapping[str, float] | None) -> str:
    """Return a value with its interval in points."""
    if entry is None:
        return "–"
    value, low, high = (100 * entry[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _seeds(lines: Lines) -> str:
    return ", ".join(str(line["seed"]) for line in lines) or "none"


def _mean(lines: Lines, value: Callable[[Json], float | None]) -> float | None:
    values = [x for x in map(value, lines) if x is not None]
    return float(np.mean(values)) if values else None


def _number(value: float | None, form: str = ".0f") -> str:
    return "–" if value is None else f"{value:{form}}"


def title(name: str) -> str:
    """Return what tables call a set."""
    return SETS.get(name, name.replace("_", " "))


def gains_table(rows: Sequence[Row]) -> str:
    """Return the gains of each arm on each set, and what they cost."""
    sets = sets_of(rows)
    head = ["arm", "seeds", *map(title, sets), "policy updates", "sampled tokens",
            "minutes of training", "processor minutes"]  # fmt: skip
    body = []
    for row in rows:
        gains = [cell(gain(row.lines, name)) if row.lines else "–" for name in sets]
        both = [*row.lines, *row.stopped]
        body.append([
            row.label, _seeds(row.lines), *gains,
            _number(_mean(both, lambda x: x["policy_updates"])),
            _number(_mean(both, lambda x: x["sampled_tokens"])),
            _number(_mean(both, lambda x: x["training_s"] / 60), ".1f"),
            _number(_mean(both, lambda x: x["processor_s"] and x["processor_s"] / 60), ".1f"),
        ])  # fmt: skip
    return _table(head, body)


def differences_table(rows: Sequence[Row], reference: str, what: str = "held") -> str:
    """Return what each arm has more than the reference, paired by seed and prompt; "" without."""
    base = next((row for row in rows if row.name == reference), None)
    others = [row for row in rows if row.name != reference and row.lines]
    if base is None or not base.lines or not others:
        return ""
    sets = sets_of(rows)
    body = []
    for row in others:
        shared = [line for line in row.lines if line["seed"] in {x["seed"] for x in base.lines}]
        cells = [cell(difference(row.lines, base.lines, name, what)) for name in sets]
        body.append([row.label, _seeds(shared), *cells])
    return _table([f"more than {base.label}", "seeds", *map(title, sets)], body)


def health_table(rows: Sequence[Row], name: str) -> str:
    """Return the text health of each arm on a set, before and after, means over its seeds.

    Shares in percent; the length in words, with its share of the length before; the likelihood in
    nats a token under the frozen start; the gain that counts genuine answers alone, in points.
    """
    head = ["arm", *(label for _, label in _HEALTH), "words", "nats a token under the start",
            "trip wires failed", "genuine gain"]  # fmt: skip
    body = []
    for row in (row for row in rows if row.lines):
        words = _before_after(row, name, "words")
        share = f" ({100 * words[1] / words[0]:.0f}%)" if len(words) == 2 and words[0] else ""
        body.append([
            row.label,
            *(_arrow(_before_after(row, name, key), 100) for key, _ in _HEALTH),
            _arrow(words) + share,
            _arrow(_before_after(row, name, "start_logprob"), 1, ".2f"),
            _arrow(_before_after(row, _WIRES, "exploit_rate"), 100),
            cell(gain(row.lines, name, "genuine")),
        ])  # fmt: skip
    return _table(head, body)


def _before_after(row: Row, name: str, key: str) -> list[float]:
    """Return the means over seeds before and after, as far as they were measured."""
    sides = (
        _mean(row.lines, lambda x, s=s: x["text_health"][s].get(name, {}).get(f"response/{key}"))
        for s in ("before", "after")
    )
    return [value for value in sides if value is not None]


def _arrow(values: Sequence[float], scale: float = 1, form: str = ".1f") -> str:
    return " → ".join(f"{scale * value:{form}}" for value in values) or "–"


def types_table(rows: Sequence[Row], name: str) -> str:
    """Return the accuracy of each constraint type on a set: before -> after, in percent."""
    kinds = sorted({k for row in rows for line in row.lines for k in line["sets"][name]["types"]})
    body = []
    for row in (row for row in rows if row.lines):
        cells = []
        for kind in kinds:
            sums = [line["sets"][name]["types"].get(kind, [0, 0, 0]) for line in row.lines]
            before, after, asked = np.sum(sums, axis=0)
            cells.append(
                f"{100 * before / asked:.0f} → {100 * after / asked:.0f}" if asked else "–"
            )
        body.append([row.label, *cells])
    return _table(["arm", *(kind.split(":")[-1] for kind in kinds)], body)


def stopped_table(rows: Sequence[Row]) -> str:
    """Return the runs that stopped themselves; "" without any."""
    body = [
        [row.label, str(line["seed"]), str(len(line["rounds"])), line.get("reason", "")]
        for row in rows
        for line in row.stopped
    ]
    return _table(["arm", "seed", "rounds", "why"], body) if body else ""
