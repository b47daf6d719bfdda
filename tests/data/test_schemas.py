"""Rows as people have them: every field that changes their meaning is used or named."""

from __future__ import annotations

import json
import logging

import pytest

from gapo_jax.data import schemas, tables
from gapo_jax.data.lint import lint
from gapo_jax.data.mining import Mining
from gapo_jax.data.recipe import Recipe

ASK = {"role": "user", "content": "Name a tree."}
OAK = {"role": "assistant", "content": "An oak."}
ASH = {"role": "assistant", "content": "Ash."}
KIND = {"role": "system", "content": "Be kind."}
_U, _A = ("user", "Name a tree.", False), ("assistant", "An oak.", True)


def _read(record):
    schema = schemas.recognise(record)
    sequences = schemas.segments(record, schema)
    return schema, [[(t.role, t.text, t.trained) for t in turns] for turns in sequences]


def _task(record):
    return schemas.prompt_and_response(record, schemas.recognise(record))


@pytest.mark.parametrize(
    ("record", "schema", "sequence"),
    [
        ({"messages": json.dumps([ASK, OAK])}, "messages", [_U, _A]),
        (
            {"conversations": [{"from": "human", "value": "Name a tree."},
                               {"from": "gpt", "value": "An oak."}]},
            "messages", [_U, _A],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Name "},
                                                       {"type": "text", "text": "a tree."}]}, OAK]},
            "messages", [_U, _A],
        ),
        ({"messages": [ASK], "completion": "An oak."}, "messages", [_U, _A]),
        ({"messages": [ASK, OAK], "prompt": "Name a tree."}, "messages", [_U, _A]),
        ({"messages": [ASK, OAK], "label": False}, "prompt_label", [_U, _A]),
        ({"query": "Name a tree.", "response": "An oak."}, "prompt_completion", [_U, _A]),
        ({"prompt": [ASK], "completion": [OAK]}, "prompt_completion", [_U, _A]),
        (
            {"instruction": "Name it.", "input": "A tall plant.", "output": "An oak."},
            "prompt_completion", [("user", "Name it.\n\nA tall plant.", False), _A],
        ),
        ({"instruction": "Name a tree.", "input": "", "output": "An oak."}, "prompt_completion",
         [_U, _A]),
        (
            {"system_prompt": "Be kind.", "question": "Name a tree.", "response": "An oak."},
            "prompt_completion", [("system", "Be kind.", False), _U, _A],
        ),
        (
            {"instruction": "Name a tree.", "output": "An oak.", "history": [["Hi.", "Hello."]]},
            "prompt_completion",
            [("user", "Hi.", False), ("assistant", "Hello.", False), _U, _A],
        ),
        (
            {"messages": [ASK, OAK | {"weight": 0}, ASK, OAK]}, "messages",
            [_U, ("assistant", "An oak.", False), _U, _A],
        ),
        (
            {"messages": [ASK, {"role": "assistant", "content": ""}, ASK, OAK]}, "messages",
            [_U, ("assistant", "", False), _U, _A],
        ),
    ],
)  # fmt: skip
def test_every_form_of_a_row_is_read(record, schema, sequence):
    assert _read(record) == (schema, [sequence])
    assert not schemas.unused(record, schema)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Name a tree.", "chosen": "An oak.", "rejected": "Ash."},
        {"prompt": "Name a tree.", "chosen": [ASK, OAK], "rejected": [ASK, ASH],
         "messages": [ASK, OAK], "score_chosen": 8.0, "prompt_id": "1"},
        {"prompt": [ASK], "chosen": [OAK], "rejected": [ASH]},
        {"prompt": [ASK], "chosen": [ASK, OAK], "rejected": [ASK, ASH]},
        {"prompt": "Name a tree.", "chosen": [OAK], "rejected": json.dumps([ASH])},
        {"chosen": [ASK, OAK], "rejected": [ASK, ASH]},
        {"chosen": "\n\nHuman: Name a tree.\n\nAssistant: An oak.",
         "rejected": "\n\nHuman: Name a tree.\n\nAssistant: Ash."},
        {"question": "Name a tree.", "chosen": "An oak.", "rejected": "Ash.",
         "constraints": [{"id": "x"}], "task": "Trees."},
    ],
)  # fmt: skip
def test_every_form_of_a_pair_has_its_prompt_once(record):
    schema, (chosen, rejected) = _read(record)
    assert schema == "chosen_rejected" and not schemas.unused(record, schema)
    assert chosen == [_U, _A] and rejected == [_U, ("assistant", "Ash.", True)]
    assert _task(record) == ("Name a tree.", "An oak.")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [ASK, OAK], "images": ["cat.png"]}, "the row has 'images'"),
        ({"messages": [ASK, OAK], "tools": [{"type": "function"}]}, "the row has 'tools'"),
        ({"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}]},
         "message 1 of 'messages' has 'tool_calls'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, OAK]},
         "message 0 of 'messages' has a part of type 'image_url'"),
        ({"messages": [ASK, OAK | {"reasoning_content": "Hm."}]}, "has 'reasoning_content'"),
        ({"messages": [ASK, OAK], "label": "good"}, "true or false under 'label'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "label": 1}, "the row has 'label'"),
        ({"prompt": "Name a bush.", "chosen": [ASK, OAK], "rejected": [ASK, ASH]},
         "the prompt is not among the turns"),
        ({"chosen": [ASK, OAK], "rejected": [ASK]}, "'rejected' ends with a turn of the user"),
        ({"messages": [ASK, OAK], "prompt": "Name a bush."}, "'prompt' is none of the turns"),
        ({"prompt": "a", "instruction": "b", "output": "c"}, "both 'prompt' and 'instruction'"),
        ({"messages": [KIND, ASK, OAK], "system": "Be rude."}, "another system text"),
        ({"prompt": "a", "output": "b", "history": [["c"]]}, "question, answer"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "message 0 of 'conversations'"),
        ({"messages": "plain text"}, "list of messages under 'messages', got str"),
        ({"prompt": "a", "input": ["b"], "output": "c"}, "wanted a text under 'input'"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused_by_name(record, message):
    with pytest.raises(ValueError, match=message):
        _read(record)
    with pytest.raises(ValueError, match=message):
        _task(record)


def test_prompts_with_constraints_are_recognised_in_the_forms_of_public_sets():
    ground_truth = "[{'instruction_id': ['punctuation:no_comma'], 'kwargs': [None]}]"
    for record in (
        {"messages": [ASK], "ground_truth": ground_truth, "dataset": "ifeval"},
        {"prompt": "Name a tree.", "ground_truth": ground_truth},
        {
            "prompt": "Name a tree.",
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": "[{}]",
        },
    ):
        assert _read(record) == ("ifeval", [[_U]]) and not schemas.unused(record, "ifeval")
        assert lint([(1, record)]).malformed == 0
    # An answer to compare with is no constraint.
    assert schemas.recognise({"messages": [ASK], "ground_truth": "4"}) == "messages"


def test_a_system_text_is_a_part_of_what_is_asked_in_mining_too():
    assert _task({"messages": [KIND, ASK, OAK]}) == ("Be kind.\n\nName a tree.", "An oak.")
    record = {"system": "Be kind.", "prompt": "Name a tree.", "completion": "An oak."}
    assert _task(record) == ("Be kind.\n\nName a tree.", "An oak.")


def test_mining_takes_no_bad_answers_and_none_that_rest_on_a_tool():
    with pytest.raises(ValueError, match="label is false"):
        _task({"messages": [ASK, OAK], "label": False})
    tool = {"role": "tool", "content": "12 degrees"}
    with pytest.raises(ValueError, match="what a tool said"):
        _task({"messages": [ASK, tool, OAK]})
    assert _read({"messages": [ASK, tool, OAK]})[1][0][1] == ("tool", "12 degrees", False)


def test_columns_that_are_not_read_are_named_once(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "Name a tree.", "completion": "An oak.", "id": 3, "llm_score": 1, "hint": "O"}
    path.write_text("\n".join(json.dumps(row | {"prompt": str(i), "mood": None}) for i in range(4)))
    report = lint(tables.iter_rows(path))
    named = "columns neither used nor known to be harmless: hint"
    assert report.unused == {"hint": 4} and report.lines().count(f"warning: {named}") == 1
    assert report.to_json()["unused"] == {"hint": 4} and not report.errors
    with caplog.at_level(logging.WARNING):
        rows = list(Recipe(sources=(str(path),), settings=Mining(type_ids=("a",))).read(str(path)))
    assert len(rows) == 4 and [r.message for r in caplog.records] == [f"{path}: {named}"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_files_with_a_byte_order_mark_are_read(tmp_path, encoding, suffix):
    row = {"prompt": "Naïve?", "completion": "Nö."}
    text = {".jsonl": json.dumps(row, ensure_ascii=False), ".json": json.dumps([row])}
    path = tmp_path / f"rows{suffix}"
    path.write_text(text.get(suffix, "prompt,completion\nNaïve?,Nö.\n"), encoding=encoding)
    assert list(tables.iter_rows(path)) == [(1, row)]
