"""Runs that end early, by themselves or for bad input; and PPO, the frozen judge."""

import shutil

import numpy as np
import pytest

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
    code, _, err = runs.play_here(workdir, method="ppo", rounds=1, **SMALL)
    assert code == 0, err
    return workdir


def test_ppo_leaves_the_discriminator_frozen(runs, ppo):
    import jax

    assert not [line for line in runs.lines(ppo) if line["phase"] == "discriminator"]
    first, last = runs.states(ppo, 0, 1)
    jax.tree.map(
        np.testing.assert_array_equal, first.discriminator.params, last.discriminator.params
    )
    policies = zip(jax.tree.leaves(first.policy), jax.tree.leaves(last.policy), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in policies)


def test_a_collapsing_run_saves_and_stops_itself(runs, ppo, tmp_path):
    for name in MADE:
        shutil.copy(ppo / name, tmp_path)
    changes = {"ppo__kl_limit": 0.0001, "checkpoint__every_rounds": 3}
    changes["ppo__optim__learning_rate"] = 0.01
    code, _, err = runs.play_here(tmp_path, **SMALL, **changes)
    assert code == 3
    assert "KL to the reference" in err
    assert "kl_limit" in err
    # Round 1 was not due for a checkpoint, and is saved all the same.
    assert (tmp_path / "checkpoints" / "1").is_dir()


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
    code, _, err = runs.play_here(tmp_path / "run", **change)
    assert code == 1
    assert "error: " in err and wanted in err
