"""Constraints of rows in the forms of public data sets, and the reward in TRL's convention."""

import json
import logging

import pytest

from gapo_jax import constraints
from gapo_jax.constraints.rows import constraints_of, prompt_text
from gapo_jax.types import Constraint

NO_COMMA = Constraint("punctuation:no_comma", {})
LONG = Constraint("length_constraints:number_words", {"num_words": 5, "relation": "at least"})
IDS = ["punctuation:no_comma", "length_constraints:number_words"]
KWARGS = [{"num_words": None}, {"relation": "at least", "num_words": 5.0}]
TRUTH = [{"instruction_id": IDS, "kwargs": [None, KWARGS[1]]}]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction_id_list": IDS, "kwargs": KWARGS},
        {"instruction_id_list": tuple(IDS), "kwargs": tuple(KWARGS), "constraints": None},
        {"instruction_id_list": json.dumps(IDS), "kwargs": json.dumps(KWARGS)},
        {"instruction_id_list": IDS, "kwargs": [json.dumps(item) for item in KWARGS]},
        {"instruction_id_list": IDS, "kwargs": str(KWARGS)},  # Python's None
        {"ground_truth": str(TRUTH), "dataset": "ifeval"},
        {"ground_truth": json.dumps(TRUTH)},
        {"ground_truth": TRUTH},
        {"ground_truth": [{"instruction_id": one, "kwargs": [k]} for one, k in zip(IDS, KWARGS)]},
        {"constraints": [NO_COMMA.to_json(), LONG.to_json()]},
        {"constraints": json.dumps([{"id": "no_comma"}, LONG.to_json()])},
    ],
)
def test_forms_of_the_same_constraints(record):
    assert constraints_of(record) == (NO_COMMA, LONG)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "text": "t"}, r"expected one of the columns .*got \['prompt', 'text'\]"),
        ({"instruction_id_list": "no list"}, "expected JSON or a Python literal"),
        ({"instruction_id_list": 3}, "expected a list of instruction ids, got 3"),
        ({"instruction_id_list": [3]}, "expected an instruction id, got 3"),
        ({"instruction_id_list": IDS, "kwargs": [{}]}, "list of 2 dictionaries, one per inst"),
        ({"instruction_id_list": IDS[:1], "kwargs": ["x"]}, "kwargs of punctuation:no_comma: exp"),
        ({"instruction_id_list": IDS[:1], "kwargs": [[1]]}, r"expected a dictionary, got \[1\]"),
        ({"instruction_id_list": IDS[1:], "kwargs": [{}]}, "missing .*num_words"),
        ({"instruction_id_list": ["no:such"]}, "expected one of .* known types, got 'no:such'"),
        ({"ground_truth": '{"func_name": "validate_lowercase"}'}, "function name 'validate_lower"),
        ({"ground_truth": "42"}, "expected instruction_id and kwargs, got 42"),
        ({"ground_truth": "Paris"}, "expected JSON or a Python literal in the text, got 'Paris'"),
        ({"constraints": "[" * 100_000}, "expected JSON or a Python literal"),
        ({"constraints": {"id": "no_comma"}}, "constraints: expected a list"),
        ({"constraints": ["no_comma"]}, "expected objects with id and kwargs"),
    ],
)
def test_bad_rows_have_their_reason(record, message):
    with pytest.raises(ValueError, match=message):
        constraints_of(record)


def test_prompts_as_text_and_as_messages():
    turn = {"role": "user", "content": "Say hi."}
    for record in (
        {"prompt": "Say hi."},
        {"prompt": [turn]},
        {"messages": [turn]},
        {"messages": json.dumps([turn])},
        {"prompt": None, "messages": [turn]},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Say hi."}]}]},
    ):
        assert prompt_text(record) == "Say hi."
    for record, message in (
        ({"turn_1_prompt": "p"}, r"got None in a row with the columns \['turn_1_prompt'\]"),
        ({"prompt": 3}, "expected a text or messages"),
        ({"prompt": [turn, {"role": "assistant", "content": "Hi"}]}, "one user turn, got the rol"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "type 'text', got 'image'",
        ),
        ({"prompt": [{"role": "user"}]}, "expected a text as content"),
    ):
        with pytest.raises(ValueError, match=message):
            prompt_text(record)


def test_the_reward_is_the_share_that_holds(caplog):
    prompts = ["p"] * 4
    texts = ["one two three four five", "one, two", "<think>a, b</think>one two", ""]
    columns = {"instruction_id_list": [IDS] * 4, "kwargs": [KWARGS] * 4}
    assert constraints.reward(prompts, texts, **columns) == [1.0, 0.0, 0.5, 0.0]
    dialogues = [[{"role": "user", "content": "p"}]] * 4
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    more = {"completion_ids": [[1]] * 4, "trainer_state": object(), "log_extra": len}
    found = constraints.reward(prompts=dialogues, completions=answers, **columns, **more)
    assert found == [1.0, 0.0, 0.5, 0.0]
    truths = [str(TRUTH), "42", None, str([{"instruction_id": [], "kwargs": []}])]
    with caplog.at_level(logging.WARNING, "gapo_jax"):
        assert constraints.reward(prompts, texts, ground_truth=truths) == [1.0, None, None, None]
    assert "2 rows cannot be verified; row 1 of the batch: ground_truth" in caplog.text


def test_a_reward_without_anything_to_verify_is_an_error():
    with pytest.raises(ValueError, match="expected one of the columns .*got \\['answer'\\]"):
        constraints.reward(["p"], ["a"], answer=["x"])
    with pytest.raises(ValueError, match="got 1 prompts and 2 completions"):
        constraints.reward(["p"], ["a", "b"], instruction_id_list=[[]])
    assert constraints.reward([], [], instruction_id_list=[]) == []
