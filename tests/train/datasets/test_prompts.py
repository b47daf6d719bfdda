"""Prompts of a user's own: which rows can be used, as what, and what is said of the others."""

import dataclasses
import json

import pytest

from gapo_jax.config import finalize
from gapo_jax.config.presets import tiny
from gapo_jax.train.build import build_models
from gapo_jax.train.datasets.prompts import (
    LEFT_OUT,
    read_row,
    read_user_prompts,
    takes_prompts,
    user_prompts,
)
from gapo_jax.train.datasets.self_generated import make_all_prompts

NO_COMMA = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
GROUND_TRUTH = "[{'instruction_id': ['punctuation:no_comma'], 'kwargs': [None]}]"
FUNCTION = ("my_rewards.py:f",)


def _config(source="", sources=("verifier", *FUNCTION), **data):
    config = tiny("grpo")
    config.reward.sources, config.reward.standardise = sources, "none"
    config.data.source = str(source)
    for name, value in data.items():
        setattr(config.data, name, value)
    return finalize(config)


def _write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _user(text):
    return {"role": "user", "content": text}


def test_a_bare_prompt_keeps_its_columns():
    row = read_row(_config(), {"prompt": "2 + 2?", "answer": "4", "question": "sum"}, "7")
    assert (row.key, row.prompt, row.constraints, row.turns) == ("7", "2 + 2?", (), ())
    assert row.columns == {"answer": "4", "question": "sum"} and row.asked == "2 + 2?"
    row = read_row(_config(), {"instruction": "Translate.", "input": "Hallo"}, "1")
    assert row.prompt == "Translate.\n\nHallo"


@pytest.mark.parametrize(
    "columns",
    [
        NO_COMMA,
        {"ground_truth": GROUND_TRUTH},
        {"constraints": [{"id": "no_comma", "kwargs": {}}]},
    ],
)
def test_constraints_in_each_form(columns):
    row = read_row(_config(), {"prompt": "Sing.", **columns}, "1")
    assert [c.id for c in row.constraints] == ["punctuation:no_comma"]
    # As they were: a function written for the set gets what it knows.
    assert row.columns == columns


def test_dialogues_are_dialogues():
    turns = [{"role": "system", "content": "Be kind."}, _user("Hi."),
             {"role": "assistant", "content": "Hello."}, _user("Sing.")]  # fmt: skip
    for record in ({"prompt": turns}, {"messages": turns, "ground_truth": GROUND_TRUTH}):
        row = read_row(_config(), record, "1")
        assert list(row.asked) == turns == list(row.turns)
        assert row.prompt.endswith("User: Hi.\n\nAssistant: Hello.\n\nUser: Sing.")
    row = read_row(_config(), {"prompt": [_user("Hi.")]}, "1")
    assert list(row.turns) == [_user("Hi.")] and row.prompt == "Hi."
    row = read_row(_config(), {"prompt": "Hi.", "system": "Be kind."}, "1")
    assert [turn["role"] for turn in row.turns] == ["system", "user"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"answer": "4"}, "wanted a prompt under one of"),
        (
            {"prompt": [_user("Hi."), {"role": "assistant", "content": "Hello."}]},
            "ends with a turn",
        ),
        ({"prompt": "Look.", "images": ["x.png"]}, "'images'.*changes what it says"),
        ({"prompt": "Hi.", "completions": ["a"]}, "'completions' has the name of an argument"),
        ({"prompt": "Hi.", "instruction_id_list": ["no:such"]}, "no:such"),
        ({"prompt": "Hi.", "instruction_id_list": ["words:start_verb"]}, "IFBench|nltk|NLTK"),
        ({"prompt": "Hi.", "instruction_id_list": ["words:vowel"]}, "IFBench, which measures"),
    ],
)
def test_rows_that_cannot_be_used_say_why(record, reason):
    with pytest.raises(ValueError, match=reason):
        read_row(_config(), record, "1")


def test_constraints_are_a_functions_own_where_no_verifier_is_asked():
    record = {"prompt": "Hi.", "constraints": "be short", "ground_truth": "42"}
    row = read_row(_config(sources=FUNCTION), record, "1")
    assert row.constraints == () and row.columns["constraints"] == "be short"
    with pytest.raises(ValueError, match="constraints: expected"):
        read_row(_config(), record, "1")
    with pytest.raises(ValueError, match="no constraints .*the verifier only"):
        read_row(_config(sources=("verifier",)), {"prompt": "Hi.", "ground_truth": "42"}, "1")
    # IFBench is for measuring.
    row = read_row(_config(), {"prompt": "Hi.", "instruction_id_list": ["words:vowel"]}, "1", True)
    assert row.constraints[0].id == "words:vowel"


def test_a_share_of_the_prompts_is_held_out_with_all_their_rows(tmp_path):
    rows = [{"prompt": f"Say {i % 10}.", "n": i} for i in range(30)]
    path = _write(tmp_path / "rows.jsonl", rows)
    found = read_user_prompts(_config(path, heldout_fraction=0.3), tmp_path)
    assert (len(found.train), len(found.heldout), found.columns) == (21, 9, ["n"])
    assert not {row.prompt for row in found.train} & {row.prompt for row in found.heldout}
    again = read_user_prompts(_config(path, heldout_fraction=0.3), tmp_path)
    assert again.heldout == found.heldout
    one = _write(tmp_path / "one.jsonl", rows[:1])
    with pytest.raises(ValueError, match="one prompt only.*config.data.heldout_source"):
        read_user_prompts(_config(one), tmp_path)


def test_held_out_rows_of_another_file_are_not_learned_from(tmp_path):
    path = _write(tmp_path / "rows.jsonl", [{"prompt": f"Say {i}."} for i in range(6)])
    held = _write(tmp_path / "held.jsonl", [{"prompt": "Say 3.", **NO_COMMA}, {"prompt": "Other."}])
    found = read_user_prompts(_config(path, heldout_source=str(held)), tmp_path)
    assert [row.prompt for row in found.train] == ["Say 0.", "Say 1.", "Say 2.", "Say 4.", "Say 5."]
    assert [row.prompt for row in found.heldout] == ["Say 3.", "Other."]
    assert "key 4: its prompt is a held-out one" in found.problems[0]


@pytest.fixture(scope="module")
def models():
    return build_models(_config())


def test_what_is_taken_lies_in_the_workdir_and_what_is_not_is_named(models, tmp_path, caplog):
    rows = [{"prompt": [_user(f"Say {i}.")], "n": i} for i in range(8)]
    rows += [{"prompt": [_user("Long " * 200)]}, {"prompt": [_user("Sing.")], **NO_COMMA}, {"n": 9}]
    path = _write(tmp_path / "rows.jsonl", rows)
    held = _write(tmp_path / "held.jsonl", [{"prompt": "A."}, {"prompt": "B.", **NO_COMMA}])
    config = _config(path, heldout_source=str(held))
    workdir = tmp_path / "run"
    workdir.mkdir()
    prompts = user_prompts(config, models, workdir, read_user_prompts(config, workdir))
    assert len(prompts.train) == 9 and not prompts.bootstrap
    assert [row.prompt for row in prompts.heldout["heldout_prompts"]] == ["B."]
    assert [row.prompt for row in prompts.rewarded] == ["A."]
    assert prompts.type_ids == ("punctuation:no_comma",)
    named = (workdir / LEFT_OUT).read_text().splitlines()
    assert len(named) == 2 and "line 11: wanted a prompt" in named[0]
    assert "above config.data.max_prompt_tokens=384" in named[1]
    assert "2 of 13 rows are left out" in caplog.text

    path.unlink()  # a continued run needs neither file
    held.unlink()
    again = user_prompts(config, models, workdir, read_user_prompts(config, workdir))
    assert again == prompts


def test_no_bootstrap_is_composed_where_nothing_learns_from_pairs(models):
    """The prompts are the same all the same, as wide as with the others."""
    config, other = tiny("grpo"), tiny("grpo")
    config.reward.source = "verifier"
    without, with_pairs = (make_all_prompts(finalize(one), models) for one in (config, other))
    assert not without.bootstrap and len(with_pairs.bootstrap) == 96
    assert dataclasses.replace(with_pairs, bootstrap=[]) == without


def test_no_row_of_use_is_one_line(models, tmp_path):
    path = _write(tmp_path / "rows.jsonl", [{"answer": "4"}])
    with pytest.raises(ValueError, match=r"no prompt to answer; the first of 1: .*line 1: wanted"):
        read_user_prompts(_config(path), tmp_path)
    path = _write(tmp_path / "rows.jsonl", [{"prompt": f"Long {i} " * 200} for i in range(4)])
    config = _config(path)
    with pytest.raises(
        ValueError, match=r"no prompts of at most config.data.max_prompt_tokens=384"
    ):
        user_prompts(config, models, tmp_path, read_user_prompts(config, tmp_path))


def test_who_takes_prompts(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert takes_prompts(_config(path)) and not takes_prompts(_config())
    assert not takes_prompts(_config(path, sources=("discriminator",)))  # it is warmed up on pairs
    config = tiny("ppo")
    config.data.source, config.discriminator.warmup_epochs = str(path), 0
    assert takes_prompts(finalize(config))
    (tmp_path / "pairs.jsonl").touch()
    assert not takes_prompts(_config(tmp_path))
