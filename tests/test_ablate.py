"""`gapo-jax ablate`: its switches are valid, its values typed, its table right."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from by_path import ROOT

from gapo_jax.cli import ablate
from gapo_jax.config import Config, finalize, identity


@pytest.mark.parametrize("name", sorted(ablate.SWITCHES))
def test_every_switch_makes_another_valid_run(name):
    path = str(ROOT / "configs" / "ablation_tiny.py")
    plain = ablate.change(ablate.load_config(path), ablate.PAPER)
    changed = ablate.change(ablate.load_config(path), ablate.PAPER | ablate.SWITCHES[name])
    assert identity(finalize(changed)) != identity(finalize(plain))


def test_the_baseline_is_the_papers_in_all_that_can_be_set():
    """Algorithm 1, table 12 and the reward of the authors' code (docs/algorithm.md)."""
    args = ablate.parse(["--config", str(ROOT / "configs" / "ablation_tiny.py"), "--out", "runs"])
    config = finalize(ablate.experiment(args, ablate.BASELINE, 0))
    disc, reward = config.discriminator, config.reward
    assert (disc.label_policy, disc.generated_prompts, disc.score_with) == (
        "paper",
        "pairs",
        "post",
    )
    assert (disc.generated_fraction, disc.replay_fraction) == (0.5, 0.0)
    assert (reward.source, reward.squash, reward.standardise) == ("discriminator", "none", "none")
    assert reward.clip == 10.0


def test_values_from_the_command_line_get_the_type_of_their_field():
    config = Config()
    assert ablate.parse_value("3", config.rounds) == 3
    assert ablate.parse_value("3", config.ppo.kl_coef) == 3.0
    assert ablate.parse_value("False", config.export) is False
    assert ablate.parse_value("no_comma,title", config.data.types) == ("no_comma", "title")
    with pytest.raises(ValueError, match="True or False"):
        ablate.parse_value("yes", config.export)
    with pytest.raises(ValueError, match="clip_low"):
        ablate.change(config, {"ppo.clip_lo": 0.1})


def test_keys_of_switched_runs_do_not_reach_the_baseline():
    path = str(ROOT / "configs" / "ablation_tiny.py:ppo")
    command = ["--config", path, "--out", "runs", "--set", "model.discriminator=a", "rounds=5"]
    args = ablate.parse([*command, "--set-switched", "model.discriminator=b"])
    found = [ablate.experiment(args, x, 3) for x in (ablate.BASELINE, "preferential_responses")]
    assert [(c.model.discriminator, c.data.preference, c.rounds, c.seed) for c in found] == [
        ("a", "prompts", 5, 3),
        ("b", "responses", 5, 3),
    ]


def test_the_samples_of_the_last_third_of_the_rounds_count(tmp_path):
    heldout = {name: {"value": 0.5} for name in ("instruction_strict", "prompt_strict")}
    (tmp_path / "summary.json").write_text(json.dumps({"after": {"heldout_topics": heldout}}))
    lines = [{"phase": "policy"}]
    assert "samples_strict" not in _measured(tmp_path, lines)
    lines += [{"phase": "rollout", "constraint/instruction_strict": x / 10} for x in range(7)]
    assert _measured(tmp_path, lines)["samples_strict"] == pytest.approx(0.55)


def _measured(workdir, lines):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ablate.measured(workdir)


def test_effects_are_paired_by_seed_with_t_intervals():
    runs = {
        "baseline": [{"instruction_strict": x, "prompt_strict": 0.5} for x in (0.1, 0.4, 0.7)],
        "gate": [{"instruction_strict": x, "prompt_strict": 0.5} for x in (0.2, 0.5, 0.9)],
    }
    rows = ablate.table(runs).splitlines()
    # Differences .1, .1, .2: mean 13.3, deviation 5.77, times t(.975, 2) = 4.303 / sqrt(3).
    assert rows[3] == "| gate | +13.3 ± 14.3 | +0.0 ± 0.0 | 3 |"
    assert rows[2].startswith("| baseline | 40.0 ± 74.5 |")
    mean, half = ablate.interval([0.2])
    assert mean == 0.2 and math.isinf(half)
    values = np.random.default_rng(0).normal(size=5)
    mean, half = ablate.interval(list(values))
    assert half == pytest.approx(2.7764 * values.std(ddof=1) / math.sqrt(5), rel=1e-4)
