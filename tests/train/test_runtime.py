"""How the processes of a run meet and agree, and what is said of one that does not come.

Most tests connect several clients of one process to a real coordination service. The roll call is
tested with real processes here, and whole runs in tests/runs/test_two_processes.py.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest
from jax._src.lib import _jax

from gapo_jax.train import runtime
from gapo_jax.train.runtime import Processes, ProcessMissing, StopRequest, stop_requests


def free_port() -> int:
    """Return a port whose successor is free too."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
            return port
    raise RuntimeError("no two ports in a row are free")


def together(calls) -> list:
    """Make all calls at once; return what they returned or raised, in order."""
    results = [None] * len(calls)

    def run(index, call):
        try:
            results[index] = call()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def connected():
    """A call that returns the `Processes` of a run of `count`, all of them in this process."""
    ends = []

    def connect(count, timeout_s=20.0):
        address = f"127.0.0.1:{free_port()}"
        service = _jax.get_distributed_runtime_service(address, count)
        clients = [
            _jax.get_distributed_runtime_client(
                address, i, missed_heartbeat_callback=lambda *status: None
            )
            for i in range(count)
        ]
        together([client.connect for client in clients])
        ends.append((service, clients))
        return [Processes(i, count, timeout_s, client) for i, client in enumerate(clients)]

    yield connect
    for service, clients in ends:
        together([client.shutdown for client in clients])
        service.shutdown()


def test_one_process_meets_nobody():
    alone = Processes()
    assert alone.first and alone.gather("load", {"a": 1}) == [{"a": 1}]
    alone.leave("nobody listens")


def test_every_process_gets_what_every_process_gave(connected):
    all_three = connected(3)
    for stage in range(12):
        values = [[stage, each.index] for each in all_three]
        calls = [functools.partial(each.gather, "s", v) for each, v in zip(all_three, values)]
        assert together(calls) == [values] * 3
    said = zip(all_three, ("", "b", "c"))
    words = together([functools.partial(each.first_word, "word", word) for each, word in said])
    assert words == ["b", "b", "b"]
    # What all have read is deleted: a run of days fills nothing.
    client = all_three[0]._client
    assert len(client.key_value_dir_get("gapo_jax")) <= 2 * 3


def test_long_values_pass_in_pieces(connected, monkeypatch):
    monkeypatch.setattr(runtime, "_VALUE_BYTES", 10)
    two = connected(2)
    text = "über " * 30
    assert (
        together([lambda each=each: each.gather("files", text) for each in two])
        == [[text, text]] * 2
    )


def test_a_process_that_stays_away_is_named_with_the_stage(connected):
    three = connected(3, timeout_s=0.5)
    three[0].names = three[1].names = ["a", "b", "c"]
    said = together([lambda each=each: each.gather("load") for each in three[:2]])
    for error in said:
        assert isinstance(error, ProcessMissing)
        assert "process 2 (c) of 3 did not come" not in str(error)
        assert str(error).startswith("process 2 (c) did not come to the stage 'load' within 0 s")


def test_a_process_at_another_stage_is_named(connected):
    two = connected(2)
    said = together([lambda: two[0].gather("load"), lambda: two[1].gather("data")])
    assert "process 1 (machine unknown) did not come to the stage 'load'" in str(said[0])
    assert "process 0 (machine unknown) did not come to the stage 'data'" in str(said[1])


def test_a_process_that_ends_with_an_error_says_so_at_the_next_stage(connected, monkeypatch):
    monkeypatch.setattr(runtime, "_REPLY_S", 0.2)
    three = connected(3)
    three[0].names = three[1].names = ["a", "b", "c"]
    start = time.monotonic()
    said = together([
        lambda: three[0].gather("load"),
        lambda: (time.sleep(1), three[1].gather("load")),  # comes when the leaving one is gone
        lambda: three[2].leave("no weights"),
    ])  # fmt: skip
    assert time.monotonic() - start < 10 and said[2] is None
    for error in said[:2]:
        wanted = "process 2 (c) of 3 has ended before the stage 'load': no weights"
        assert isinstance(error, ProcessMissing) and str(error) == wanted


ROLL = """
import sys
from gapo_jax.train.runtime import ProcessMissing, join
address, count, index, seconds = sys.argv[1], *map(int, sys.argv[2:])
try:
    processes = join(address, count, index, seconds)
except (ProcessMissing, ValueError) as error:
    sys.exit(f"error: {error}")
import jax
print(processes.names, len(jax.devices()))
"""


def call_roll(count: int, present: tuple[int, ...], seconds: int, port: int) -> list:
    """Start some of `count` processes; return (exit status, stdout, stderr) of each."""
    command = [sys.executable, "-c", ROLL, f"127.0.0.1:{port}", str(count)]
    started = [
        subprocess.Popen([*command, str(index), str(seconds)], stdout=-1, stderr=-1, text=True)
        for index in present
    ]
    ended = [(*each.communicate(timeout=60), each.returncode) for each in started]
    return [(status, out, err) for out, err, status in ended]


def test_processes_meet_by_the_service_of_jax():
    for status, out, err in call_roll(2, (0, 1), 30, free_port()):
        assert status == 0, err
        assert out.strip() == f"{[socket.gethostname()] * 2} 2"


def test_a_process_that_never_comes_is_named_by_all_others():
    start = time.monotonic()
    for status, _, err in call_roll(3, (0, 1), 2, free_port()):
        assert status == 1
        (line,) = err.splitlines()[-1:]
        assert line.startswith(
            "error: process 2 (machine unknown) did not come to the stage 'join'"
        )
    assert time.monotonic() - start < 30


def test_a_first_process_that_never_comes_is_named_by_its_address():
    port = free_port()
    ((status, _, err),) = call_roll(2, (1,), 1, port)
    assert status == 1 and f"process 0 (127.0.0.1:{port + 1})" in err and "--host_timeout_s" in err


def test_an_address_that_is_taken_or_foreign_is_refused():
    port = free_port()
    with socket.create_server(("127.0.0.1", port + 1)):
        with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1:{port + 1} .Address alr"):
            runtime.join(f"127.0.0.1:{port}", 2, 0, 5.0)
    with pytest.raises(ValueError, match="cannot listen at 192.0.2.1:"):
        runtime.join(f"192.0.2.1:{port}", 2, 0, 5.0)


def test_the_machine_may_know_who_is_expected(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t-w-0,t-w-1")
    assert Processes(0, 3).names == ["t-w-0", "t-w-1", "machine unknown"]


@pytest.mark.parametrize(
    ("coordinator", "count", "index"), [("", 2, 0), ("here", 2, 0), ("here:1", 2, 2)]
)
def test_flags_that_describe_no_process_are_refused(coordinator, count, index):
    with pytest.raises(ValueError, match="--coordinator HOST:PORT"):
        runtime.join(coordinator, count, index, 1.0)


def test_signals_are_remembered_and_a_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert isinstance(stop, StopRequest) and not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop and stop.signal_name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_wait_for_the_service_can_be_interrupted(connected):
    """The barrier is C++ code, which Python's signal handlers do not reach."""
    two = connected(2)
    # A run in this process may have left a handler that only notes the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    # Not interrupted, the wait would end with the name of the process that is missing.
    try:
        with pytest.raises(KeyboardInterrupt):
            two[0].gather("load")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert jax.process_count() == 1  # nothing of this touched the process's own JAX
    two[1]._client.wait_at_barrier(runtime._key(0), 5000)  # lets the waiting thread go
