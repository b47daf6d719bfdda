"""report.html of a run: one file with everything inside, written from the files of the workdir.

It works for unfinished runs too: missing parts are left out, and the page says so. All text that
comes from a model, a prompt or a configuration is escaped.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jinja2

from gapo_jax import io
from gapo_jax.evaluate import plots
from gapo_jax.evaluate.console import GIVEN, levels
from gapo_jax.records import Json, JsonObject

SETS = {
    "development": "development prompts",
    "heldout_topics": "held-out topics",
    "heldout_phrasings": "held-out phrasings",
    "heldout_tasks": "held-out tasks",  # of the user's own data
    "heldout_prompts": "held-out prompts",
    "trip_wires": "trip wires",
    GIVEN: "given prompts",
}
_PACKAGES = ("gapo-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
_SAMPLES_WITHOUT_SUMMARY = 6


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Write `workdir/report.html` from metrics.jsonl, samples.jsonl, summary.json, config.json.

    Any of these files may be missing or, after a kill, end in the middle of a line.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: the workdir does not exist.
        ValueError: a file holds something other than JSON; names file and line.
    """
    path = pathlib.Path(workdir) / "report.html"
    io.write_text(path, render_report(workdir))
    return path


def render_report(workdir: str | pathlib.Path, *, devices: bool = True) -> str:
    """Return the page of `write_report`.

    `devices` puts those of this process on it, and so takes hold of them: not beside a run that
    goes on.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(
            f"report: expected the workdir of a run, found no folder at {workdir}; correct the path"
        )
    records = read_lines(workdir / "metrics.jsonl")
    summary = read_json(workdir / "summary.json")
    config = read_json(workdir / "config.json")
    return (
        environment()
        .get_template("report_template.html")
        .render(
            title=config.get("name") or workdir.name,
            method=config.get("method", ""),
            finished="after" in summary or "heldout" in summary,
            facts=_facts(records, summary),
            accuracy=_accuracy_rows(summary),
            rewards=_reward_rows(summary),
            heldout=_heldout_rows(summary),
            rows=summary.get("rows", {}),
            exported=summary.get("exported_round"),
            types=_type_tables(summary),
            moved=summary.get("relative_change", {}),
            figures=plots.all_figures(records),
            samples=_samples(summary, workdir / "samples.jsonl"),
            times=_shares(summary.get("time_s", {})),
            config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
            environment=_machine(devices),
            export=summary.get("export"),
        )
    )


def environment() -> jinja2.Environment:
    """Return the environment of the templates, with their filters; it escapes all text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gapo_jax.evaluate", "templates"),
        autoescape=True,
        # A misspelt name in the template is an error and no blank on the page.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points, "duration": _duration}
    return environment


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}%"


def _points(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    # The minus sign of typography, as wide as the plus.
    return f"{100 * value:+.1f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def read_json(path: pathlib.Path) -> JsonObject:
    """Return the contents of a JSON file, empty where it is missing."""
    return io.read_json(path) if path.exists() else {}


def read_lines(path: pathlib.Path) -> list[JsonObject]:
    """Return the records of a JSONL file, without a last line that a kill cut off."""
    if not path.exists():
        return []
    return [record for _, record in io.iter_jsonl(path, drop_torn=True)]


def _facts(records: Sequence[Json], summary: Json) -> dict[str, str]:
    """Return the figures in the head of the page."""
    facts = {}
    if records:
        facts["rounds"] = str(max(record["round"] for record in records))
        facts["policy updates"] = str(max(record["step"] for record in records))
    if summary.get("time_s"):
        facts["wall time"] = _duration(sum(summary["time_s"].values()))
    if summary.get("peak_memory_gb") is not None:
        facts["peak memory"] = f"{summary['peak_memory_gb']:.1f} GB"
    for name, value in summary.get("throughput", {}).items():
        if isinstance(value, int | float):
            facts[name.removeprefix("throughput/").replace("_", " ")] = f"{value:,.0f}"
    return facts


def _accuracy_rows(summary: Json) -> list[JsonObject]:
    """Return one row for each held-out set and measure from before training."""
    rows = []
    for name, before in summary.get("before", {}).items():
        for measure, label in levels(name).items():
            if measure not in before:
                continue
            change = summary.get("difference", {}).get(name, {}).get(measure)
            row = {"set": SETS.get(name, name), "measure": label, "before": before[measure]}
            row |= {"after": summary.get("after", {}).get(name, {}).get(measure), "change": change}
            row["verdict"] = _verdict(change)
            rows.append(row)
    return rows


def _reward_rows(summary: Json) -> list[JsonObject]:
    """Return one row for each source whose reward was measured on held-out prompts."""
    measured = summary.get("rewards", {})
    return [
        {
            "source": name,
            "before": before,
            "after": measured["after"][name],
            "change": measured["difference"][name],
            "verdict": _verdict(measured["difference"][name]),
        }
        for name, before in measured.get("before", {}).items()
    ]


def _heldout_rows(summary: Json) -> list[tuple[str, float, float]]:
    """Return (measure, before, after) of the held-out rows of a run that learned from rows."""
    before, after = (summary.get("heldout", {}).get(side, {}) for side in ("before", "after"))
    return [(name, before[name], after[name]) for name in before if name in after]


def _verdict(change: Mapping[str, float] | None) -> str:
    """Return `better` or `worse` if the whole interval lies on one side of zero, else `open`."""
    if change is None:
        return "open"
    # Colour is for what the data decides: an interval that holds zero stays neutral.
    if change["low"] > 0:
        return "better"
    return "worse" if change["high"] < 0 else "open"


def _type_tables(summary: Json) -> list[JsonObject]:
    """Return a table of accuracy by constraint type for each held-out set."""
    tables = []
    for name, before in summary.get("before", {}).items():
        after = summary.get("after", {}).get(name, {}).get("types", {})
        rows = [
            {
                "type": type_id,
                "count": entry.get("count"),
                "before": _type_value(entry),
                "after": _type_value(after[type_id]) if type_id in after else None,
            }
            for type_id, entry in sorted(before.get("types", {}).items())
        ]
        if rows:
            tables.append({"set": SETS.get(name, name), "rows": rows})
    return tables


def _type_value(entry: Json) -> float:
    return entry["strict"]["value"] if "strict" in entry else entry["value"]


def _samples(summary: Json, path: pathlib.Path) -> list[JsonObject]:
    """Return prompts with their texts: before and after, or the newest of an unfinished run."""
    if summary.get("samples"):
        return [
            {
                "prompt": sample["prompt"],
                "texts": [
                    {
                        "label": side,
                        "text": sample[side],
                        "marks": _marks(sample["constraints"], sample.get(f"verdicts_{side}")),
                    }
                    for side in ("before", "after")
                    if side in sample
                ],
            }
            for sample in summary["samples"]
        ]
    return [
        {
            "prompt": sample["prompt"],
            "texts": [
                {
                    "label": f"round {sample.get('round', '?')}",
                    "text": sample["response"],
                    "marks": _marks(sample.get("constraints", []), sample.get("verdicts")),
                }
            ],
        }
        for sample in read_lines(path)[-_SAMPLES_WITHOUT_SUMMARY:]
    ]


def _marks(constraints: Sequence[Any], verdicts: Sequence[bool] | None) -> list[tuple[str, Any]]:
    """Return (name, verdict) of each constraint; constraints are texts or {"id", "kwargs"}."""
    # summary.json has ids, samples.jsonl whole constraints.
    names = [item["id"] if isinstance(item, Mapping) else str(item) for item in constraints]
    held = [None] * len(names) if verdicts is None else list(verdicts)
    return list(zip(names, held, strict=False))


def _shares(times: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return (phase, seconds, share), longest first."""
    # A run that was killed at once has no times.
    total = sum(times.values()) or 1.0
    ordered = sorted(times.items(), key=lambda item: -item[1])
    return [(name, seconds, seconds / total) for name, seconds in ordered]


def _machine(devices: bool) -> dict[str, str]:
    """Return what the run ran on."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if devices:
        versions["devices"] = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    versions["processor cores"] = str(os.cpu_count())
    return versions
