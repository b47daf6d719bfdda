"""Verification by worker processes: the same verdicts, no JAX in them, and a clean end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gapo_jax.constraints.verifiers import Verdicts, VerifierPool, make_request
from gapo_jax.evaluate.accuracy import verify
from gapo_jax.types import Constraint, PromptRow

NO_COMMA, WORDS = (
    Constraint("punctuation:no_comma"),
    Constraint("length_constraints:number_words", {"num_words": 3, "relation": "at least"}),
)


@pytest.fixture(scope="module")
def pool():
    pool = VerifierPool(2)
    yield pool
    pool.close()


def _rows(count, *constraints):
    return [PromptRow(f"k{i}", f"p{i}", "t", constraints) for i in range(count)]


def test_workers_find_what_this_process_finds(pool):
    texts = ["One, two", "a long walk by the sea", "", "**yes**, I do\nno comma here", "x " * 9] * 8
    rows = _rows(len(texts), NO_COMMA, WORDS)
    here = verify(rows, texts)
    assert verify(rows, texts, pool) == here
    assert {verdict.strict for verdict in here} == {
        (False, False), (True, True), (False, True)
    }  # fmt: skip


def test_an_error_names_its_row_wherever_it_was_made(pool):
    rows = _rows(20, NO_COMMA)
    rows[13] = PromptRow("odd", "p", "t", (Constraint("no:such_type"),))
    messages = []
    for verifiers in (None, pool):
        with pytest.raises(ValueError, match=r"row 14 \(key 'odd'\)") as caught:
            verify(rows, ["text"] * 20, verifiers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_workers_have_no_jax_and_leave_signals_to_their_parent(pool):
    pool.submit([make_request("a", (NO_COMMA,), "p")])()
    pids = list(pool._pool._processes)
    assert pids
    for pid in pids:
        maps = Path(f"/proc/{pid}/maps")
        assert not maps.exists() or "jaxlib" not in maps.read_text()
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert pool.submit([make_request("a, b", (NO_COMMA,), "p")])() == [Verdicts((False,), (False,))]


ALONE = """
import os, signal
from gapo_jax.constraints.verifiers import VerifierPool, make_request
from gapo_jax.records import Constraint
if __name__ == "__main__":
    pool = VerifierPool(1)
    pool.submit([make_request("a", (Constraint("punctuation:no_comma"),), "p")])()
    print(*pool._pool._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    (worker,) = map(int, done.stdout.split())
    for _ in range(400):
        with contextlib.suppress(FileNotFoundError):  # no /proc, or gone meanwhile
            if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
                return
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlives its parent")
