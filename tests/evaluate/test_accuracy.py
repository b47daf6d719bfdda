"""Accuracy by rules: hand counts, intervals against theory and a slow plain bootstrap, files."""

import json

import numpy as np
import pytest

from gapo_jax.evaluate import accuracy
from gapo_jax.evaluate.accuracy import METRICS, Verdict
from gapo_jax.evaluate.ifeval_files import write_results
from gapo_jax.types import Constraint, PromptRow

NO_COMMA = Constraint("punctuation:no_comma", {})
TITLE = Constraint("detectable_format:title", {})
LONG = Constraint("length_constraints:number_words", {"relation": "at least", "num_words": 3})


def _row(key, *constraints):
    return PromptRow(key, f"Do it {key}.", "Do it.", constraints)


def _verdict(key, strict, loose=None, ids=None):
    ids = ids or tuple(f"type:{i}" for i in range(len(strict)))
    return Verdict(key, "p" + key, "r", tuple(ids), tuple(strict), tuple(loose or strict))


def test_verify_and_summarise_by_hand():
    rows = [_row("a", NO_COMMA, TITLE), _row("b", NO_COMMA), _row("c", LONG, NO_COMMA)]
    replies = ["Sure, here it is:\n<<Tea>> is warm", "no commas here", "too short"]
    verdicts = accuracy.verify(rows, replies)
    assert [v.strict for v in verdicts] == [(False, True), (True,), (False, True)]
    assert [v.loose for v in verdicts] == [(True, True), (True,), (False, True)]
    summary = accuracy.summarise(verdicts, resamples=50)
    values = {name: summary[name]["value"] for name in METRICS}
    assert values == {
        "prompt_strict": pytest.approx(1 / 3),
        "prompt_loose": pytest.approx(2 / 3),
        "instruction_strict": pytest.approx(3 / 5),
        "instruction_loose": pytest.approx(4 / 5),
    }
    entry = summary["types"]["punctuation:no_comma"]
    assert entry["count"] == 3 and entry["strict"]["value"] == pytest.approx(2 / 3)
    assert (summary["prompts"], summary["responses"], summary["instructions"]) == (3, 3, 5)
    table = accuracy.format_table(summary)
    assert "prompt_strict" in table and "33.3" in table and "punctuation:no_comma" in table
    assert accuracy.satisfied(verdicts) == {1: [0, 1], 2: [0, 2, 0]}


def test_thinking_is_no_part_of_the_answer():
    response = "<think>\nSay it without commas, okay\n</think>\n\nno commas here"
    unfinished = "<think>Say it without"
    verdicts = accuracy.verify([_row("a", NO_COMMA), _row("b", NO_COMMA)], [response, unfinished])
    assert [v.strict for v in verdicts] == [(True,), (False,)]
    assert verdicts[0].response == response  # result files hold the response as it was given
    assert accuracy.summarise(verdicts, resamples=20)["empty_responses"] == 1
    health = accuracy.text_health(["Say it without commas, okay"] * 2, [response, unfinished])
    assert health["response/echo_rate"] == 0 and health["response/words"] == 1.5
    assert health["response/empty_rate"] == 0.5


def test_an_empty_response_satisfies_nothing():
    (verdict,) = accuracy.verify([_row("a", NO_COMMA)], [""])
    assert verdict.strict == verdict.loose == (False,)
    assert accuracy.summarise([verdict], resamples=20)["empty_responses"] == 1


def test_interval_agrees_with_theory_and_with_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    held = rng.random(400) < 0.3
    verdicts = [_verdict(str(i), [bool(h)]) for i, h in enumerate(held)]
    found = accuracy.summarise(verdicts, seed=1)["prompt_strict"]
    share = held.mean()
    half = 1.96 * np.sqrt(share * (1 - share) / len(held))
    assert found["value"] == pytest.approx(share)
    assert found["low"] == pytest.approx(share - half, abs=0.006)
    assert found["high"] == pytest.approx(share + half, abs=0.006)
    draws = [held[rng.integers(len(held), size=len(held))].mean() for _ in range(2000)]
    np.testing.assert_allclose(
        [found["low"], found["high"]], np.percentile(draws, [2.5, 97.5]), atol=0.008
    )


def test_instruction_rates_are_ratios_of_sums_over_prompts():
    """Prompts with many constraints weigh more; a plain bootstrap of the ratio agrees."""
    rng = np.random.default_rng(1)
    lists = [(rng.random(rng.integers(1, 4)) < 0.6).tolist() for _ in range(150)]
    verdicts = [_verdict(str(i), held) for i, held in enumerate(lists)]
    found = accuracy.summarise(verdicts)["instruction_strict"]
    sums, sizes = np.array([sum(h) for h in lists]), np.array([len(h) for h in lists])
    assert found["value"] == pytest.approx(sums.sum() / sizes.sum())
    picks = rng.integers(len(lists), size=(2000, len(lists)))
    draws = sums[picks].sum(1) / sizes[picks].sum(1)
    np.testing.assert_allclose(
        [found["low"], found["high"]], np.percentile(draws, [2.5, 97.5]), atol=0.012
    )


def test_samples_of_one_prompt_do_not_pass_for_independent_prompts():
    held = np.random.default_rng(2).random(100) < 0.5
    once = [_verdict(str(i), [bool(h)]) for i, h in enumerate(held)]
    found = accuracy.summarise(once)["prompt_strict"]
    again = accuracy.summarise(once * 4)
    assert again["prompts"] == 100 and again["responses"] == 400
    assert again["prompt_strict"] == pytest.approx(found)


def test_few_units_and_few_resamples():
    """A round's metrics take the values alone, with one resample; warnings are errors."""
    verdicts = [_verdict(str(i), [i % 2 == 0]) for i in range(4)]
    for some in (verdicts[:1], verdicts[:2], verdicts):
        for resamples in (1, 2):
            found = accuracy.summarise(some, resamples=resamples)["prompt_strict"]
            assert found["value"] in (0.5, 1) and 0 <= found["low"] <= found["high"] <= 1
    assert accuracy.summarise(verdicts[:1])["prompt_strict"] == {"value": 1, "low": 1, "high": 1}


def test_the_result_depends_on_the_seed_alone():
    verdicts = [_verdict(str(i), [i % 3 == 0, i % 2 == 0]) for i in range(40)]
    assert accuracy.summarise(verdicts, seed=3) == accuracy.summarise(verdicts, seed=3)
    assert accuracy.summarise(verdicts, seed=3) != accuracy.summarise(verdicts, seed=4)


def test_paired_difference_cancels_what_the_prompts_share():
    rng = np.random.default_rng(3)
    before = rng.random(200) < 0.5
    gained = before | (rng.random(200) < 0.2)
    sides = [[_verdict(str(i), [bool(h)]) for i, h in enumerate(side)] for side in (before, gained)]
    same = accuracy.paired_difference(sides[0], sides[0])
    assert same["instruction_strict"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    change = accuracy.paired_difference(*sides)
    found = change["instruction_strict"]
    assert found["value"] == pytest.approx(gained.mean() - before.mean())
    spread = (gained.astype(float) - before).std() / np.sqrt(200)
    assert found["low"] == pytest.approx(found["value"] - 1.96 * spread, abs=0.008)
    assert found["high"] == pytest.approx(found["value"] + 1.96 * spread, abs=0.008)
    assert change["types"]["type:0"]["strict"]["value"] == found["value"]
    # Order does not matter, only the keys do.
    assert accuracy.paired_difference(sides[0], sides[1][::-1])["prompt_strict"] == (
        pytest.approx(change["prompt_strict"])
    )


def test_paired_difference_wants_the_same_prompts():
    one, two = [_verdict("a", [True])], [_verdict("b", [True])]
    with pytest.raises(ValueError, match="same prompts on both sides, got 2"):
        accuracy.paired_difference(one, two)


def test_errors_name_the_row():
    bad = PromptRow("k9", "p", "p", (Constraint("punctuation:no_coma", {}),))
    with pytest.raises(ValueError, match=r"row 2 \(key 'k9'\).*no_comma"):
        accuracy.verify([_row("a", NO_COMMA), bad], ["x", "y"])
    with pytest.raises(ValueError, match="1 prompts and 0 responses"):
        accuracy.verify([_row("a", NO_COMMA)], [])
    with pytest.raises(ValueError, match="no verdicts"):
        accuracy.summarise([])


def test_result_files_have_the_fields_of_the_release(tmp_path):
    verdicts = [_verdict("a", [True, False], [True, True]), _verdict("b", [True])]
    paths = write_results(tmp_path / "out", verdicts)
    assert [path.name for path in paths] == [
        "eval_results_strict.jsonl",
        "eval_results_loose.jsonl",
    ]
    strict, loose = ([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
    assert strict[0] == {
        "follow_all_instructions": False,
        "follow_instruction_list": [True, False],
        "instruction_id_list": ["type:0", "type:1"],
        "prompt": "pa",
        "response": "r",
    }
    assert loose[0]["follow_all_instructions"] is True
    assert len(strict) == len(loose) == 2


def test_text_health_notices_echo_and_repetition():
    prompt = (
        'Describe rain to a child in simple language. End with "Is there anything else to ask?"'
    )
    fine = "Rain is water that falls from clouds. Is there anything else to ask?"
    echo = "Describe rain to a child in simple language. Rain is wet."
    loop = "Rain is wet and cold. Rain is wet and cold. Rain is wet and cold. Rain is wet and cold."
    health = accuracy.text_health([prompt] * 4, [fine, echo, loop, ""])
    assert health["response/echo_rate"] == 0.25
    assert health["response/empty_rate"] == 0.25
    # loop: 20 words, 18 trigrams, 5 of them different
    assert health["response/repetition"] == pytest.approx((1 - 5 / 18) / 4)
    clean = accuracy.text_health([prompt], [fine])
    assert clean["response/echo_rate"] == clean["response/repetition"] == 0
    assert clean["response/distinct2"] == 1 and clean["response/words"] == 13
    assert accuracy.text_health(["Use tea."], ["use TEA"])["response/echo_rate"] == 0
    with pytest.raises(ValueError, match="1 prompts and 0 responses"):
        accuracy.text_health(["a"], [])
