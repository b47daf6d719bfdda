"""One run at a time in a workdir: who holds it is said, and a dead holder holds nothing."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from gapo_jax.train.lock import LOCK, locked

HOLD = """
import pathlib, sys, time
from gapo_jax.train.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_run_says_who_has_the_workdir(holder, tmp_path):
    said = rf"run is in use by process {holder.pid} on {socket.gethostname()} \(since .*--workdir"
    with pytest.raises(ValueError, match=said):
        with locked(tmp_path / "run"):
            pass
    assert (tmp_path / "run" / LOCK).exists()  # the refused one has left it alone


def test_what_a_killed_run_held_is_free(holder, tmp_path, caplog):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with caplog.at_level("INFO", logger="gapo_jax"), locked(tmp_path / "run"):
        record = json.loads((tmp_path / "run" / LOCK).read_text())
        assert (record["process"], record["machine"]) == (os.getpid(), socket.gethostname())
    assert f"process {holder.pid}" in caplog.text


def test_a_run_leaves_no_lock_and_no_empty_folder(tmp_path):
    with locked(tmp_path / "new" / "run"):
        pass
    assert not (tmp_path / "new" / "run").exists()
    with locked(tmp_path):
        (tmp_path / "metrics.jsonl").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "new"]
    with pytest.raises(OSError), locked(tmp_path / "metrics.jsonl" / "run"):
        pass


def test_a_lock_file_of_garbage_names_nobody(tmp_path):
    (tmp_path / LOCK).write_text("garbage")
    with locked(tmp_path):
        pass
