"""Sources of every format, the six schemas, lint, and mixtures."""

import collections
import csv
import json

import numpy as np
import pytest

from gapo_jax import hub
from gapo_jax.data import schemas, tables
from gapo_jax.data.lint import MARKS, encode, lint, marked
from gapo_jax.data.mixture import Mixture
from gapo_jax.data.schemas import Segment
from gapo_jax.data.tiny_tokenizer import character_tokenizer
from gapo_jax.data.tokenizer import chat_prompt

NO_COMMA = {"id": "punctuation:no_comma", "kwargs": {}}
TITLE = {"id": "detectable_format:title", "kwargs": {}}
TURNS = [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi there."}]
EXAMPLES = {
    "messages": {"messages": TURNS},
    "prompt_completion": {"prompt": "Say hi.", "completion": "Hi there."},
    "chosen_rejected": {"prompt": "Say hi.", "chosen": "Hi there.", "rejected": "No."},
    "prompt_label": {"prompt": "Say hi.", "completion": "Hi there.", "label": True},
    "scored": {"prompt": "Say hi.", "responses": ["No.", "Hi there."], "scores": [0, 1]},
    "ifeval": {
        "key": 1, "prompt": "Say hi.\n\nNo commas.",
        "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "response": "Hi there.",
    },
    "preferential": {
        "task": "Say hi.", "response": "Hi there.", "accepted": [NO_COMMA], "rejected": [TITLE],
        "prompt_accepted": "Say hi. No commas.", "prompt_rejected": "Say hi. Add a title.",
        "edit": "replace", "type": "detectable_format:title",
    },
}  # fmt: skip


@pytest.mark.parametrize("schema", schemas.SCHEMAS)
def test_each_schema_is_recognised_and_read(schema):
    record = EXAMPLES[schema]
    assert schemas.recognise(record) == schema
    assert schemas.recognise({**record, "label": record.get("label"), "other": None}) == schema
    assert schemas.prompt_and_response(record, schema) == ("Say hi.", "Hi there.")
    sequences = schemas.segments(record, schema)
    assert len(sequences) == (2 if schema in ("chosen_rejected", "preferential", "scored") else 1)
    for turns in sequences:
        assert [turn.trained for turn in turns] == [False, True]
    report = lint([(1, record)], schema=schema)
    assert (report.rows, report.malformed, report.all_masked) == (1, 0, 0)
    assert f"{MARKS[0]}Hi there.{MARKS[1]}" in report.example


def test_blanks_around_a_task_do_not_make_another():
    turns = [{"role": "user", "content": "Say hi.\n"}, TURNS[1]]
    for schema, change in (
        ("messages", {"messages": turns}),
        ("prompt_completion", {"prompt": " Say hi. "}),
        ("ifeval", {"task": "\tSay hi."}),
        ("preferential", {"task": "Say hi. "}),
    ):
        found = schemas.prompt_and_response({**EXAMPLES[schema], **change}, schema)
        assert found == ("Say hi.", "Hi there."), schema


def test_what_fits_no_schema_or_not_its_own():
    with pytest.raises(ValueError, match="no schema fits the fields .'text'."):
        schemas.recognise({"text": "x"})
    turns = [*TURNS, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}]
    assert [t.trained for t in schemas.segments({"messages": turns}, "messages")[0]] == [
        False, True, False, True,
    ]  # fmt: skip
    both = schemas.segments({"chosen": turns, "rejected": TURNS}, "chosen_rejected")
    assert [t.trained for t in both[0]] == [False, False, False, True]
    with pytest.raises(ValueError, match="one user turn"):
        schemas.prompt_and_response({"messages": turns}, "messages")
    with pytest.raises(ValueError, match="cannot be told from its 1 constraints"):
        schemas.separate_task({**EXAMPLES["ifeval"], "prompt": "Say hi, no commas."})
    with pytest.raises(ValueError, match="'task' is not valid Unicode"):
        schemas.separate_task({**EXAMPLES["ifeval"], "task": "\ud800"})
    with pytest.raises(ValueError, match="wanted a text under 'task', got int"):
        schemas.separate_task({**EXAMPLES["ifeval"], "task": 3})
    for record, message in (
        ({"messages": []}, "list of messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 0 of 'messages'"),
        ({"prompt": "a", "completion": "b", "label": "yes"}, "true or false under 'label'"),
        ({"prompt": "a", "completion": 3}, "wanted a text under 'completion'"),
        ({"prompt": "a", "completion": "\ud800"}, "'completion' is not valid Unicode"),
    ):
        with pytest.raises(ValueError, match=message):
            schemas.segments(record, schemas.recognise(record))


def _lint(*records, **options):
    return lint(enumerate(records, 1), **options)


def test_lint_counts_by_hand():
    good = [{"prompt": f"Ask {i}.", "completion": "one two three"} for i in range(6)]
    report = _lint(
        *good, good[0], {"prompt": "Ask.", "completion": " "}, {"prompt": "x"}, "torn line",
        {"prompt": "Ask.", "completion": "word " * 50}, limit=20,
    )  # fmt: skip
    assert (report.rows, report.malformed, report.empty) == (11, 2, 1)
    assert (report.truncated, report.duplicated, report.all_masked) == (1, 1, 1)
    assert report.problems[0].startswith("row 9: no schema fits")
    assert report.problems[1] == "row 10: torn line"
    assert not report.errors
    report.refuse()
    assert "malformed 2, empty 1, truncated 1, duplicated 1, all masked 1" in report.lines()[0]
    assert json.loads(json.dumps(report.to_json()))["schemas"] == {"prompt_completion": 9}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([EXAMPLES["messages"], EXAMPLES["prompt_completion"]], "several schemas"),
        ([{"text": "x"}], "no usable row among 1: row 1"),
        ([{"prompt": "p", "chosen": "a", "rejected": "a"}] * 3, "chosen and rejected"),
        (
            [{"prompt": f"A question of some length {i}?",
              "completion": f"A question of some length {i}? Yes."} for i in range(3)],
            "begins with the whole prompt",
        ),
        ([{"messages": TURNS[:1]}] * 2, "ends with a user turn"),
        ([{"messages": TURNS[:1]}] * 2, "nothing to train on"),
        (
            [{"chosen": f"Human: {i}? Assistant: Yes.", "rejected": "Human: No?"} for i in "ab"],
            "2 of 2 rows: chosen and rejected come without a prompt",
        ),
        ([{**EXAMPLES["prompt_label"], "prompt": str(i)} for i in range(4)], "every label is True"),
    ],
)  # fmt: skip
def test_silently_wrong_data_is_refused(records, message):
    report = _lint(*records)
    with pytest.raises(ValueError, match=message):
        report.refuse()
    assert any(line.startswith("error: ") for line in report.lines())


def test_constraints_of_rows_are_verified():
    wrong = {**EXAMPLES["preferential"], "response": "Hi, there."}
    report = _lint(wrong, {**EXAMPLES["ifeval"], "kwargs": [{"keywords": "tea"}]})
    assert report.malformed == 2
    assert "accepted prompt" in report.problems[0] and "no_comma" in report.problems[1]


def test_the_marked_example_is_what_the_mask_says():
    tokenizer = character_tokenizer()
    turns = [Segment("user", "Say hi.", False), Segment("assistant", "Hi.", True)]
    ids, mask = encode(turns, tokenizer)
    # As in training: the prompt that a sampler continues, the answer, and the token that ends it.
    prompt = chat_prompt(tokenizer, "Say hi.")
    assert tokenizer.decode(ids) == prompt + "Hi.</s>"
    trained = [i for i, m in zip(ids, mask, strict=True) if m]
    assert tokenizer.decode(trained) == "Hi.</s>"
    assert marked(ids, mask, tokenizer) == f"{prompt}{MARKS[0]}Hi.</s>{MARKS[1]}"
    tokenizer.chat_template = None
    ids, mask = encode(turns, tokenizer)
    assert ids == tokenizer("Say hi.Hi.")["input_ids"] + [tokenizer.eos_token_id]
    assert mask == [0] * 7 + [1] * 4
    report = _lint(EXAMPLES["prompt_completion"], tokenizer=character_tokenizer(), limit=9)
    assert (report.unit, report.truncated, report.all_masked) == ("tokens", 1, 1)


def test_turns_that_a_template_refuses_are_named():
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% for turn in messages %}{% if turn.role == 'system' %}"
        "{{ raise_exception('no system turns') }}{% endif %}{{ turn.content }}{% endfor %}"
    )
    system = {"role": "system", "content": "Be brief."}
    report = _lint(
        {"messages": [system, *TURNS]}, EXAMPLES["messages"], tokenizer=tokenizer, limit=50
    )
    assert (report.malformed, report.schemas) == (1, {"messages": 1})
    assert "row 1: the chat template refuses turns of the roles ['system'" in report.problems[0]
    assert "no system turns" in report.problems[0]
    with pytest.raises(ValueError, match="no system turns"):
        chat_prompt(tokenizer, "Say hi.", "Be brief.")


ROWS = [{"prompt": f"Say {i}, é\n?", "completion": f'"{i}"'} for i in range(7)]


def _write(path):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        import datasets

        table = datasets.Dataset.from_list(ROWS)
        if path.suffix == ".parquet":
            table.to_parquet(str(path))
        else:
            table.save_to_disk(str(path))


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "folder"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    _write(tmp_path / name)
    assert list(tables.iter_rows(tmp_path / name)) == list(enumerate(ROWS, 1))


def test_folders_of_files_can_be_streamed(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    _write(tmp_path / "data" / "r.jsonl")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tables.iter_rows(tmp_path / "data", streaming=True)
    assert next(rows) == (1, ROWS[0]) and list(rows) == list(enumerate(ROWS, 1))[1:]
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # nothing was fetched first


def test_csv_cells_hold_lists_and_labels(tmp_path):
    text = (
        "prompt,instruction_id_list,kwargs,label,response\n"
        'a,"[""punctuation:no_comma""]","[{""n"": null}]",True,"[1]"\n'
        "b,['punctuation:no_comma'],[{'n': None}],0,\"{'x': 1}\"\n"
        'c,"[torn",,maybe,x\n'
    )
    (tmp_path / "r.csv").write_text(text)
    rows = [row for _, row in tables.iter_rows(tmp_path / "r.csv")]
    for row in rows[:2]:
        assert row["instruction_id_list"] == ["punctuation:no_comma"]
        assert row["kwargs"] == [{"n": None}]
    assert [row["label"] for row in rows] == [True, False, "maybe"]
    assert [row["response"] for row in rows] == ["[1]", "{'x': 1}", "x"]  # texts stay texts
    assert rows[2]["instruction_id_list"] == "[torn"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.parquet", b"PAR1 torn", "not a whole Parquet file"),
        ("r.json", b'{"a": 1}\n{"a": 2}', r"not valid JSON .*is \.jsonl"),
        ("r.json", b'{"a": 1}', "wanted a JSON list of rows, got dict"),
        ("r.csv", b"\xfaa,b\n1,2\n", "r.csv: its first line is no header in UTF-8"),
        ("r.csv", b"\xff\xfea\0,\0b\0\n\x001", "r.csv: not valid UTF-16"),
        ("r.txt", b"hello", "wanted a file that ends in one of"),
    ],
)
def test_files_that_are_not_what_they_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(tables.iter_rows(tmp_path / name))


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(FileNotFoundError, match="the hub did not answer .* run again where"):
        next(tables.iter_rows("nobody/no-such-data"))
    with pytest.raises(FileNotFoundError, match="no such file or folder, nor a dataset"):
        next(tables.iter_rows("some/folder/that/is/not"))


def test_bad_files_and_lines(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.csv"):
        next(tables.iter_rows(tmp_path / "none.csv"))
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[2]\n{"a"\n\xff\n' + b"[" * 100_000 + b"\n")
    rows = dict(tables.iter_rows(path))
    assert rows.pop(1) == {"a": 1} and list(rows) == [3, 4, 5, 6]
    assert rows[3] == "wanted a JSON object, got list"
    assert all("not valid JSON" in rows[number] for number in (4, 5, 6))
    (tmp_path / "r.csv").write_text("a,b\n1,2\n1\n1,2,3\n")
    kinds = [type(row) for _, row in tables.iter_rows(tmp_path / "r.csv")]
    assert kinds == [dict, str, str]


def test_a_bad_row_of_a_csv_file_is_named_and_the_others_are_read(tmp_path, monkeypatch):
    (tmp_path / "r.csv").write_bytes(b'a,b\n1,2\n3,\xff\n4,"' + b"x" * 99 + b'"\n5,\xc3\xa9\n')
    limit = csv.field_size_limit()
    monkeypatch.setattr(tables, "_CSV_FIELD", 60)
    try:
        rows = dict(tables.iter_rows(tmp_path / "r.csv"))
    finally:
        csv.field_size_limit(limit)
    assert rows.pop(1) == {"a": "1", "b": "2"} and rows.pop(4) == {"a": "5", "b": "é"}
    assert list(rows) == [2, 3] and "in UTF-8" in rows[2] and "field limit" in rows[3]


def test_responses_are_joined_by_prompt(tmp_path):
    path = tmp_path / "r.jsonl"
    answers = [("b", "2"), ("a", "1"), ("b", "3")]
    path.write_text("\n".join(json.dumps({"prompt": p, "response": r}) for p, r in answers))
    rows = [(1, {"prompt": "a"}), (2, "torn"), (3, {"prompt": "b"}), (4, {"prompt": "b"})]
    joined = dict(tables.join_responses([*rows, (5, {"prompt": "b"})], path))
    assert [joined[i]["response"] for i in (1, 3, 4)] == ["1", "2", "3"]
    assert joined[2] == "torn" and "no response to this prompt" in joined[5]
    # Further responses to a prompt are rows too; those to none and torn ones are named.
    with path.open("a") as file:
        file.write('\n{torn\n{"prompt": "z", "response": "9"}')
    joined = list(tables.join_responses([(1, {"prompt": "b"}), (2, {"prompt": "a"})], path))
    found = [(n, row["response"]) for n, row in joined if isinstance(row, dict)]
    assert found == [(1, "2"), (2, "1"), (1, "3")]
    problems = [problem for _, problem in joined if isinstance(problem, str)]
    assert "not valid JSON" in problems[0] and "answers none of the prompts" in problems[1]


def test_one_source_is_every_row_once_an_epoch():
    for size in (1, 7, 1024, 3000):
        mixture = Mixture([size], seed=3)
        orders = [mixture.rows(epoch, np.arange(size))[:, 1] for epoch in (0, 1)]
        for order in orders:
            np.testing.assert_array_equal(np.sort(order), np.arange(size))
        assert size == 1 or (orders[0] != orders[1]).any()


def test_a_mixture_is_a_function_of_seed_epoch_and_index():
    mixture = Mixture([100, 50, 2000], [2, 1, 1], seed=5)
    whole = mixture.rows(4, np.arange(2048))
    counts = collections.Counter(whole[:, 0].tolist())
    assert counts == {0: 1024, 1: 512, 2: 512}  # the weights, exactly
    again = Mixture([100, 50, 2000], [2, 1, 1], seed=5)
    for index in (2047, 3, 1024, 0):
        np.testing.assert_array_equal(again.rows(4, [index])[0], whole[index])
    for source, size in enumerate(mixture.sizes):  # no row a second time before all came once
        rows = whole[whole[:, 0] == source][:, 1]
        assert len(set(rows[:size].tolist())) == min(size, len(rows))
    assert (Mixture([100, 50, 2000], [2, 1, 1], seed=6).rows(4, np.arange(2048)) != whole).any()


def test_a_mixture_wants_rows_and_weights():
    for sizes, weights in (([], None), ([3, 0], None), ([3, 3], [1]), ([3, 3], [1, 0])):
        with pytest.raises(ValueError, match="a mixture wants"):
            Mixture(sizes, weights)
    with pytest.raises(ValueError, match="below 1/1024"):
        Mixture([3, 3], [1, 10_000])
