"""The plots of a run's report, drawn from the records of its metrics.jsonl.

Every function takes the records and returns a figure, or None where the run has no such data (an
interrupted run, a method without a discriminator).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Records = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, which stay apart for the colour-blind (red is their vermilion).
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#64748b",
)
_SIZE = (5.6, 4.2)  # inches; one size for all, so that they align in rows
STYLE: Any = {
    "svg.fonttype": "none",
    # With Matplotlib's random salt the same run would give another file each time.
    "svg.hashsalt": "gapo_jax",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}
_PHASE_COLOURS = {
    "rollout": BLUE,
    "experience": "#56b4e9",
    "score": "#a6d4f2",
    "discriminator": ORANGE,
    "policy": GREEN,
    "eval": PURPLE,
    "save": GREY,
}


def series(records: Records, name: str, phase: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (rounds, values) float64 of a metric, in file order; null values are left out."""
    points = [
        (record["round"], record[name])
        for record in records
        if record.get(name) is not None and phase in (None, record["phase"])
    ]
    pairs = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def styled() -> Any:
    """Return the context in which the figures of reports and studies are drawn."""
    return matplotlib.rc_context(STYLE)


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG; the same figure always gives the same text."""
    with styled():
        buffer = io.BytesIO()
        # Without the date, for the same reason.
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def data_uri(figure: Figure) -> str:
    """Return a figure as an SVG data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure)).decode("ascii")


def new_axes(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of the common size and its panels, one below the other, over rounds."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = [figure.add_subplot(panels, 1, index + 1) for index in range(panels)]
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("round")
    return figure, axes


def _lines(
    ax: Axes, records: Records, curves: Sequence[tuple[str, str, str]], phase: str | None = None
) -> bool:
    """Draw the (metric, label, colour) series that exist; return whether there are any."""
    drawn = 0
    for name, label, colour in curves:
        rounds, values = series(records, name, phase)
        if len(rounds):
            ax.plot(rounds, values, color=colour, label=label, marker="o")
            drawn += 1
    if drawn > 1:
        ax.legend(ncols=3, loc="best")
    return drawn > 0


def accuracy(records: Records) -> Figure | None:
    """Constraint accuracy over rounds: held-out with 95% intervals, and on training rollouts."""
    sources = [  # metric, label, colour, shift to the right: equal values stay apart
        ("eval/heldout_topics/{}", "held-out topics", BLUE, 0.0),
        ("eval/heldout_phrasings/{}", "held-out phrasings", PURPLE, 0.12),
        ("eval/heldout_tasks/{}", "held-out tasks", BLUE, 0.0),
        ("eval/given_prompts/{}", "given prompts", ORANGE, 0.24),
        ("eval/{}", "held-out, part", GREEN, 0.0),
        ("constraint/{}", "training rollouts", GREY, 0.0),
    ]
    figure, axes = new_axes(2)
    drawn = False
    measures = ("instruction_strict", "prompt_strict")
    for ax, metric, title in zip(axes, measures, ("per instruction", "per prompt"), strict=True):
        ax.set_title(f"Constraint accuracy, strict, {title}")
        for pattern, label, colour, shift in sources:
            drawn |= _with_interval(ax, records, pattern.format(metric), label, colour, shift)
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    if drawn:
        axes[0].legend(ncols=2, loc="best")
    return figure if drawn else None


def _with_interval(
    ax: Axes, records: Records, name: str, label: str, colour: str, shift: float
) -> bool:
    rounds, values = series(records, name)
    if not len(rounds):
        return False
    low, high = (series(records, f"{name}_{end}")[1] for end in ("low", "high"))
    # Metrics of rollouts have no interval.
    if len(low) == len(high) == len(values):
        # A percentile interval need not contain the value; Matplotlib takes no negative length.
        spread = np.maximum(np.stack([values - low, high - values]), 0)
        ax.errorbar(
            rounds + shift, values, yerr=spread, color=colour, label=label, marker="o", capsize=3
        )
    else:
        ax.plot(rounds, values, color=colour, label=label, marker=".", linewidth=1.2)
    return True


def reward(records: Records) -> Figure | None:
    """The discriminator's raw score of the rollouts and the standardised reward made of it."""
    figure, (score_ax, reward_ax) = new_axes(2)
    score_ax.set_title("Discriminator's score of the rollouts (logit, mean)")
    reward_ax.set_title("Reward after standardising and clipping")
    drawn = _lines(score_ax, records, [("reward/score_mean", "score", ORANGE)])
    drawn |= _lines(
        reward_ax, records, [("reward/mean", "mean", BLUE), ("reward/std", "deviation", GREY)]
    )
    return figure if drawn else None


def divergence(records: Records) -> Figure | None:
    """KL to the reference a token, and the coefficient it is weighted with."""
    figure, (ax,) = new_axes()
    ax.set_title("KL to the reference (nats a token)")
    return figure if _lines(ax, records, [("kl/ref", "KL", RED)]) else None


def discriminator(records: Records) -> Figure | None:
    """Accuracy per class (accepted, rejected, generated) and the gap of the scores."""
    figure, (accuracy_ax, gap_ax) = new_axes(2)
    accuracy_ax.set_title("Discriminator accuracy by class")
    classes = [("accepted", GREEN), ("rejected", RED), ("generated", BLUE)]
    curves = [(f"disc/acc_{name}", name, colour) for name, colour in classes]
    drawn = _lines(accuracy_ax, records, curves)
    accuracy_ax.set_ylim(-0.03, 1.03)
    gap_ax.set_title("Score gap, accepted minus rejected (logits)")
    drawn |= _lines(gap_ax, records, [("disc/score_gap", "gap", ORANGE)])
    return figure if drawn else None


def responses(records: Records) -> Figure | None:
    """Length and health of the sampled text: the first place where a collapse shows."""
    figure, (length_ax, rate_ax) = new_axes(2)
    length_ax.set_title("Response length (tokens)")
    drawn = _lines(length_ax, records, [("response/length", "length", BLUE)])
    rate_ax.set_title("Share of responses: ended, echo of the prompt; repeated 3-grams")
    rates = [
        ("response/eos_rate", "ended", GREEN),
        ("response/echo_rate", "echo", RED),
        ("response/repetition", "repetition", ORANGE),
    ]
    drawn |= _lines(rate_ax, records, rates)
    rate_ax.set_ylim(-0.03, 1.03)
    return figure if drawn else None


def optimisation(records: Records) -> Figure | None:
    """What the policy and the critic learn from: clipping, entropy, explained variance."""
    figure, (policy_ax, entropy_ax, value_ax) = new_axes(3)
    policy_ax.set_title("Policy: share of clipped ratios")
    drawn = _lines(policy_ax, records, [("policy/clip_fraction", "clip fraction", BLUE)])
    entropy_ax.set_title("Policy: entropy (nats a token)")
    drawn |= _lines(entropy_ax, records, [("policy/entropy", "entropy", GREEN)])
    value_ax.set_title("Critic: explained variance")
    drawn |= _lines(value_ax, records, [("value/explained_variance", "explained variance", PURPLE)])
    return figure if drawn else None


def preferences(records: Records) -> Figure | None:
    """What the offline methods learn: order and margin of the sides, likelihoods of both."""
    figure, (order_ax, margin_ax, likelihood_ax) = new_axes(3)
    order_ax.set_title("Sides in the right order (implicit reward)")
    drawn = _lines(order_ax, records, [("pref/accuracy", "accuracy", BLUE)])
    margin_ax.set_title("Margin, chosen minus rejected")
    drawn |= _lines(margin_ax, records, [("pref/margin", "margin", ORANGE)])
    likelihood_ax.set_title("Log-prob of a token")
    likelihoods = [
        ("pref/logprob_chosen", "chosen", GREEN),
        ("pref/logprob_rejected", "rejected", RED),
    ]
    drawn |= _lines(likelihood_ax, records, likelihoods)
    return figure if drawn else None


def types_over_rounds(records: Records) -> Figure | None:
    """Accuracy of each constraint type on the training rollouts, a row a type."""
    prefix = "constraint/type/"
    names = sorted({key for record in records for key in record if key.startswith(prefix)})
    rounds = sorted({record["round"] for record in records if any(n in record for n in names)})
    if not names or not rounds:
        return None
    # A type that no prompt of a round asks for stays blank instead of 0.
    grid = np.full((len(names), len(rounds)), np.nan)
    for row, name in enumerate(names):
        for number, value in zip(*series(records, name), strict=True):
            grid[row, rounds.index(number)] = value
    figure = Figure(figsize=_SIZE, layout="constrained")
    ax = figure.add_subplot()
    image = ax.imshow(grid, aspect="auto", cmap="RdYlGn", vmin=0, vmax=1)
    ax.set_title("Accuracy by constraint type, training rollouts")
    ax.set_yticks(range(len(names)), [name.removeprefix(prefix).split(":")[-1] for name in names])
    shown = range(0, len(rounds), max(1, len(rounds) // 10))
    ax.set_xticks(list(shown), [f"{rounds[index]:.0f}" for index in shown])
    ax.set_xlabel("round")
    ax.grid(False)
    figure.colorbar(image, ax=ax, format=lambda value, _: f"{100 * value:.0f}%")
    return figure


def phase_times(records: Records) -> Figure | None:
    """Seconds of each phase, stacked, a bar a round; one-off phases are in the table."""
    names = sorted(
        {
            key
            for record in records
            for key in record
            if key.startswith("time/") and key[-2:] == "_s"
        },
        key=lambda key: (list(_PHASE_COLOURS) + [_phase(key)]).index(_phase(key)),
    )
    # Once before the first round, and longer than any: its bar would hide all others.
    names = [name for name in names if _phase(name) != "warmup"]
    rounds = sorted({record["round"] for record in records if any(n in record for n in names)})
    if not names or not rounds:
        return None
    figure, (ax,) = new_axes()
    ax.set_title("Time by phase (s)")
    bottom = np.zeros(len(rounds))
    for name in names:
        heights = np.zeros(len(rounds))
        for number, value in zip(*series(records, name), strict=True):
            heights[rounds.index(number)] += value
        colour = _PHASE_COLOURS.get(_phase(name), "#facc15")
        ax.bar(rounds, heights, bottom=bottom, label=_phase(name), color=colour, width=0.75)
        # Phases stack, so the height of a bar is the time of the round.
        bottom += heights
    ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    return figure


def _phase(name: str) -> str:
    return name.removeprefix("time/").removesuffix("_s")


FIGURES: tuple[tuple[str, Callable[[Records], Figure | None]], ...] = (
    ("Constraint accuracy over rounds, strict, with 95% intervals where measured", accuracy),
    ("Discriminator accuracy by class and score gap over rounds", discriminator),
    ("Reward over rounds", reward),
    ("KL to the reference over rounds", divergence),
    ("Response length, end, echo and repetition over rounds", responses),
    ("Clip fraction, entropy and explained variance over rounds", optimisation),
    ("Order, margin and likelihood of preferred and rejected sides over rounds", preferences),
    ("Accuracy by constraint type over rounds", types_over_rounds),
    ("Time by phase and round", phase_times),
)


def all_figures(records: Records) -> list[tuple[str, str]]:
    """Return (description, SVG data URI) of every figure that the records have data for."""
    images = []
    with matplotlib.rc_context(STYLE):
        for description, draw in FIGURES:
            figure = draw(records)
            if figure is not None:
                images.append((description, data_uri(figure)))
    return images
