"""Runs that end early, by a signal, by themselves or for bad input; and PPO, whose discriminator is
frozen."""

import contextlib
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import SafetensorError

from gapo_jax.cli.train import CONTINUE
from gapo_jax.config import finalize
from gapo_jax.train import clock, evaluation, main
from gapo_jax.train.discriminator import warmup
from gapo_jax.train.online import loop
from gapo_jax.train.runtime import RunInterrupted
from gapo_jax.train.workdir import finished_summary

SMALL = {
    "data__bootstrap_responses": 48, "data__pairs": 24, "data__pairs_heldout": 4,
    "data__prompts": 16, "discriminator__warmup_epochs": 1, "ppo__critic_epochs": 1,
    "eval__prompts_per_set": 4, "eval__samples_per_prompt": 1, "export": False,
}  # fmt: skip
# What a run makes before its first round; it depends on no method.
MADE = ("bootstrap.jsonl", "pairs.jsonl", "pairs_heldout.jsonl", "eval_before.jsonl")


@pytest.fixture(scope="module")
def ppo(runs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ppo")
    code, _, err = runs.run_here(workdir, method="ppo", rounds=1, **SMALL)
    assert code == 0, err
    return workdir


def test_ppo_leaves_the_discriminator_frozen(runs, ppo):
    assert not [line for line in runs.lines(ppo) if line["phase"] == "discriminator"]
    first, last = runs.states(ppo, 0, 1)
    jax.tree.map(
        np.testing.assert_array_equal, first.discriminator.params, last.discriminator.params
    )
    policies = zip(jax.tree.leaves(first.policy), jax.tree.leaves(last.policy), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in policies)


def test_a_finished_run_started_again_is_left_as_it_is(runs, ppo, tmp_path):
    before = {path: path.read_bytes() for path in ppo.iterdir() if path.is_file()}
    code, out, err = runs.run_here(ppo, method="ppo", rounds=1, **SMALL)
    assert code == 0, err
    assert "wall time" in out and f"report: {ppo / 'report.html'}" in out
    assert {path: path.read_bytes() for path in ppo.iterdir() if path.is_file()} == before
    # More rounds, or an export that it lacks, are still to be done.
    for name in ("config.json", "summary.json", "report.html"):
        shutil.copy(ppo / name, tmp_path)
    for changes in ({"rounds": 2}, {"rounds": 1, "export": True}):
        config = finalize(runs.config(**{"method": "ppo"} | SMALL | changes))
        assert finished_summary(config, tmp_path) == {}


def _poison_round_2(monkeypatch):
    """Make the policy's loss NaN in round 2, by its advantages."""
    update_policy = loop.update_policy

    def poisoned(ctx, state, experience):
        if experience.index == 1:
            rows = experience.rows
            rows = rows.replace(advantages_BR=rows.advantages_BR * np.nan)
            experience = experience._replace(rows=rows)
        return update_policy(ctx, state, experience)

    monkeypatch.setattr(loop, "update_policy", poisoned)


def test_a_run_whose_loss_is_no_number_saves_and_stops_itself(runs, ppo, tmp_path, monkeypatch):
    for name in MADE:
        shutil.copy(ppo / name, tmp_path)
    _poison_round_2(monkeypatch)
    code, _, err = runs.run_here(tmp_path, **SMALL, checkpoint__every_rounds=3)
    assert code == 3
    assert "policy/loss is nan in round 2" in err and "after round 1, is saved" in err
    # Round 1 was not due for a checkpoint, and is saved all the same, as it was at its end.
    first, last = runs.states(tmp_path, 0, 1)
    assert (int(last.round), int(last.policy.step)) == (1, 2)
    assert int(last.discriminator.step) - int(first.discriminator.step) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last.policy.params))
    assert {text["round"] for text in runs.host(tmp_path, 1)["replay"]} == {1}
    # What the policy learned from is on record, also of the round that ended the run by a NaN.
    lines = runs.lines(tmp_path)
    assert any(line["round"] == 2 and line["phase"] == "rollout" for line in lines)
    assert {row["round"] for row in runs.lines(tmp_path, "samples.jsonl")} == {1, 2}


def test_only_good_states_are_saved_and_another_rate_goes_on_from_there(runs, ppo, tmp_path):
    """A rate that blows the weights up, one that leaves the reference, and one that does neither,
    in one workdir."""
    for name in MADE:
        shutil.copy(ppo / name, tmp_path)
    steps = tmp_path / "checkpoints"

    def play(rate, limit, rounds):
        changes = {"ppo__optim__learning_rate": rate, "ppo__kl_limit": limit, "rounds": rounds}
        return runs.run_here(tmp_path, method="ppo", **SMALL, **changes)

    code, _, err = play(1e6, 1e9, 3)
    assert code == 3
    assert "policy's parameters grew" in err and "lower config.ppo.optim.learning_rate" in err
    assert "after round 0, is saved" in err and not (steps / "1").exists()
    code, _, err = play(0.01, 1e-4, 3)
    assert code == 3 and "config.ppo.kl_limit=0.0001" in err
    # What left the reference had been saved by then.
    assert "after round 0, is saved" in err and "goes on from there" in err
    assert {path.name for path in steps.iterdir()} >= {"0", "1.collapsed"}
    assert not (steps / "1").exists()
    code, _, err = play(1e-5, 1e9, 1)
    assert code == 0, err
    assert (steps / "1").exists() and not (tmp_path / "stopped.json").exists()
    rounds = [line["round"] for line in runs.lines(tmp_path) if line["phase"] == "policy"]
    assert rounds == [1]
    code, _, err = play(1e-4, 1e9, 2)  # a run that did not stop itself keeps its rate
    assert code == 1 and "run of another configuration" in err


@pytest.mark.parametrize(
    ("warmup", "rate", "saved"),
    [(0, 1e6, "after round 0, is saved"), (1, 1e30, "nothing is saved")],
)
def test_a_discriminator_that_blows_up_is_named_with_the_rate_of_the_rounds(
    runs, ppo, tmp_path, warmup, rate, saved
):
    """The warm-up ends at that rate."""
    for name in MADE:
        shutil.copy(ppo / name, tmp_path)
    changes = {"discriminator__round_learning_rate": rate, "discriminator__warmup_epochs": warmup}
    code, _, err = runs.run_here(tmp_path, **SMALL | changes)
    assert code == 3
    assert "lower config.discriminator.round_learning_rate" in err.lower() and saved in err


def test_a_warm_up_that_leaves_no_numbers_saves_nothing(runs, ppo, tmp_path):
    for name in MADE:
        shutil.copy(ppo / name, tmp_path)
    rate = {"discriminator__optim__learning_rate": 1e30}
    code, _, err = runs.run_here(tmp_path, method="ppo", **SMALL, **rate)
    assert code == 3
    assert "warm-up; lower config.discriminator.optim.learning_rate" in err
    assert "nothing is saved" in err and "is saved in" not in err
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.fixture
def asked(monkeypatch):
    """A list: signals sent at every batch of the phase with the name that follows them."""
    plan = []

    def tell(name):
        if plan and name.startswith(plan[-1]):
            for number in plan[:-1]:
                signal.raise_signal(number)

    @contextlib.contextmanager
    def counter(total, name):
        with clock.counter(total, name) as advance:
            yield lambda done: (tell(name), advance(done))

    def progress(batches, name):
        for batch in batches:
            tell(name)
            yield batch

    for module in (main, evaluation):
        monkeypatch.setattr(module, "counter", counter)
    monkeypatch.setattr(warmup, "progress", progress)
    return plan


def test_a_signal_ends_every_phase_at_its_next_batch(runs, ppo, tmp_path, monkeypatch, asked):
    """Stopped in each phase in turn, the run is in the end the one that was never stopped; a second
    Ctrl-C ends it at once."""

    def play(*plan):
        asked[:] = plan
        return runs.run_here(tmp_path, method="ppo", rounds=1, **SMALL)

    monkeypatch.setattr(os, "_exit", sys.exit)
    code, _, err = play(signal.SIGINT, signal.SIGINT, "bootstrap")
    assert code == 130 and err.splitlines()[-1].startswith("stopped at once")
    stages = {
        "bootstrap": "bootstrap.jsonl",
        "discriminator": "checkpoints/0",
        "after_1: heldout_topics": "eval_after_1.jsonl",
    }
    for phase, missing in stages.items():
        code, out, err = play(signal.SIGTERM, phase)
        assert code == CONTINUE, err
        assert "stopped by SIGTERM" in out and "continue with: " in out
        assert not (tmp_path / missing).exists() and not list(tmp_path.glob("*.partial"))
    code, _, err = play()
    assert code == 0, err
    assert runs.comparable(tmp_path) == runs.comparable(ppo)
    assert runs.lines(tmp_path, "samples.jsonl") == runs.lines(ppo, "samples.jsonl")
    pairs = (runs.states(folder, 1)[0] for folder in (tmp_path, ppo))
    jax.tree.map(np.testing.assert_array_equal, *(state.policy for state in pairs))


@pytest.mark.parametrize(
    ("body", "wanted"),
    [(None, "writer"), (ValueError("body"), "body"), (RunInterrupted(), "writer")],
)
def test_a_run_closes_its_checkpointer_whatever_its_writer_does(body, wanted):
    closed = []

    def fail():
        raise OSError("writer")

    ctx = SimpleNamespace(
        verifiers=SimpleNamespace(close=lambda: closed.append("verifiers")),
        rewards=SimpleNamespace(close=lambda: closed.append("rewards")),
        writer=SimpleNamespace(close=fail),
        checkpointer=SimpleNamespace(close=lambda: closed.append("checkpointer")),
    )
    with pytest.raises(Exception, match=f"^{wanted}$"), main.closing(ctx):
        if body is not None:
            raise body
    assert closed == ["verifiers", "rewards", "checkpointer"]


def test_an_export_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def fail(*arguments):
        raise SafetensorError("No space left on device")

    for name in ("relative_param_change", "exported_params", "summarise_run"):
        monkeypatch.setattr(main, name, lambda *arguments: {"some": 1})
    monkeypatch.setattr(main, "export", fail)
    ctx = SimpleNamespace(
        config=SimpleNamespace(export=True),
        processes=SimpleNamespace(first=True),
        clock=clock.PhaseClock(),
        workdir=tmp_path,
        rows=None,
        prompts=SimpleNamespace(heldout={}, rewarded=[]),
    )
    with pytest.raises(OSError, match="No space left on device.*export"):
        main.conclude(ctx, None, {}, {})


def test_a_workdir_that_cannot_be_made_is_named_with_the_way_out(runs, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = runs.run_here(tmp_path / "file" / "run")
    assert code == 1
    assert f"error: cannot use {tmp_path / 'file' / 'run'}: Not a directory" in err
    assert "--workdir" in err and "Traceback" not in err


def test_a_misspelt_flag_ends_with_the_nearest_key(runs, tmp_path):
    done = runs.play(tmp_path / "run", "--config.ppo.clip_lo=0.3")
    assert done.returncode != 0
    assert "did you mean 'clip_low'" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"data__max_prompt_tokens": 20}, "config.data.max_prompt_tokens=20"),
        ({"model__generator": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_bad_input_ends_with_what_to_change(runs, tmp_path, change, wanted):
    code, _, err = runs.run_here(tmp_path / "run", **change)
    assert code == 1
    assert "error: " in err and wanted in err
