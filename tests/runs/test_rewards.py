"""Tiny runs on prompts of one's own, rewarded by what one has: functions, constraints, models."""

import json

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FUNCTIONS = """
import re

def short(completions, log_metric, **kwargs):
    log_metric("longest", max(len(completion[0]["content"]) for completion in completions))
    return [-len(completion[0]["content"]) / 10 for completion in completions]

def answered(prompts, completions, answer, trainer_state, log_extra, **kwargs):
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    log_extra("wanted", answer)
    texts = [completion[0]["content"] for completion in completions]
    if trainer_state.global_step == 0 and "a" in "".join(texts):
        raise RuntimeError("the first update")
    return [None if a is None else float(a in text) for text, a in zip(texts, answer)]
"""
SMALL = {
    "file": "configs/grpo.py:tiny", "reward__standardise": "none", "ppo__prompts_per_round": 2,
    "ppo__minibatch_size": 16, "sampling__batch_size": 16, "export": False,
    "checkpoint__keep": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "my_rewards.py").write_text(FUNCTIONS)
    rows = [
        {"prompt": [{"role": "user", "content": f"Name a letter: {i}."}], "answer": "a"}
        for i in range(6)
    ]
    rows += [{"prompt": [{"role": "user", "content": "Sing."}]}]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    truth = [{"instruction_id": ["punctuation:no_comma"], "kwargs": [None]}]
    rows = [
        {"messages": [{"role": "user", "content": f"Write {i}. No commas."}],
         "ground_truth": str(truth), "dataset": "ifeval"}
        for i in range(8)
    ]  # fmt: skip
    (folder / "rlvr.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def _no_pairs(workdir):
    return not [path for path in workdir.iterdir() if "pairs" in path.name or "boot" in path.name]


def test_grpo_with_two_functions_on_dialogues_and_continued_it_is_the_same_run(runs, folder):
    """Messages, a column, None, errors; mean rewards before, during and after."""
    changes = SMALL | {
        "data__source": str(folder / "prompts.jsonl"),
        "data__heldout_fraction": 0.3,
        "reward__sources": tuple(f"{folder}/my_rewards.py:{f}" for f in ("short", "answered")),
        "reward__weights": (1, 2),
        "reward__combine": "normalise_then_sum",
        "eval__every_rounds": 1,
    }
    whole, parts = folder / "whole", folder / "parts"
    code, out, err = runs.run_here(whole, rounds=2, **changes)
    assert code == 0, err
    assert "held-out mean reward" in out and "answered" in out
    for rounds in (1, 2):
        assert runs.run_here(parts, rounds=rounds, **changes)[0] == 0
    during = [line for line in runs.comparable(whole) if "eval/reward/short" in line]
    assert len(during) == 1
    # The run of one round measured its end, which is no end of the other.
    same = [line for line in runs.comparable(parts) if line["phase"] in ("rollout", "policy")]
    assert same == [
        line for line in runs.comparable(whole) if line["phase"] in ("rollout", "policy")
    ]
    assert (whole / "samples.jsonl").read_bytes() == (parts / "samples.jsonl").read_bytes()
    assert _no_pairs(whole)

    first, second = (line for line in runs.lines(whole) if line["phase"] == "rollout")
    assert first["reward/errors"] == first["reward/answered/errors"] > 0
    assert second["reward/errors"] == 0 == second["reward/short/errors"]
    scores = [sample["scores"]["short"] for sample in runs.lines(whole, "samples.jsonl")[:16]]
    assert first["reward/short/longest"] == pytest.approx(-10 * min(scores))
    for name in ("short", "answered"):
        assert {f"reward/{name}/mean", f"reward/{name}/std"} <= second.keys()
    samples = runs.lines(whole, "samples.jsonl")
    assert all(sample["extra"]["wanted"] in ("a", "None") for sample in samples[16:])
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["rewards"]["before"]["short"]["value"] < 0 and not summary["before"]
    assert "Mean reward on held-out prompts" in (whole / "report.html").read_text()


def test_grpo_on_rlvr_prompts_and_a_reward_model_below_the_verdicts(runs, folder):
    changes = SMALL | {
        "data__source": str(folder / "rlvr.jsonl"),
        "reward__sources": ("verifier", "model:random:tiny"),
        "reward__combine": "stratified",
        # Nobody asks it, so it need not be there.
        "model__discriminator": "no-such-model",
    }
    workdir = folder / "rlvr"
    code, out, err = runs.run_here(workdir, rounds=1, **changes)
    assert code == 0, err
    assert "held-out constraint accuracy" in out and _no_pairs(workdir)
    (line,) = (line for line in runs.lines(workdir) if line["phase"] == "rollout")
    assert {"reward/verifier/mean", "reward/random_tiny/std", "reward/rule_mean"} <= line.keys()
    assert line["constraint/type/punctuation:no_comma"] == line["reward/verifier/mean"]
    samples = runs.lines(workdir, "samples.jsonl")
    assert {sample["scores"]["verifier"] for sample in samples} <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward__sources": ("my_rewards:short",)}, "No module named 'my_rewards'"),
        ({"reward__sources": ("{}/my_rewards.py:shrt",)}, "has no function 'shrt'"),
        ({"reward__sources": ("{}/my_rewards.py:answered",)}, "needs the column 'answer'"),
        ({"reward__sources": ("verifyer",)}, "did you mean 'verifier'"),
        ({"reward__sources": ("verifier", "model:{}/none")}, "none"),
        ({"reward__sources": ("verifier",), "reward__weights": (1.0, 2.0)}, "one number for each"),
    ],
)
def test_a_wrong_source_is_one_line_before_a_weight_is_read(
    runs, folder, tmp_path, monkeypatch, changes, message
):
    from gapo_jax.config import finalize
    from gapo_jax.train import main

    monkeypatch.setattr(main, "build_models", lambda config: pytest.fail("a weight is read"))
    changes = SMALL | changes
    changes["reward__sources"] = tuple(s.format(folder) for s in changes["reward__sources"])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        config = finalize(runs.config(**changes))
        main.open_run(config, tmp_path, main.StopRequest())
    assert "\n" not in str(caught.value)


def test_strict_stops_the_run_at_the_first_error(runs, folder):
    changes = SMALL | {
        "data__source": str(folder / "prompts.jsonl"),
        "reward__sources": (f"{folder}/my_rewards.py:answered",),
        "reward__strict": True,
    }
    code, _, err = runs.run_here(folder / "strict", rounds=1, **changes)
    assert code == 3 and "failed with RuntimeError: the first update" in err
