"""Two rounds of every estimator, number by number, against a plain version of the papers' text."""

import json

import jax
import numpy as np
import plain_run
import pytest
import recorded_run

from gapo_jax.train.metrics import read_metrics

GRPO = {"method": "grpo", "reward__source": "verifier", "reward__standardise": "none"}
CASES = {
    "gae": {
        "method": "gapo",
        "ppo__train_samples": 2,
        "ppo__minibatch_size": 4,
        "ppo__accumulate": 2,
        "ppo__critic_epochs": 3,
        "ppo__gamma": 0.9,
        "ppo__lam": 0.8,
        "ppo__value_clip": 0.05,
        "ppo__sft_coef": 0.3,
        "ppo__sft_rows": 2,
    },
    "rloo": {
        "method": "gapo",
        "ppo__advantage": "rloo",
        "ppo__length_buckets": 3,
        "reward__source": "mix",
        "reward__squash": "sigmoid",
        "reward__verifier_weight": 0.3,
        "reward__standardise": "batch",
        "discriminator__score_with": "post",
        "discriminator__label_policy": "soft",
        "discriminator__balance_classes": True,
    },
    "grpo": {**GRPO, "grpo__mask_truncated": True},
    "dr_grpo": {**GRPO, "grpo__variant": "dr_grpo", "reward__source": "discriminator"},
    "dapo": {**GRPO, "grpo__variant": "dapo", "grpo__mask_truncated": True},
    "gspo": {**GRPO, "grpo__variant": "gspo", "ppo__clip_low": 3e-3, "ppo__clip_high": 4e-3},
    # What no other case has on: all of it at once.
    "everything": {
        "method": "gapo",
        "model__critic": "reference",
        "data__curriculum": 0.5,
        "data__curriculum_start": 0.5,
        "discriminator__generated_prompts": "pairs",
        "discriminator__gradient_penalty": 0.2,
        "discriminator__gate_low": 0.9,
        "ppo__train_samples": 2,
        "ppo__minibatch_size": 4,
        "ppo__length_buckets": 2,
        "ppo__sft_coef": 0.3,
        "ppo__sft_rows": 2,
        "ppo__aggregation": "sequence",
        "reward__source": "mix",
        "reward__squash": "sigmoid",
    },
    "bradley_terry": {
        "method": "gapo",
        "ppo__advantage": "rloo",
        "discriminator__loss": "bradley_terry",
        "discriminator__positive_label": 1.0,
        "discriminator__score_with": "post",
    },
    "reinforce_pp": {
        "method": "reinforce_pp",
        "ppo__gamma": 0.8,
        "ppo__aggregation": "sequence",
        "reward__source": "verifier",
        "reward__standardise": "group",
    },
    "reinforce_pp_group_baseline": {
        "method": "gapo",
        "ppo__advantage": "reinforce_pp",
        "ppo__group_baseline": True,
        "discriminator__score_with": "ema",
        "discriminator__ema_decay": 0.75,
        "discriminator__label_policy": "paper",
    },
    "rpo": {
        "method": "rpo_online",
        "reward__source": "verifier",
        "rpo__beta": 0.3,
        "rpo__eta": 2.0,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_every_number_of_two_rounds_is_that_of_the_plain_version(name, tmp_path, monkeypatch):
    """Which row under which prompt gets which score, reward, advantage, target, weight, rate."""
    config = recorded_run.make_config(**CASES[name])
    record = recorded_run.play(config, tmp_path, monkeypatch)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    plain_run.follow(record, read_metrics(tmp_path), list(map(json.loads, lines)))


def test_dropout_is_on_in_updates_with_new_masks_each_and_off_in_scoring(tmp_path, monkeypatch):
    """The loss of an update is another one than without dropout, and another one at each update."""
    found = {}
    for dropout in (0.0, 0.3):
        config = recorded_run.make_config(
            method="gapo",
            ppo__advantage="rloo",
            discriminator__dropout=dropout,
            discriminator__accumulate=1,
            # The network stands still, so that the masks alone set the losses apart.
            discriminator__optim__learning_rate=0.0,
            discriminator__round_learning_rate=0.0,
            discriminator__warmup_epochs=1,
            # Below this accuracy a round's batches are learned from twice.
            discriminator__gate_low=0.999,
        )
        workdir = tmp_path / str(dropout)
        record = recorded_run.play(config, workdir, monkeypatch)
        losses = {}
        for name, fields in record.events:
            if name == "disc_update":
                losses.setdefault(fields["batch"].tokens_BT.tobytes(), []).append(
                    float(fields["metrics"]["disc/loss"])
                )
        lines = (workdir / "samples.jsonl").read_text().splitlines()[:16]
        scores = [json.loads(line)["score"] for line in lines]
        found[dropout] = losses, scores
    (plain, scores), (dropped, with_dropout) = found[0.0], found[0.3]
    assert scores == pytest.approx(with_dropout, abs=1e-6)
    twice = [batch for batch in plain if len(plain[batch]) == 2]
    assert len(twice) >= 2
    for batch in twice:
        first, second = dropped[batch]
        assert plain[batch][0] == pytest.approx(plain[batch][1], abs=1e-6)
        assert len({round(x, 3) for x in (first, second, plain[batch][0])}) == 3


def test_keys_are_a_function_of_seed_round_and_row(tmp_path, monkeypatch):
    """The same seed draws the same keys, in every round others; another seed shares none."""
    keys = []
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        config = recorded_run.make_config(**CASES["reinforce_pp"], seed=seed)
        record = recorded_run.play(config, tmp_path / name, monkeypatch)
        rows = [row for event, fields in record.events if event == "sample"
                for row in fields["rows"]]  # fmt: skip
        keys.append([row["key"] for row in rows])
    assert keys[0] == keys[1] and not set(keys[0]) & set(keys[2])


def test_a_run_that_was_killed_in_its_second_round_does_what_it_would_have_done(
    tmp_path, monkeypatch
):
    """Statistics, replay, average, moments, schedules and KL coefficient come back from the disk:
    every call of the sampler and every update of the second round is the same, bit for bit."""
    config = recorded_run.make_config(**CASES["gae"] | {"discriminator__score_with": "ema"})
    straight = recorded_run.play(config, tmp_path / "straight", monkeypatch)
    killed, folder = tmp_path / "killed", tmp_path / "checkpoints"
    # Two calls of the sampler a round; the second one of the second round does not come.
    first = recorded_run.play(config, killed, monkeypatch, folder, killed_at=3)
    assert first.state is None
    second = recorded_run.play(config, killed, monkeypatch, folder)
    events = straight.events[-len(second.events) :]
    assert [name for name, _ in second.events].count("sample") == 2
    for (name, wanted), (other, found) in zip(events, second.events, strict=True):
        assert name == other
        jax.tree.map(np.testing.assert_array_equal, wanted, found)
    assert second.state.replay == straight.state.replay
    states = (state.replace(key=jax.random.key_data(state.key), last_saved=None)
              for state in (straight.state, second.state))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *states)
    drop = ("time", "throughput/", "compile/", "device/")
    lines = [
        [{k: v for k, v in line.items() if not k.startswith(drop)} for line in read_metrics(folder)]
        for folder in (tmp_path / "straight", killed)
    ]
    assert lines[0] == lines[1]
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("straight", "killed")]
    assert samples[0] == samples[1]
