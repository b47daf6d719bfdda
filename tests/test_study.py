"""`gapo-jax study`: its definitions, its lines, its tables; killed in the middle and continued."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys

import pytest
from by_path import ROOT

from gapo_jax.cli import study as command
from gapo_jax.cli.studies import lines as study_lines
from gapo_jax.cli.studies import runs as study_runs
from gapo_jax.cli.studies import tables
from gapo_jax.cli.studies.definition import (
    Arm,
    Study,
    load_function,
    load_study,
    runs_of,
    sharing_key,
)
from gapo_jax.cli.studies.page import write_page
from gapo_jax.config import change, finalize, from_json, lookup, to_json
from gapo_jax.config.presets import tiny
from gapo_jax.evaluate.accuracy import Verdict

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.py"))
P_S = "detectable_content:postscript"


@pytest.fixture(autouse=True)
def _in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_of_a_shipped_study_is_valid_and_a_command(path):
    study = load_study(path.stem)
    assert study.name == path.stem
    runs = runs_of(study)
    assert len({run.key for run in runs}) == len(runs)
    for run in {run.arm.name: run for run in runs}.values():
        config = run.config()
        flags = run.flags()
        assert flags[0] == "--config" and f"--config.seed={run.seed}" in flags
        for flag in flags[2:]:
            key, _, value = flag.removeprefix("--config.").partition("=")
            wanted = lookup(config, key)
            given = value if isinstance(wanted, str) else ast.literal_eval(value)
            assert given == wanted, flag


def _study(**changes):
    arms = (Arm("a", "configs/sft.py:tiny"), Arm("b", "configs/dpo.py:tiny", seeds=(0, 3)))
    return Study(arms=arms, seeds=(0, 1), name="made", **changes)


def test_runs_come_seed_by_seed_and_patterns_choose():
    runs = runs_of(_study())
    assert [run.key for run in runs] == [("a", 0), ("b", 0), ("a", 1), ("b", 3)]
    assert [run.key for run in runs_of(_study(), ["b"])] == [("b", 0), ("b", 3)]
    assert [run.key for run in runs_of(_study(), ["*/0"])] == [("a", 0), ("b", 0)]
    with pytest.raises(ValueError, match="fits none of the 4 runs"):
        runs_of(_study(), ["c"])


def test_mistakes_in_a_study_are_said_before_anything_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Shipped:.*tiny"):
        load_study("no_such_study")
    text = "from gapo_jax.cli.studies.definition import Arm, Study\n"
    text += (
        "def get_study():\n    return Study(arms=(Arm('a', 'c'), Arm('{}', 'c')), seeds=(0,){})\n"
    )
    for name, more, message in (
        ("a", "", "name of its own"),
        ("b/c", "", "name of its own"),
        ("b", ", reference='x'", "none of its arms"),
    ):
        path = tmp_path / "wrong.py"
        path.write_text(text.format(name, more))
        with pytest.raises(ValueError, match=message):
            load_study(str(path))
    run = runs_of(_study(set={"rounds": -1}))[0]
    with pytest.raises(ValueError, match=r"arm a: .*rounds"):
        run.config()
    run = runs_of(_study(set={"round": 1}))[0]
    with pytest.raises(ValueError, match="rounds"):
        run.config()


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("seed", 1, False),
        ("data.pairs", 9, False),
        ("sampling.temperature", 0.5, False),
        ("eval.development_prompts", 4, False),
        ("data.preference", "responses", True),
        ("method", "dpo", True),
        ("offline.optim.learning_rate", 1.0, True),
        ("rounds", 9, True),
    ],
)
def test_runs_share_what_the_rest_of_their_configuration_cannot_change(key, value, same):
    plain = finalize(tiny("sft"))
    other = finalize(change(from_json(to_json(plain)), {key: value}))
    assert (sharing_key(other) == sharing_key(plain)) == same


def _line(arm, seed, before, after, asked=2, **more):
    """A line whose set has two prompts with `asked` constraints each."""

    def side(held):
        return {"held": held, "whole": [int(x == asked) for x in held], "genuine": held}

    health = {"response/words": 10.0, "response/echo_rate": 0.1, "response/exploit_rate": 0.5}
    record = {"prompts": f"p{seed}", "samples": 1, "asked": [asked] * 2, "before": side(before)}
    record |= {"after": side(after), "types": {P_S: [sum(before), sum(after), 2 * asked]}}
    session = {"commit": "0123456789abcdef", "dirty": False, "cores": 1, "processor_s": 60.0}
    session["machine"] = {"cpu": "a processor", "cores": 2}
    line = {"study": "made", "arm": arm, "seed": seed, "status": "finished", "rounds": []}
    line |= {"sets": {"heldout_topics": record}, "sessions": [session], "processor_s": 60.0}
    line |= {"policy_updates": 30, "sampled_tokens": 1000, "training_s": 120.0}
    line["text_health"] = {
        label: {"heldout_topics": health, "trip_wires": health} for label in ("before", "after")
    }
    return line | more


def test_gains_and_differences_are_those_of_the_counts():
    a = [_line("a", 0, [0, 1], [1, 1]), _line("a", 1, [1, 1], [1, 2])]
    b = [_line("b", 1, [1, 1], [2, 2]), _line("b", 0, [0, 1], [2, 2])]
    assert tables.gain(a, "heldout_topics")["value"] == pytest.approx((0.25 + 0.25) / 2)
    assert tables.gain(a, "heldout_topics", "whole")["value"] == pytest.approx(0.25)
    # Seed 0: 4/4 - 2/4; seed 1: 4/4 - 3/4.
    got = tables.difference(b, a, "heldout_topics")
    assert got is not None and got["value"] == pytest.approx((0.5 + 0.25) / 2)
    assert tables.difference(a[:1], b[:1], "heldout_topics") is None
    b[1]["sets"]["heldout_topics"]["prompts"] = "others"
    with pytest.raises(ValueError, match="different prompts of heldout_topics"):
        tables.difference(b, a, "heldout_topics")


def test_the_page_has_every_arm_with_its_runs_that_stopped(tmp_path):
    lines = [_line("a", 0, [0, 1], [1, 1]), _line("b", 0, [0, 1], [2, 2])]
    stopped = _line("b", 3, [0, 1], [0, 0], status="stopped", reason="KL above its limit")
    lines.append(stopped | {"rounds": [{"round": 1}, {"round": 2}]})
    study = _study(reference="a", about="Which is better?")
    paths = write_page(study, lines, tmp_path)
    text = paths[0].read_text()
    assert "| a | 0 | +25.0 [" in text and "| b | 0 | +75.0 [" in text
    assert "| more than a | seeds | held-out topics |" in text and "| b | 0 | +50.0 [" in text
    assert "| b | 3 | 2 | KL above its limit |" in text and "a processor, 1 of 2 cores" in text
    assert "Which is better?" in text and "0123456789ab" in text
    assert [path.name for path in paths] == ["made.md", "made_gains.svg"]
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_page(study, lines, tmp_path)] == first
    seen = [{"round": i, "visible": i / 4, "true": 0.5, "genuine": 0.4} for i in (1, 2)]
    more = write_page(study, [*lines[:2], _line("a", 1, [0, 0], [1, 1], rounds=seen)], tmp_path)
    assert [path.name for path in more][-1] == "made_rounds.svg"
    with pytest.raises(ValueError, match="no line yet"):
        write_page(study, [], tmp_path)


def test_a_line_of_another_configuration_is_refused():
    runs = runs_of(_study())
    line = {"arm": "a", "seed": 0, **runs[0].recorded()}
    assert [run.key for run in study_lines.unfinished(runs, [line])] == [
        ("b", 0), ("a", 1), ("b", 3)
    ]  # fmt: skip
    changed = line | {"set": line["set"] | {"rounds": 99}}
    with pytest.raises(ValueError, match="another configuration"):
        study_lines.unfinished(runs, [changed])


def test_counts_are_kept_prompt_by_prompt():
    prompt = "Write a short note about ferries. Add a postscript that starts with P.S."

    def verdicts(*rows):
        ids = ("punctuation:no_comma", P_S)
        return [Verdict(key, prompt, text, ids, ok, ok) for key, text, ok in rows]

    good, hollow = "The ferry leaves the harbor at nine.\nP.S. Hello.", "P.S. Ferries."
    before = verdicts(("k1", good, (True, False)), ("k2", hollow, (False, False)))
    after = verdicts(("k1", good, (True, True)), ("k2", hollow, (True, True)))
    got = study_lines._counts(before, after)
    assert got["asked"] == [2, 2] and got["samples"] == 1
    assert got["before"] == {"held": [1, 0], "whole": [0, 0], "genuine": [1, 0]}
    assert got["after"] == {"held": [2, 2], "whole": [1, 1], "genuine": [2, 0]}
    assert got["types"] == {"punctuation:no_comma": [1, 2, 2], P_S: [0, 2, 2]}
    with pytest.raises(ValueError, match="other prompts"):
        study_lines._counts(before, after[:1])


def test_rounds_tell_the_visible_reward_from_the_true_one(tmp_path):
    prompt = "Write a short note about ferries."
    good = {"round": 1, "prompt": prompt, "response": "The ferry leaves the harbor at nine."}
    good |= {"score": math.log(3), "rule_reward": 0.5}
    rows = [good | {"verdicts": [True, False]}]
    rows += [good | {"response": "P.S.", "verdicts": [True], "score": -math.log(3)}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = [
        {"round": 0, "phase": "warmup", "disc/heldout_pair_order": 0.5},
        {"round": 1, "phase": "rollout", "reward/score_mean": 0.9, "reward/mine/mean": 0.7},
        {"round": 1, "phase": "discriminator", "disc/heldout_pair_order": 0.8},
    ]
    (got,) = study_lines._rounds(tmp_path, metrics)
    assert got == {
        "round": 1, "reward/score_mean": 0.9, "reward/mine/mean": 0.7, "samples": 2,
        "disc/heldout_pair_order": 0.8, "true": 0.6667, "genuine": 0.3333, "visible": 0.5,
    }  # fmt: skip
    ruled = [row | {"score": None, "rule_reward": x} for row, x in zip(rows, (1.0, 0.5))]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ruled))
    assert study_lines._rounds(tmp_path, metrics)[0]["visible"] == 0.75
    # A reward function sees the samples of every arm, whatever the arm was rewarded with.
    asked = [{"id": P_S, "kwargs": {"postscript_marker": "P.S."}}]
    rows = [row | {"constraints": asked} for row in rows]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (got,) = study_lines._rounds(
        tmp_path, metrics, "configs/studies/rewards/blind_verifier.py:visible"
    )
    assert got["visible"] == 0.5 and got["reward/score_mean"] == 0.9
    with pytest.raises(ValueError, match="no function unseen"):
        load_function("configs/studies/rewards/blind_verifier.py:unseen")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_function("configs/studies/none.py:visible")


def test_a_run_waits_for_files_that_another_one_makes():
    runs = runs_of(_study())
    keys = {("a", 0): "x", ("b", 0): "x", ("a", 1): "y", ("b", 3): "z"}
    job = study_runs.Job(*[None] * 5, makes="x")  # pyright: ignore[reportArgumentType]
    assert study_runs._next(runs[1:], [job], keys).key == ("a", 1)  # pyright: ignore
    assert study_runs._next(runs[1:2], [job], keys) is None
    there = dataclasses.replace(job, makes="")
    assert study_runs._next(runs[1:], [there], keys).key == ("b", 0)  # pyright: ignore


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_where_it_was(tmp_path, capsys):
    """Two arms and two seeds. The study is told to stop when it starts its third run."""
    arguments = ["--config", "configs/studies/tiny.py", "--out", str(tmp_path / "out")]
    arguments += ["--runs", str(tmp_path / "runs")]
    with subprocess.Popen(
        [sys.executable, "-m", "gapo_jax.cli.study", *arguments],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith("sft/seed1: starting"):
                process.send_signal(signal.SIGTERM)
                break
        said = process.stdout.read()
    assert process.returncode == 75 and "the same command goes on" in said, said
    lines = tmp_path / "out" / "tiny.jsonl"
    first = lines.read_text()
    assert [json.loads(line)["arm"] for line in first.splitlines()] == ["sft", "dpo"]
    page = (tmp_path / "out" / "tiny.md").read_text()
    assert "| SFT | 0 |" in page

    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    assert "tiny: 2 of 4 runs to make" in said and "sft/seed0" not in said
    assert lines.read_text().startswith(first)  # what was there is as it was
    made = {(x["arm"], x["seed"]): x for x in study_lines.read_lines(lines)}
    assert sorted(made) == [("dpo", 0), ("dpo", 1), ("sft", 0), ("sft", 1)]
    for seed in (0, 1):
        sft, dpo = made["sft", seed]["sets"], made["dpo", seed]["sets"]
        assert list(sft) == ["development", "heldout_topics", "heldout_phrasings", "trip_wires"]
        # One first evaluation for both.
        assert all(sft[name]["before"] == dpo[name]["before"] for name in sft)
        assert [x["sessions"][-1]["made_shared"] for x in (made["dpo", seed],)] == [False]
    assert made["dpo", 1]["set"]["dpo.beta"] == 0.2 and made["dpo", 1]["policy_updates"] == 2
    assert all(x["processor_s"] > 0 for x in made.values())
    assert "| DPO | 0, 1 |" in (tmp_path / "out" / "tiny.md").read_text()
    # Nothing is left to do, and the report is drawn from the lines alone.
    assert command.main(arguments) == 0
    elsewhere = [*arguments[:-1], str(tmp_path / "nowhere"), "--report"]
    before = (tmp_path / "out" / "tiny.md").read_bytes()
    assert command.main(elsewhere) == 0
    assert (tmp_path / "out" / "tiny.md").read_bytes() == before
