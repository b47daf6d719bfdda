"""What a run measures on its held-out prompts, and when it measures them again."""

from __future__ import annotations

import types

from gapo_jax import io
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.train import evaluation
from gapo_jax.train.clock import PhaseClock
from gapo_jax.types import PromptRow


def _verdict(prompt: str, response: str) -> Verdict:
    return Verdict("k", prompt, response, (), (), ())


def test_prompts_of_an_earlier_version_are_measured_again(tmp_path, monkeypatch, caplog):
    """Its random streams were others, so the run that it began has other held-out prompts now."""
    asked = []

    def sampled(config, models, weights, rows, **options):
        asked.append([row.prompt for row in rows])
        return [_verdict(row.prompt, "anew") for row in rows]

    monkeypatch.setattr(evaluation, "evaluate_policy", sampled)
    ctx = types.SimpleNamespace(
        workdir=tmp_path,
        prompts=types.SimpleNamespace(
            heldout={"heldout_topics": [PromptRow("k", "Say tea.", "Say tea.", ())]}, width=8
        ),
        config=types.SimpleNamespace(eval=types.SimpleNamespace(samples_per_prompt=1)),
        clock=PhaseClock(), models=None, verifiers=None, stop=None, processes=None,
    )  # fmt: skip
    path = tmp_path / "eval_before.jsonl"
    record = {"set": "heldout_topics", **_verdict("Say coffee.", "old").to_json()}
    io.write_jsonl(path, [record])
    (verdict,) = evaluation.measure(ctx, dict, "before")["heldout_topics"]  # pyright: ignore
    assert (verdict.prompt, verdict.response) == ("Say tea.", "anew")
    assert asked == [["Say tea."]] and "measuring again" in caplog.text
    # What is of these prompts is read back.
    (verdict,) = evaluation.measure(ctx, dict, "before")["heldout_topics"]  # pyright: ignore
    assert verdict.response == "anew" and len(asked) == 1
