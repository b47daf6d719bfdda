"""Files are the old or the new one, never half of it; lines end at a line feed alone."""

import errno
import json
import os
import subprocess
import sys

import pytest

from gapo_jax import io

ROWS = [{"text": "one\u2028two\x85three", "n": 1.5}, {"text": "\ud800 half of a pair", "n": None}]


def test_rows_come_back_whatever_their_characters(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert io.write_jsonl(path, iter(ROWS)) == 2
    assert io.read_jsonl(path) == ROWS
    assert path.read_bytes().count(b"\n") == 2
    io.write_json(tmp_path / "one.json", ROWS)
    assert io.read_json(tmp_path / "one.json") == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_utf_encoding_is_read(tmp_path, encoding):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": "é\u2028"}\r\n\n{"b": 2}'.encode(encoding))
    assert list(io.iter_jsonl(path)) == [(1, {"a": "é\u2028"}), (3, {"b": 2})]
    path.write_bytes("[1]".encode(encoding))
    assert io.read_json(path) == [1]


def test_a_garbled_line_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    for line, message in (
        (b"{", "not valid JSON"),
        (b"[1]", "wanted a JSON object, got list"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ):
        path.write_bytes(b"{}\n" + line + b"\n{}\n")
        with pytest.raises(ValueError, match=f"rows.jsonl, line 2: {message}"):
            io.read_jsonl(path)
        assert [isinstance(row, str) for _, row in io.scan_jsonl(path)] == [False, True, False]
    path.write_bytes("{}\n".encode("utf-16") + b"\x00")
    with pytest.raises(ValueError, match="rows.jsonl: not valid UTF-16"):
        io.read_jsonl(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="rows.jsonl is not JSON"):
        io.read_json(path)


def test_a_torn_last_line_is_left_out_on_demand(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert len(list(io.iter_jsonl(path))) == 2
    assert list(io.iter_jsonl(path, drop_torn=True)) == [(1, {"a": 1})]


def test_an_error_leaves_the_old_file(tmp_path):
    def rows():
        yield {"a": 1}
        raise KeyError("made while it is written")

    path = tmp_path / "rows.jsonl"
    io.write_text(path, "old")
    with pytest.raises(KeyError):
        io.write_jsonl(path, rows(), sync=True)
    with pytest.raises(TypeError):
        io.write_json(path, {"a": object()})
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_folder_appears_whole_and_leftovers_of_killed_processes_go(tmp_path):
    folder = tmp_path / "export"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getppid()):
        (tmp_path / f".export.{pid}.partial").mkdir()
    for text in ("first", "second"):
        with io.replace_folder(folder) as scratch:
            (scratch / "file").write_text(text)
        assert (folder / "file").read_text() == text
    with pytest.raises(RuntimeError), io.replace_folder(folder) as scratch:
        raise RuntimeError
    assert (folder / "file").read_text() == "second"
    # Another process that lives may be writing it.
    assert sorted(os.listdir(tmp_path)) == [f".export.{os.getppid()}.partial", "export"]


def test_a_line_of_a_growing_file_refuses_what_is_not_finite():
    assert io.json_line({"a": "é"}) == '{"a": "é"}\n'
    assert json.loads(io.json_line({"a": 1e300})) == {"a": 1e300}
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.json_line({"a": float("nan")}, allow_nan=False)


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "the right to write"),
        (errno.EACCES, "chmod"),
        (errno.ENOTDIR, "Mend that"),
    ],
)
def test_the_way_out_fits_the_error(number, wanted):
    said = io.way_out(OSError(number, "some error"))
    assert wanted in said and ("space" in said) == (number == errno.ENOSPC)
