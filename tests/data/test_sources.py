"""JSONL in and out: round trips, and errors that name the line."""

import json

import pytest

from gapo_jax import io
from gapo_jax.data import sources
from gapo_jax.types import Constraint, PreferentialPair, PromptRow

IFEVAL = {
    "key": 7,
    "prompt": "Write a note. Use no commas.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "at least", "num_words": 5, "keyword": None}],
}


def _file(tmp_path, *lines):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_ifeval_rows_round_trip(tmp_path):
    path = _file(tmp_path, json.dumps(IFEVAL), "", json.dumps({**IFEVAL, "key": 8}))
    rows = sources.read_prompts(path)
    assert [row.key for row in rows] == ["7", "8"]
    assert rows[0].constraints[1] == Constraint(
        "length_constraints:number_words", {"relation": "at least", "num_words": 5}
    )
    again = sources.to_ifeval(rows[0])
    assert again["instruction_id_list"] == IFEVAL["instruction_id_list"]
    assert sources.prompt_row(again) == rows[0]


def test_a_column_of_nulls_makes_no_row_ours():
    """As a Parquet file gives rows of both kinds, every column in every row."""
    row = sources.prompt_row({**IFEVAL, "constraints": None, "task": None})
    assert row == sources.prompt_row(IFEVAL) and len(row.constraints) == 2
    ours = {"key": 3, "prompt": "p", "task": "t", "constraints": [], "instruction_id_list": None}
    assert sources.prompt_row(ours) == PromptRow("3", "p", "t", ())
    assert sources.prompt_row({**ours, "key": None}, "9").key == "9"


def test_our_own_rows_and_pairs_round_trip(tmp_path):
    constraint = Constraint("keywords:existence", {"keywords": ["tea", "naïve ☕"]})
    row = PromptRow("a-1", 'Say "tea".\nNow.', "Say it.", (constraint,))
    assert sources.write_prompts(tmp_path / "p.jsonl", [row]) == 1
    assert sources.read_prompts(tmp_path / "p.jsonl") == [row]
    other = Constraint("punctuation:no_comma", {})
    pair = PreferentialPair("t", "r,", (constraint,), (other,), "P", "Q", "replace", other.id)
    sources.write_pairs(tmp_path / "q.jsonl", [pair])
    assert sources.read_pairs(tmp_path / "q.jsonl") == [pair]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x"', "line 2: not valid JSON"),
        ("[1, 2]", "line 2: wanted a JSON object, got list"),
        ('{"prompt": 3, "instruction_id_list": []}', "line 2: expected a text or messages"),
        ('{"prompt": "x"}', "line 2: expected one of the columns"),
        ('{"prompt": "\\ud800", "instruction_id_list": []}', "line 2: 'prompt' is not valid Uni"),
        ('{"prompt": 3, "task": "t", "constraints": []}', "line 2: expected a text or messages"),
        ('{"prompt": "x", "task": 3, "constraints": []}', "line 2: wanted a string under 'task'"),
        ('{"prompt": "x", "task": "\\ud800", "constraints": []}', "line 2: 'task' is not valid"),
        ('{"prompt": "x", "task": "t", "constraints": "a"}', "line 2: constraints: expected JSON"),
        (
            '{"prompt": "x", "instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}',
            "line 2: .*no_coma.*no_comma",
        ),
        (
            '{"prompt": "x", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}',
            "line 2",
        ),
        (
            '{"prompt": "x", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}',
            "line 2: kwargs: expected a list of 1 dictionaries",
        ),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, message):
    path = _file(tmp_path, json.dumps(IFEVAL), line)
    if message == "line 2":  # no kwargs at all means no arguments
        assert len(sources.read_prompts(path)) == 2
        return
    with pytest.raises(ValueError, match=message):
        sources.read_prompts(path)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "x"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: not valid JSON"):
        io.read_jsonl(path)


def test_empty_and_missing_files(tmp_path):
    path = _file(tmp_path, "", "  ")
    for read in (io.read_jsonl, sources.read_prompts, sources.read_pairs):
        with pytest.raises(ValueError, match="has no"):
            read(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        sources.read_prompts(tmp_path / "nowhere.jsonl")
