"""The page and the plots of a study, from its lines alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gapo_jax import io
from gapo_jax.cli.studies.definition import Study
from gapo_jax.cli.studies.tables import (
    Row,
    differences_table,
    gain,
    gains_table,
    health_table,
    rows_of,
    sets_of,
    stopped_table,
    title,
    types_table,
)
from gapo_jax.evaluate import plots
from gapo_jax.records import Json

_COLOURS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.RED, plots.PURPLE, plots.GREY)
_MARKS = "osD^vP"


def write_page(study: Study, lines: Sequence[Json], folder: Path) -> list[Path]:
    """Write FOLDER/NAME.md and the plots that the lines have data for; return their paths.

    The same lines give the same files.

    Raises:
        ValueError: there are no lines.
    """
    rows = rows_of(study, lines)
    if not rows:
        raise ValueError(f"study {study.name} has no line yet: nothing to report")
    folder.mkdir(parents=True, exist_ok=True)
    paths, shown = [], []
    for name, draw in (("gains", gains_figure), ("rounds", rounds_figure)):
        figure = draw(rows)
        if figure is not None:
            path = folder / f"{study.name}_{name}.svg"
            io.write_bytes(path, plots.svg(figure))
            paths.append(path)
            shown.append(f"![{name}]({path.name})")
    page = folder / f"{study.name}.md"
    io.write_text(page, "\n\n".join(_sections(study, rows, lines, shown)) + "\n")
    return [page, *paths]


def _sections(
    study: Study, rows: Sequence[Row], lines: Sequence[Json], shown: Sequence[str]
) -> list[str]:
    commits = sorted({str(s["commit"])[:12] + (" and changes" if s["dirty"] else "")
                      for line in lines for s in line["sessions"]})  # fmt: skip
    machines = sorted({f"{s['machine']['cpu']}, {s['cores']} of {s['machine']['cores']} cores"
                       for line in lines for s in line["sessions"]})  # fmt: skip
    parts = [
        f"# {study.name}",
        study.about.strip(),
        f"Drawn by `scripts/study.py --report` from [{study.name}.jsonl]({study.name}.jsonl), one "
        f"line a run: {len(lines)} runs. Code: {', '.join(commits)}. Machines: "
        f"{'; '.join(machines)}.",
        "Points of constraint accuracy, strict, per instruction, after training minus before; in "
        "brackets 95% intervals of a bootstrap over seeds and prompts together (over prompts alone "
        "where there is one seed).",
        *shown,
        "## Gains",
        gains_table(rows),
    ]
    if table := differences_table(rows, study.reference):
        parts += ["## Differences", "Paired by seed and prompt.", table]
    if table := differences_table(rows, study.reference, "genuine"):
        parts += ["The same, counting constraints that hold in a genuine answer.", table]
    parts += [
        "Text health: before → after training, means over seeds; shares in percent, the genuine "
        "gain in points.",
    ]
    for name in sets_of(rows):
        parts += [f"## Text health: {title(name)}", health_table(rows, name)]
    for name in sets_of(rows):
        parts += [f"## By constraint type: {title(name)}", types_table(rows, name)]
    if table := stopped_table(rows):
        parts += ["## Stopped", "Runs that stopped themselves; they have no gains.", table]
    return [part for part in parts if part]


def gains_figure(rows: Sequence[Row]) -> Figure | None:
    """Draw the gain of each arm with its interval, one mark a set; None without finished runs."""
    rows = [row for row in rows if row.lines]
    if not rows:
        return None
    sets = sets_of(rows)
    with plots.styled():
        figure = Figure(figsize=(7.0, 1.2 + 0.42 * len(rows)), layout="constrained")
        ax = figure.add_subplot()
        for index, name in enumerate(sets):
            gains = [gain(row.lines, name) for row in rows]
            value, low, high = (
                100 * np.array([x[k] for x in gains]) for k in ("value", "low", "high")
            )
            at = np.arange(len(rows)) + 0.22 * (index - (len(sets) - 1) / 2)
            ax.errorbar(
                value, at, xerr=[value - low, high - value], fmt=_MARKS[index % len(_MARKS)],
                color=_COLOURS[index % len(_COLOURS)], label=title(name), linewidth=1.4,
            )  # fmt: skip
        ax.axvline(0, color=plots.GREY, linewidth=0.8)
        ax.set_yticks(range(len(rows)), [f"{row.label} ({len(row.lines)})" for row in rows])
        ax.invert_yaxis()
        ax.set_xlabel("points gained, with 95% intervals; in brackets the number of seeds")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def rounds_figure(rows: Sequence[Row]) -> Figure | None:
    """Draw the reward that training sees against what holds in genuine answers, round by round, a
    panel an arm, means over seeds; None where no method sampled."""
    rows = [
        row for row in rows if any("visible" in x for line in row.lines for x in line["rounds"])
    ]
    if not rows:
        return None
    columns = min(3, len(rows))
    height = -(-len(rows) // columns)
    with plots.styled():
        figure = Figure(figsize=(2.9 * columns, 2.2 * height + 0.4), layout="constrained")
        for index, row in enumerate(rows):
            ax = figure.add_subplot(height, columns, index + 1)
            for key, label, colour in (
                ("visible", "reward seen", plots.ORANGE),
                ("true", "constraints that hold", plots.BLUE),
                ("genuine", "in a genuine answer", plots.GREEN),
            ):
                at, mean = _mean_over_seeds(row, key)
                ax.plot(at, mean, color=colour, label=label)
            ax.set_title(row.label)
        figure.axes[0].legend(loc="best")
    return figure


def _mean_over_seeds(row: Row, key: str) -> tuple[list[int], list[float]]:
    values: dict[int, list[float]] = {}
    for line in row.lines:
        for entry in line["rounds"]:
            if key in entry:
                values.setdefault(entry["round"], []).append(entry[key])
    return sorted(values), [float(np.mean(values[at])) for at in sorted(values)]
