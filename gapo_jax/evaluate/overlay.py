"""One page for several runs: how their configurations differ, and their curves over each other."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import matplotlib

from gapo_jax import config as configuration
from gapo_jax.evaluate import plots
from gapo_jax.evaluate.report import environment, read_json, read_lines
from gapo_jax.records import Json

# What is laid over each other: title, and the names under which methods write it, the first that a
# run has.
CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Held-out accuracy, per prompt", ("eval/heldout_topics/prompt_strict", "eval/prompt_strict")),
    ("Accuracy of training rollouts, per prompt", ("constraint/prompt_strict",)),
    ("Reward, mean", ("reward/mean",)),
    ("KL to the reference", ("kl/ref",)),
    ("Discriminator's score gap", ("disc/score_gap",)),
    ("Preference accuracy", ("pref/accuracy",)),
    ("Response length", ("response/length",)),
    ("Loss of the policy", ("policy/loss", "sft/loss")),
    ("Real tokens a second", ("throughput/real_tokens_per_s",)),
)
_COLOURS = (plots.BLUE, plots.RED, plots.GREEN, plots.PURPLE, plots.ORANGE, plots.GREY, "#56b4e9")
# So that runs can be told apart without colours too.
_LINES, _MARKERS = ("-", "--", "-.", ":"), "os^Dv"


def render_overlay(workdirs: Sequence[str | os.PathLike[str]]) -> str:
    """Return the page of several workdirs, finished or not.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: a file holds something other than JSON; names file and line.
    """
    folders = [pathlib.Path(path) for path in workdirs]
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"report: expected the workdir of a run, found no folder at {folder}; correct the "
                "path"
            )
    records = [read_lines(folder / "metrics.jsonl") for folder in folders]
    configs = [read_json(folder / "config.json") for folder in folders]
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    runs = [
        {
            "label": label,
            "method": config.get("method", ""),
            "rounds": max((line["round"] for line in lines), default=0),
            "finished": (folder / "summary.json").is_file(),
            "differences": configuration.differences(configs[0], config),
        }
        for folder, label, lines, config in zip(folders, labels, records, configs)
    ]
    template = environment().get_template("overlay_template.html")
    return template.render(runs=runs, figures=figures(labels, records))


def figures(labels: Sequence[str], records: Sequence[Sequence[Json]]) -> list[tuple[str, str]]:
    """Return (description, SVG data URI) of every curve that a run has data for."""
    images = []
    with matplotlib.rc_context(plots.STYLE):
        for title, names in CURVES:
            figure, (ax,) = plots.new_axes()
            ax.set_title(title)
            drawn = 0
            for index, (label, lines) in enumerate(zip(labels, records)):
                given = [plots.series(lines, name) for name in names]
                rounds, values = next((pair for pair in given if len(pair[0])), given[0])
                if not len(rounds):
                    continue
                drawn += 1
                ax.plot(
                    rounds, values, label=label, color=_COLOURS[index % len(_COLOURS)],
                    linestyle=_LINES[index % len(_LINES)], marker=_MARKERS[index % len(_MARKERS)],
                )  # fmt: skip
            if drawn:
                ax.legend(loc="best")
                images.append((f"{title}, over the rounds of {drawn} runs", plots.data_uri(figure)))
    return images
