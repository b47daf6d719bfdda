"""The tiny configuration from start to end: what it leaves, what it learned on, how it resumes."""

import itertools
import json
import signal
import subprocess

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module")
def straight(runs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    done = runs.play(workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done


def test_a_run_leaves_what_the_design_promises(runs, straight):
    workdir, done = straight
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html"):
        assert (workdir / name).stat().st_size > 0, name
    assert list((workdir / "tensorboard").iterdir())
    assert (workdir / "export" / "model.safetensors").exists()
    lines = runs.lines(workdir)
    assert {line["phase"] for line in lines} == {
        "warmup", "rollout", "discriminator", "policy", "eval", "save",
    }  # fmt: skip
    # Before, during and after.
    assert {line["round"] for line in lines if line["phase"] == "eval"} == {0, 1, 2, 3}
    names = set().union(*lines)
    wanted = """reward/mean reward/std kl/ref policy/loss policy/clip_fraction policy/entropy
        value/loss value/explained_variance disc/loss disc/acc_accepted disc/acc_rejected
        disc/acc_generated disc/score_gap disc/generated_fraction constraint/instruction_strict
        constraint/prompt_strict response/length response/eos_rate response/echo_rate
        response/repetition time/rollout_s time/policy_s throughput/real_tokens_per_s
        throughput/padded_tokens_per_s compile/count rollout/logprob_gap device/wait policy/padding
        disc/padding"""
    assert not set(wanted.split()) - names
    for text in ("before", "after", "held-out", "report:", "exported"):
        assert text in done.stdout


def test_all_three_networks_learn_in_every_round(runs, straight):
    # The official release never trains its reward model after the warm-up (defect 18).
    workdir, _ = straight
    for old, new in itertools.pairwise(runs.states(workdir, 0, 1, 2, 3)):
        for name in ("policy", "critic", "discriminator"):
            a, b = getattr(old, name), getattr(new, name)
            leaves = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
            assert any((np.asarray(x) != np.asarray(y)).any() for x, y in leaves), name
            assert int(b.step) > int(a.step), name
    summary = json.loads((workdir / "summary.json").read_text())
    assert all(value > 1e-5 for value in summary["relative_change"].values())
    judged = [line for line in runs.lines(workdir) if line["phase"] == "discriminator"]
    assert len(judged) == 3
    assert all(line["disc/updates"] == 3 for line in judged)
    # 48 texts a round, 60% generated (defect 17: the release adds none).
    assert all(abs(line["disc/generated_fraction"] - 29 / 48) < 1e-6 for line in judged)


def test_generated_text_comes_from_new_prompts_in_every_round(runs, straight):
    # The release takes the same first prompts and resets the seed in every round (defect 26).
    workdir, _ = straight
    rows = runs.lines(workdir, "samples.jsonl")
    prompts = {n: {row["prompt"] for row in rows if row["round"] == n} for n in (1, 2, 3)}
    assert all(len(found) == 4 for found in prompts.values())
    assert not prompts[1] & prompts[2]
    assert len({row["response"] for row in rows}) > 80


def test_scores_in_samples_are_those_of_the_decoded_text(runs, straight):
    """The discriminator read what samples.jsonl shows, re-tokenised (defects 20, 21, 24)."""
    import jax

    from gapo_jax.data.discriminator_text import encode_discriminator

    workdir, _ = straight
    config, models = runs.models(workdir)
    (state,) = runs.states(workdir, 0)
    # Round 1 was scored by the snapshot that the warm-up left.
    rows = [row for row in runs.lines(workdir, "samples.jsonl") if row["round"] == 1]
    tokens, mask, types = encode_discriminator(
        models.disc_tokenizer,
        [row["prompt"] for row in rows],
        [row["response"] for row in rows],
        config.discriminator.max_tokens,
    )
    assert tokens.max() < len(models.disc_tokenizer)
    logits = jax.jit(models.discriminator.apply)(
        {"params": state.discriminator.params}, tokens, mask, types
    )
    np.testing.assert_allclose(logits, [row["score"] for row in rows], atol=1e-4)


def test_nothing_is_compiled_after_the_second_round(runs, straight):
    workdir, _ = straight
    # A program made anew and found in the cache on disk would be no compilation, but as needless.
    counts = {
        line["round"]: line["compile/count"] + line["compile/loaded"]
        for line in runs.lines(workdir)
        if line["phase"] == "save"
    }
    assert counts[2] == counts[3]


def arrays(runs, workdir):
    import jax

    (state,) = runs.states(workdir, 3)
    state = state.replace(key=jax.random.key_data(state.key))
    return jax.tree_util.tree_leaves_with_path(state)


def _killed(runs, workdir, number, phase):
    """Start a run and kill it in round `number`, after the line of `phase`."""
    with subprocess.Popen(
        runs.command(workdir), **runs.options(), stdout=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            if line.startswith(f"round {number:3}") and phase in line:
                process.kill()
                break
    return process.returncode


def test_killed_and_continued_equals_straight_through(runs, straight, tmp_path):
    """SIGKILL in round 3, then the rest: every array bit-equal, every metric equal. That SIGTERM
    ends a run well is tested in test_stops.py and, from outside, in test_two_processes.py."""
    workdir, _ = straight
    victim = tmp_path / "victim"
    # In the middle of round 3, round 2 being saved (or still being written).
    assert _killed(runs, victim, 3, "rollout") == -signal.SIGKILL
    assert not (victim / "summary.json").exists()
    done = runs.play(victim)
    assert done.returncode == 0, done.stderr[-3000:]
    assert runs.comparable(victim) == runs.comparable(workdir)
    assert runs.lines(victim, "samples.jsonl") == runs.lines(workdir, "samples.jsonl")
    for (path, a), (_, b) in zip(arrays(runs, victim), arrays(runs, workdir), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def test_another_configuration_is_refused_by_name(runs, straight):
    workdir, _ = straight
    code, _, err = runs.run_here(workdir, ppo__clip_low=0.3)
    assert code == 1
    assert "ppo.clip_low: 0.2 -> 0.3" in err
    assert "--workdir" in err
