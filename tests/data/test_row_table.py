"""Tables of encoded rows against the rows themselves."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow
import pytest
from by_path import load

from gapo_jax.data import tables
from gapo_jax.data.row_stream import RowStream
from gapo_jax.data.row_table import Reading, RowTable, text_encoder, token_encoder, write_table
from gapo_jax.data.tiny_tokenizer import character_tokenizer

families = load("tests/data/families.py")
TURNS = [
    {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Again"},
    {"role": "assistant", "content": "Ha"},
]  # fmt: skip
ROWS = [
    {"prompt": "Name a tree.", "chosen": "An oak.", "rejected": "No.", "tail": 1},
    {"prompt": "Name a very, very long tree.", "chosen": "x" * 90, "rejected": "No."},
    {"prompt": "Name a river.", "chosen": "The Loire.", "rejected": "The Loire."},
    {"prompt": "Name a star.", "chosen": "Vega.", "rejected": "None."},
    {"prompt": "Name a fish."},
]


def _write(path, rows, reading, tokenizer=None):
    encoder = token_encoder(tokenizer, reading) if tokenizer else text_encoder
    facts = write_table(path, rows, reading, encoder, lambda number: f"F.jsonl, line {number}")
    return facts, RowTable(path)


def test_pairs_their_places_and_what_is_left_out(tmp_path):
    tokenizer = character_tokenizer()
    reading = Reading("pairs", max_tokens=64)
    rows = [*enumerate(ROWS, 1), (9, "not valid JSON")]
    facts, table = _write(tmp_path / "t", rows, reading, tokenizer)
    assert (facts.rows, facts.left_out, facts.examples, len(table)) == (6, 4, 2, 2)
    assert facts.kinds == {"pairs": 2} and facts.unused == {"tail": 1}
    columns = table.take([1, 0])
    assert columns["line"] == [4, 1]
    for place, (prompt, sides) in enumerate(
        [("Name a star.", ("Vega.", "None.")), ("Name a tree.", ("An oak.", "No."))]
    ):
        for side, text in enumerate(sides):
            ids, cuts = columns["ids"][place][side], columns["cuts"][place][side]
            assert tokenizer.decode(ids) == f"<s>{prompt}\n>{text}</s>"
            assert tokenizer.decode(ids[cuts[0] : cuts[1]]) == f"{text}</s>"
    longest = len("Name a star.\n>None.") + 2
    np.testing.assert_array_equal(table.lengths, [len("Name a tree.\n>An oak.") + 2, longest])
    np.testing.assert_array_equal(table.answers, [len("An oak.") + 1, len("None.") + 1])
    named = (tmp_path / "t.txt").read_text().splitlines()
    reasons = ["122 tokens, more than config.data.max_tokens=64", "both sides are the same",
               "no schema fits", "not valid JSON"]  # fmt: skip
    for line, number, reason in zip(named, (2, 3, 5, 9), reasons, strict=True):
        assert line.startswith(f"F.jsonl, line {number}: ") and reason in line


@pytest.mark.parametrize("template", [families.CHATML, families.QWEN3])
@pytest.mark.parametrize("train_on", ["last", "all"])
def test_dialogues_are_trained_on_where_the_template_puts_their_answers(
    tmp_path, template, train_on
):
    """The ids are those of the whole templated dialogue, and an answer ends as it ends there."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    reading = Reading("demonstrations", train_on, max_tokens=400)
    _, table = _write(tmp_path / "t", [(1, {"messages": TURNS})], reading, tokenizer)
    columns = table.take([0])
    ids, cuts = columns["ids"][0][0], columns["cuts"][0][0]
    whole = tokenizer.apply_chat_template(TURNS, tokenize=False)
    text = tokenizer.decode(ids)
    assert whole.startswith(text) and whole.removeprefix(text).strip() == ""
    trained = [tokenizer.decode(ids[a:b]) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    thought = "<think>\n\n</think>\n\n" if template is families.QWEN3 else ""
    last = f"{thought}Ha<|im_end|>"
    assert trained == ([last] if train_on == "last" else ["Ho<|im_end|>", last])


def test_texts_and_labels_of_a_discriminator(tmp_path):
    rows = [(1, {"prompt": "a", "completion": "b", "label": True}),
            (2, {"prompt": "c", "completion": "d", "label": False})]  # fmt: skip
    facts, table = _write(tmp_path / "t", rows, Reading("comparisons"))
    assert facts.labels == {"true": 1, "false": 1}
    columns = table.take([0, 1])
    assert columns["prompts"] == [["a"], ["c"]] and columns["responses"] == [["b"], ["d"]]
    assert columns["rewards"] == [[1.0], [0.0]]


def test_a_table_is_whole_or_not_there(tmp_path):
    def rows():
        yield 1, ROWS[0]
        raise ValueError("the disk is gone")

    with pytest.raises(ValueError, match="the disk is gone"):
        _write(tmp_path / "t", rows(), Reading("pairs"), character_tokenizer())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        RowTable(tmp_path / "t")


@pytest.mark.parametrize("end", [".jsonl.gz", ".jsonl.zst", ".csv.gz", ".json.zst", ".parquet.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_compressed_files_give_what_the_plain_ones_give(tmp_path, end, encoding):
    rows = [{"prompt": f"Naïve {i}?\u2028", "completion": "Oh, “yes”."} for i in range(3)]
    path, kind = tmp_path / f"rows{end}", end.split(".")[1]
    if kind == "parquet":
        plain = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
        data = plain.getvalue().to_pybytes()
    elif kind == "csv":
        lines = [f'{row["prompt"]},"{row["completion"]}"' for row in rows]
        data = "\n".join(["prompt,completion", *lines]).encode(encoding)
    else:
        dumped = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(dumped) if kind == "jsonl" else f"[{','.join(dumped)}]"
        data = text.encode(encoding)
    if end.endswith("gz"):
        path.write_bytes(gzip.compress(data))
    else:
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(data)
    assert [record for _, record in tables.iter_rows(path)] == rows


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_damaged_compressed_file_is_named(tmp_path, end):
    path = tmp_path / f"rows.jsonl{end}"
    path.write_bytes(gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 9)[:-9])
    with pytest.raises(ValueError, match=rf"rows\.jsonl\{end}: not a whole {end} file"):
        list(tables.iter_rows(path))


def test_a_content_key_is_that_of_the_content(tmp_path):
    for name, text in (("a.jsonl", "{}"), ("b.jsonl", "{}"), ("c.jsonl", "{ }")):
        (tmp_path / name).write_text(text)
    keys = [tables.content_key(tmp_path / f"{name}.jsonl") for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_a_stream_goes_on_where_it_was_and_begins_again_at_the_end(tmp_path):
    """Blocks of 4 of the 10 usable of 11 rows: 4, 4, 2, then the same ones again."""
    tokenizer, reading, begun = character_tokenizer(), Reading("demonstrations"), []
    rows = [{"prompt": f"Name {n}", "completion": "x" if n != 6 else ""} for n in range(11)]

    def read():
        begun.append(1)
        return iter(enumerate(rows, 1))

    def stream(folder):
        folder.mkdir(exist_ok=True)
        encoder = token_encoder(tokenizer, reading)
        return RowStream(read, reading, encoder, lambda n: f"line {n}", folder, 4)

    def lines(of, number):
        table = of.block(number)
        return table.take(range(len(table)))["line"]

    wanted = [[1, 2, 3, 4], [5, 6, 8, 9], [10, 11], [1, 2, 3, 4], [5, 6, 8, 9]]
    whole = stream(tmp_path / "a")
    assert [lines(whole, n) for n in range(5)] == wanted
    assert len(begun) == 2  # the source is read once an epoch
    assert whole.left_out() == "line 7: its last answer is empty\n"
    assert lines(whole, 0) == wanted[0]  # the first one stays
    for number in (4, 3, 1):
        assert lines(stream(tmp_path / "a"), number) == wanted[number]
    assert lines(stream(tmp_path / "b"), 3) == wanted[3]
