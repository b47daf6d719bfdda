"""One line a run: all that the tables of a study are drawn from, taken from the run's workdir.

The counts are kept prompt by prompt, so that any two arms can be compared in pairs years later,
when the workdirs are gone.
"""

from __future__ import annotations

import collections
import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special

from gapo_jax import io
from gapo_jax.cli.studies.definition import Run, load_function
from gapo_jax.cli.studies.sessions import read_sessions
from gapo_jax.config import updates_per_round
from gapo_jax.evaluate.accuracy import Verdict, read_verdicts
from gapo_jax.evaluate.exploits import genuine, health_of_verdicts
from gapo_jax.methods import method_of
from gapo_jax.records import Json, JsonObject

# Of metrics.jsonl, round by round, where the method has them.
_ROUND_METRICS = (
    "constraint/instruction_strict", "constraint/prompt_strict", "kl/ref", "response/words",
    "response/echo_rate", "response/repetition", "response/length", "reward/mean", "reward/std",
    "reward/score_mean", "reward/rule_mean", "disc/heldout_pair_order", "disc/heldout_accuracy",
    "disc/acc_accepted", "disc/acc_rejected", "disc/acc_generated", "disc/prompt_auc",
    "policy/loss", "policy/grad_norm",
)  # fmt: skip
# Seconds that runs of one seed share, and what has nothing to do with the method.
_NOT_TRAINING = ("load", "bootstrap", "pairs", "eval", "export", "save")


def read_lines(path: Path) -> list[JsonObject]:
    """Return the lines of a study; none where there is no file. A torn last line is left out."""
    return [line for _, line in io.iter_jsonl(path, drop_torn=True)] if path.exists() else []


def append_line(path: Path, line: Json) -> None:
    """Add a line to the file of a study; half a line that a kill left is taken off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_jsonl(path, [*read_lines(path), line], sync=True)


def unfinished(runs: Sequence[Run], lines: Iterable[Json]) -> list[Run]:
    """Return the runs that have no line yet.

    Raises:
        ValueError: a line is of another configuration under the same name.
    """
    made = {(line["arm"], line["seed"]): line for line in lines}
    for run in runs:
        line = made.get(run.key)
        before = line and {"config": line["config"], "set": line["set"]}
        if before and before != run.recorded():
            raise ValueError(
                f"the line of {run.arm.name}, seed {run.seed}, is of another configuration "
                f"({before}, now {run.recorded()}); give the changed arm another name, or take the "
                "line out"
            )
    return [run for run in runs if run.key not in made]


def make_line(run: Run, workdir: Path, status: str) -> JsonObject:
    """Return the line of a run that has ended.

    Args:
        run: what it was.
        workdir: what it left.
        status: "finished", or "stopped" for one that stopped itself (KL above its limit, a loss
            that is not finite): it has rounds, but was not measured again.
    """
    config = run.config()
    metrics = [line for _, line in io.iter_jsonl(workdir / "metrics.jsonl", drop_torn=True)]
    line: JsonObject = {"study": run.study, "arm": run.arm.name, "seed": run.seed}
    line |= {"label": run.arm.label or run.arm.name, "group": run.arm.group}
    line |= run.recorded() | {"method": config.method, "status": status}
    line |= {"date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    line["sessions"] = read_sessions(workdir)
    line["rounds"] = _rounds(workdir, metrics, run.visible)
    line |= _effort(workdir, metrics, line["rounds"], config.method)
    rounds = max((record["round"] for record in metrics), default=0)
    line["policy_updates"] = (
        updates_per_round(config) * rounds if method_of(config).trains == "policy" else 0
    )
    before = read_verdicts(workdir / "eval_before.jsonl")
    path = workdir / f"eval_after_{config.rounds}.jsonl"
    after = read_verdicts(path) if status == "finished" and path.exists() else {}
    line["sets"] = {name: _counts(before[name], after.get(name)) for name in before}
    line["text_health"] = {
        label: {name: _rounded(health_of_verdicts(rows)) for name, rows in sets.items()}
        for label, sets in (("before", before), ("after", after))
    }
    if status == "stopped":
        line["reason"] = _last_words(workdir / "log.txt")
    return line


def _last_words(log: Path) -> str:
    """Return why a run stopped itself, as it said at its end."""
    words = [
        text for text in log.read_text(errors="replace").splitlines() if "stopped itself" in text
    ]
    return words[-1].partition("stopped itself: ")[2] if words else ""


def _counts(before: Sequence[Verdict], after: Sequence[Verdict] | None) -> JsonObject:
    """Return the counts of a set: lists over its prompts, in the order of the prompts.

    "asked" is the number of constraints of a prompt, times its samples; "held" how many of them
    hold before and after; "whole" the samples all of whose constraints hold; "genuine" the
    constraints that hold in a genuine answer; "types" the sums over prompts of each type, (held
    before, held after, asked).
    """
    sides = {"before": _by_prompt(before)}
    if after is not None:
        sides["after"] = _by_prompt(after)
    first = sides["before"]
    if any(side.keys() != first.keys() for side in sides.values()):
        raise ValueError("a run was measured on other prompts before training than after it")
    text = "\n".join(prompt for _, prompt in first)
    record: JsonObject = {
        "prompts": hashlib.sha256(text.encode()).hexdigest()[:12],
        "samples": max(map(len, first.values())),
        "asked": [sum(len(v.strict) for v in rows) for rows in first.values()],
    }
    for label, side in sides.items():
        record[label] = {
            "held": [sum(sum(v.strict) for v in rows) for rows in side.values()],
            "whole": [sum(all(v.strict) for v in rows) for rows in side.values()],
            "genuine": [
                sum(sum(v.strict) for v in rows if genuine(v.prompt, v.response))
                for rows in side.values()
            ],
        }
    record["types"] = _types(list(sides.values()))
    return record


def _by_prompt(verdicts: Sequence[Verdict]) -> dict[tuple[str, str], list[Verdict]]:
    rows: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        rows.setdefault((verdict.key, verdict.prompt), []).append(verdict)
    return rows


def _types(sides: Sequence[Mapping[Any, Sequence[Verdict]]]) -> dict[str, list[int]]:
    sums: dict[str, list[int]] = {}
    for place, side in enumerate(sides):
        for verdict in (v for rows in side.values() for v in rows):
            for kind, holds in zip(verdict.ids, verdict.strict, strict=True):
                entry = sums.setdefault(kind, [0] * (len(sides) + 1))
                entry[place] += holds
                entry[-1] += place == 0
    return dict(sorted(sums.items()))


def _rounds(workdir: Path, metrics: Sequence[Json], visible: str = "") -> list[JsonObject]:
    """Return what each round was like: metrics, and what its own samples say.

    "visible" is the mean over the samples of the function that `visible` names; without one, of the
    discriminator's probability, or of the rule reward where no discriminator is asked. "true" is
    the share of constraints that hold in the samples, "genuine" the share that holds in a genuine
    answer.
    """
    rounds: dict[int, JsonObject] = collections.defaultdict(dict)
    for record in metrics:
        if not record["round"] or record["phase"] == "eval":
            continue
        named = {name: record[name] for name in _ROUND_METRICS if name in record}
        named |= {
            k: v for k, v in record.items() if k.startswith("reward/") and k.endswith("/mean")
        }
        rounds[record["round"]] |= _rounded(named)
    samples: dict[int, list[JsonObject]] = collections.defaultdict(list)
    path = workdir / "samples.jsonl"
    for _, row in io.iter_jsonl(path, drop_torn=True) if path.exists() else ():
        samples[row["round"]].append(row)
    for number, rows in samples.items():
        rounds[number] |= _of_samples(rows) | {"samples": len(rows)}
        seen = _seen(visible, rows) if visible else _rewarded(rows)
        if seen is not None:
            rounds[number]["visible"] = round(seen, 4)
    return [{"round": number, **rounds[number]} for number in sorted(rounds)]


def _of_samples(rows: Sequence[Json]) -> dict[str, float]:
    asked = max(sum(len(row["verdicts"]) for row in rows), 1)
    held = [sum(row["verdicts"]) for row in rows]
    real = [n for n, row in zip(held, rows) if genuine(row["prompt"], row["response"])]
    return {"true": round(sum(held) / asked, 4), "genuine": round(sum(real) / asked, 4)}


def _rewarded(rows: Sequence[Json]) -> float | None:
    if rows[0]["score"] is not None:
        return float(np.mean(scipy.special.expit([row["score"] for row in rows])))
    rules = [row["rule_reward"] for row in rows if row["rule_reward"] is not None]
    return float(np.mean(rules)) if rules else None


def _seen(visible: str, rows: Sequence[Json]) -> float | None:
    """Return the mean score of the responses by a reward function, over those that it scores."""
    scores = load_function(visible)(
        prompts=[row["prompt"] for row in rows],
        completions=[row["response"] for row in rows],
        constraints=[row["constraints"] for row in rows],
    )
    numbers = [score for score in scores if score is not None]
    return float(np.mean(numbers)) if numbers else None


def _effort(
    workdir: Path,
    metrics: Sequence[Json],
    rounds: Sequence[Json],
    method: str,
) -> JsonObject:
    """Return sampled tokens, seconds of training and of processor, and the run's own phases."""
    path = workdir / "summary.json"
    seconds = io.read_json(path)["time_s"] if path.exists() else {}
    sampled = sum(line.get("response/length", 0) * line.get("samples", 0) for line in rounds)
    processor = [session["processor_s"] for session in read_sessions(workdir)]
    return {
        "sampled_tokens": round(sampled),
        "time_s": _rounded(seconds, 1),
        "training_s": round(sum(v for k, v in seconds.items() if k not in _NOT_TRAINING), 1),
        "processor_s": None if None in processor else round(sum(processor), 1),
    }


def _rounded(values: Mapping[str, float], digits: int = 5) -> dict[str, float]:
    return {
        name: round(float(value), digits) for name, value in values.items() if np.isfinite(value)
    }
