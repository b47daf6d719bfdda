"""Measure what each switch does: train a few seeds with it and without it, print a table.

    gapo-jax ablate --config configs/ablation_tiny.py --seeds 5 --out runs/ablation
    gapo-jax ablate --config configs/gapo_quickstart.py --switch verified_labels ema \
        --seeds 3 --set rounds=6 --out runs/ablation_smollm2
    gapo-jax ablate --config configs/ablation_tiny.py:ppo --out runs/ablation_ppo \
        --set model.discriminator=runs/reward_model/export --switch preferential_responses \
        --set-switched model.discriminator=runs/response_model/export

The baseline is the given experiment with the paper's labels, prompts, shares and rewards (PAPER).
Every run is a run of `train` with a few keys changed (SWITCHES). A run whose summary.json exists is
read instead of repeated, so a table can be built up over days, one switch at a time.

The numbers come from the verifiers: the held-out constraint accuracy (strict, topics) after
training and, for online methods, the share of constraints that hold in the samples of the last
third of the rounds. The effect of a switch is its mean difference to the baseline, paired by seed
(same prompts, starting networks and sampling keys), with a 95% t interval over seeds. The table
goes to the console and, with every single number, to OUT/ablation.json.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from gapo_jax import io
from gapo_jax.cli import program, summary
from gapo_jax.cli.experiment import load_config
from gapo_jax.config import Config, change, finalize, lookup
from gapo_jax.records import JsonObject

BASELINE = "baseline"
# Algorithm 1: generated text answers the pairs' prompts, is labelled 0, and is scored after the
# discriminator's update. Table 12: half of the classifier's texts are generated. The authors' code:
# the reward is the logit, clipped at 10.
PAPER: JsonObject = {
    "discriminator.generated_prompts": "pairs",
    "discriminator.label_policy": "paper",
    "discriminator.generated_fraction": 0.5,
    "discriminator.replay_fraction": 0.0,
    "discriminator.score_with": "post",
    "reward.standardise": "none",
    "reward.squash": "none",
    "reward.clip": 10.0,
}
# What each switch changes against the baseline.
SWITCHES: dict[str, JsonObject] = {
    "own_prompts": {"discriminator.generated_prompts": "rollouts"},
    "standardised_rewards": {"reward.standardise": "running", "reward.clip": 4.0},
    "score_before": {"discriminator.score_with": "pre"},
    "verified_labels": {"discriminator.label_policy": "verified"},
    "drop_verified": {"discriminator.label_policy": "drop_verified"},
    "soft_labels": {"discriminator.label_policy": "soft"},
    "replay": {"discriminator.replay_fraction": 0.5},
    "gate": {"discriminator.gate_high": 0.85, "discriminator.gate_low": 0.6},
    "one_sided_smoothing": {"discriminator.positive_label": 0.9},
    "gradient_penalty": {"discriminator.gradient_penalty": 0.1},
    "bradley_terry": {"discriminator.loss": "bradley_terry"},
    "ema": {"discriminator.score_with": "ema"},
    "rloo": {"ppo.advantage": "rloo"},
    "grpo": {"ppo.advantage": "grpo"},
    "reinforce_pp": {"ppo.advantage": "reinforce_pp"},
    "rpo": {"ppo.advantage": "rpo"},
    "rule_mix": {"reward.source": "mix", "reward.squash": "sigmoid"},
    "sft_mix": {"ppo.sft_coef": 0.1},
    "curriculum": {"data.curriculum": 0.5},
    "frozen_discriminator": {"discriminator.updates_per_round": 0},
    "preferential_responses": {"data.preference": "responses"},
}
METRICS = ("instruction_strict", "prompt_strict", "samples_strict")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(program("ablate"), description=summary(__doc__))
    parser.add_argument("--config", required=True, help="an experiment: FILE.py or FILE.py:PRESET")
    parser.add_argument("--out", required=True, type=Path, help="folder of all runs")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--switch", nargs="*", choices=sorted(SWITCHES), help="default: all")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys changed in every run"
    )
    parser.add_argument(
        "--set-switched",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="keys changed in every run but the baseline's",
    )
    return parser.parse_args(argv)


def parse_value(text: str, like: Any) -> Any:
    """Return a value of the type of `like` from the command line."""
    if isinstance(like, bool):
        if text not in ("True", "False"):
            raise ValueError(f"wanted True or False, got {text!r}")
        return text == "True"
    return tuple(text.split(",")) if isinstance(like, tuple) else type(like)(text)


def experiment(args: argparse.Namespace, name: str, seed: int) -> Config:
    """Return the configuration of one (switch, seed)."""
    config = change(load_config(args.config), PAPER)
    own = [] if name == BASELINE else args.set_switched
    pairs = (item.split("=", 1) for item in (*args.set, *own))
    change(config, {key: parse_value(text, lookup(config, key)) for key, text in pairs})
    return change(config, SWITCHES.get(name, {}) | {"seed": seed, "export": False})


def measure(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Run one (switch, seed), or read what an earlier call left; return its metrics."""
    from gapo_jax.train.lock import locked
    from gapo_jax.train.main import execute
    from gapo_jax.train.runtime import stop_requests

    workdir = args.out / name / f"seed{seed}"
    if not (workdir / "summary.json").is_file():
        with stop_requests() as stop, locked(workdir):
            execute(finalize(experiment(args, name, seed)), workdir, stop)
    return measured(workdir)


def measured(workdir: Path) -> dict[str, float]:
    """Return the METRICS of a finished run; `samples_strict` only of online methods."""
    summary = io.read_json(workdir / "summary.json")
    heldout = next(iter(summary["after"].values()))
    metrics = {name: heldout[name]["value"] for name in METRICS if name in heldout}
    lines = [line for _, line in io.iter_jsonl(workdir / "metrics.jsonl")]
    rates = [x["constraint/instruction_strict"] for x in lines if x["phase"] == "rollout"]
    if rates:
        metrics["samples_strict"] = float(np.mean(rates[-(-2 * len(rates) // 3) :]))
    return metrics


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return (mean, half width of the 95% t interval); the width is infinite for one value."""
    if len(values) < 2:
        return float(np.mean(values)), math.inf
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return the effects as a Markdown table, in percentage points."""
    metrics = [m for m in METRICS if all(m in run for runs in results.values() for run in runs)]
    lines = ["| switch | " + " | ".join(f"{m}, %" for m in metrics) + " | seeds |"]
    lines.append("|---" * (len(metrics) + 2) + "|")
    for name, runs in results.items():
        cells = []
        for metric in metrics:
            values = [run[metric] for run in runs]
            if name != BASELINE:
                values = [v - b[metric] for v, b in zip(values, results[BASELINE], strict=True)]
            mean, half = (100 * number for number in interval(values))
            sign = "" if name == BASELINE else "+"
            cells.append(f"{mean:{sign}.1f} ± {half:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs, then print and write the table."""
    args = parse(argv)
    names = [BASELINE, *(args.switch or SWITCHES)]
    # Seed by seed: if the runs are cut short, there is a complete table of fewer seeds.
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(args.first, args.first + args.seeds):
        for name in names:
            results[name].append(measure(args, name, seed))
        args.out.mkdir(parents=True, exist_ok=True)
        given = {"config": args.config, "set": args.set, "set_switched": args.set_switched}
        record = given | {"results": results}
        io.write_json(args.out / "ablation.json", record)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
