"""Responses are matched to prompts; whatever does not fit is named and left out."""

import json

import pytest

from gapo_jax.evaluate.responses import all_prompts, match_responses

ROWS = (("b", "2"), ("a", "1"), ("b", "3"))


def _file(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _lines(rows):
    return [json.dumps({"prompt": prompt, "response": response}) for prompt, response in rows]


def test_responses_are_matched_by_prompt(tmp_path):
    path = _file(tmp_path, *_lines(ROWS))
    assert match_responses(path, ["a", "b", "b"]) == ([["1"], ["2"], ["3"]], [])
    assert match_responses(path, ["a", "b"]) == ([["1"], ["2", "3"]], [])  # two samples
    found, problems = match_responses(path, ["a", "c", "b"])
    assert found == [["1"], [], ["2", "3"]]
    assert problems == [f"{path}: no response for prompt 2: 'c'"]


def test_strangers_are_named_and_end_nothing(tmp_path):
    path = _file(tmp_path, *_lines(ROWS))
    found, problems = match_responses(path, ["a"])
    assert found == [["1"]]
    assert problems == [f"{path}, line {n}: it answers none of the prompts: 'b'" for n in (1, 3)]
    assert match_responses(path, ["a"], lambda: {" b"}) == ([["1"]], [])  # left out on purpose
    prompts = _file(tmp_path, *_lines(ROWS), '{"prompt": 3}', "{torn")
    assert all_prompts(prompts) == {"a", "b"}


def test_blanks_around_a_prompt_do_not_matter(tmp_path):
    path = _file(tmp_path, *_lines([("a \n", "1"), ("\tb", "2"), ("a  b", "3")]))
    found, problems = match_responses(path, ["a", " b "])
    assert found == [["1"], ["2"]]
    assert len(problems) == 1 and "line 3: it answers none of the prompts: 'a  b'" in problems[0]
    # Two prompts that differ in nothing else keep their own responses.
    path = _file(tmp_path, *_lines([("a", "1"), ("a ", "2")]))
    assert match_responses(path, ["a ", "a"]) == ([["2"], ["1"]], [])


def test_a_prompt_may_be_messages(tmp_path):
    row = {"prompt": [{"role": "user", "content": "a"}], "response": "1"}
    path = _file(tmp_path, json.dumps(row))
    assert match_responses(path, ["a"]) == ([["1"]], [])


def test_what_cannot_be_shared_out_or_read(tmp_path):
    lines = _lines(ROWS)
    path = _file(tmp_path, *lines, lines[0], "{torn", '{"prompt": "a"}')
    with pytest.raises(ValueError, match="each of the 2 rows of the prompt 'b', got 3 in all"):
        match_responses(path, ["a", "b", "b"])
    found, problems = match_responses(path, ["b"] * 4 + ["a"])
    assert found == [["2"], ["3"], ["2"], [], ["1"]]
    assert "line 5: not valid JSON" in problems[0] and len(problems) == 3
    assert "line 6: expected the texts 'prompt' and 'response', got the fields" in problems[1]
