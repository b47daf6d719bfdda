"""Paired comparison: McNemar against scipy, categories by hand, files read back, resuming."""

import dataclasses
import json

import pytest
from scipy import stats

from gapo_jax.evaluate import accuracy
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.evaluate.compare import compare, format_comparison, mcnemar
from gapo_jax.evaluate.ifeval_files import read_results, write_results
from gapo_jax.evaluate.response_store import ResponseStore, model_mark


@pytest.mark.parametrize(
    "counts", [(0, 0), (1, 0), (3, 3), (0, 9), (12, 4), (200, 260), (1500, 900)]
)
def test_mcnemar_is_the_exact_binomial_test(counts):
    total = sum(counts)
    wanted = stats.binomtest(counts[0], total, 0.5).pvalue if total else 1.0
    assert mcnemar(*counts) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar(*counts[::-1]) == mcnemar(*counts)


def _verdict(number, *held, loose=None, key="k"):
    ids = ("keywords:existence", "keywords:frequency", "startend:quotation")[: len(held)]
    return Verdict(key, f"prompt {number}", f"r{number}", ids, held, loose or held)


def test_a_comparison_by_hand():
    before = [_verdict(0, True), _verdict(1, False, True), _verdict(2, True, True)]
    after = [_verdict(0, False), _verdict(1, True, True, key="x"), _verdict(2, True, True)]
    found = compare(before, [*after, _verdict(3, True)], resamples=50)
    assert (found["prompts"], found["unpaired"]) == (3, 1)
    assert found["prompt_strict"]["value"] == pytest.approx(0)
    assert found["mcnemar"]["strict"] == {
        "before_only": 1, "after_only": 1, "p": 1.0, "left_out": 0,
    }  # fmt: skip
    assert found["categories"]["keywords"]["strict"]["value"] == pytest.approx(0)
    assert found["types"]["keywords:existence"]["strict"]["value"] == pytest.approx(0)
    table = format_comparison(found)
    assert "McNemar, prompts, strict: only before 1, only after 1, p = 1" in table
    assert "1 prompts are in one of the runs only" in table
    twice = compare(before + before, after + after, resamples=20)
    assert twice["mcnemar"] == {}
    with pytest.raises(ValueError, match="no prompt in common"):
        compare(before, [_verdict(9, True)])


def test_mcnemar_takes_the_prompts_with_one_response_on_both_sides():
    before = [_verdict(n, n == 0) for n in range(4)]
    after = [_verdict(n, n > 1) for n in range(4)]
    found = compare([*before, before[3]], [*after, after[0]], resamples=20)
    assert found["mcnemar"]["strict"] == {
        "before_only": 0, "after_only": 1, "p": 1.0, "left_out": 2,
    }  # fmt: skip
    assert "p = 1; 2 prompts with several responses left out" in format_comparison(found)
    assert "left out" not in format_comparison(compare(before, after, resamples=20))


def test_categories_sum_their_types():
    verdicts = [_verdict(0, True, False, True), _verdict(1, True), _verdict(2, False, False)]
    summary = accuracy.summarise(verdicts, resamples=20)
    assert summary["categories"]["keywords"]["count"] == 5
    assert summary["categories"]["keywords"]["strict"]["value"] == pytest.approx(2 / 5)
    assert summary["categories"]["startend"]["strict"]["value"] == 1.0
    text = accuracy.format_table(summary)
    assert "strict, by category" in text and "strict, by type" in text


def test_result_files_are_read_back(tmp_path):
    verdicts = [_verdict(0, True, key=""), _verdict(1, False, True, loose=(True, True), key="")]
    write_results(tmp_path, verdicts)
    assert read_results(tmp_path) == verdicts
    path = tmp_path / "eval_results_loose.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match="hold different rows"):
        read_results(tmp_path)


def test_results_of_other_writers_are_read_or_named(tmp_path):
    verdict = dataclasses.replace(_verdict(0, True, key=""), response="one\u2028two\x85three")
    for path in write_results(tmp_path, [verdict]):  # the release writes such marks as they are
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert read_results(tmp_path) == [verdict]
    for odd, message in (("{torn", "not valid JSON"), ('{"prompt": "p"}', "'response', 'instr")):
        (tmp_path / "eval_results_loose.jsonl").write_text(json.dumps(record) + "\n" + odd + "\n")
        with pytest.raises(ValueError, match=rf"eval_results_loose.jsonl, line 2: .*{message}"):
            read_results(tmp_path)


def test_the_store_keeps_whole_batches_and_its_settings(tmp_path):
    settings = {"model": "m", "seed": 0, "system": None}
    store = ResponseStore(tmp_path, settings)
    store.add(0, ["a", "b\n"])
    store.add(2, ["c"])
    with store.path.open("a") as file:
        file.write('{"batch": 3, "te')  # torn by a kill
    again = ResponseStore(tmp_path, settings)
    assert again.batches == {0: ["a", "b\n"], 2: ["c"]}
    again.add(3, ["d"])
    assert ResponseStore(tmp_path, settings).batches == {0: ["a", "b\n"], 2: ["c"], 3: ["d"]}
    assert [json.loads(line) for line in store.path.read_text().splitlines()][0] == settings
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        ResponseStore(tmp_path, {**settings, "seed": 1})


def test_a_model_written_anew_is_another_model(tmp_path):
    assert model_mark("someone/model") == ""
    (tmp_path / "weights").write_text("1")
    first = model_mark(str(tmp_path))
    assert first == model_mark(str(tmp_path)) != ""
    (tmp_path / "weights").write_text("12")
    assert model_mark(str(tmp_path)) != first
