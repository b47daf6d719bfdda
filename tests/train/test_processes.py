"""How the processes of a run meet and agree, and what is said of one that does not come.

Threads stand for processes here; tests/runs/test_two_processes.py has real ones.
"""

from __future__ import annotations

import socket
import threading
import time

import pytest

from gapo_jax.train import processes
from gapo_jax.train.processes import Processes, ProcessMissing


def free_port() -> int:
    """Return a port whose successor is free: the one at which processes meet."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1] - 1


def meet(count: int, timeout_s: float = 5.0, absent: tuple[int, ...] = ()):
    """Let `count` processes meet; return what came of each: its `Processes`, or the error."""
    port, found = free_port(), {}

    def come(index: int) -> None:
        mine = Processes(index, count, timeout_s)
        try:
            processes.meet(mine, "127.0.0.1", port + 1)
            found[index] = mine
        except ProcessMissing as error:
            mine.close()
            found[index] = error

    threads = [
        threading.Thread(target=come, args=(index,))
        for index in range(count)
        if index not in absent
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def together(found, function) -> dict[int, object]:
    """Call `function(hosts)` in every process; return what each returned or raised."""
    results: dict[int, object] = {}

    def call(index: int) -> None:
        try:
            results[index] = function(found[index])
        except ProcessMissing as error:
            results[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Give every thread a host name of its own: that of its first call."""
    numbers = iter(range(100))
    monkeypatch.setattr(socket, "gethostname", lambda: f"host-{next(numbers)}")


def test_one_process_meets_nobody():
    alone = Processes()
    assert alone.first and alone.gather("load", {"a": 1}) == [{"a": 1}]


def test_every_process_gets_what_every_process_gave():
    found = meet(3)
    assert sorted(found[2].names) == ["host-0", "host-1", "host-2"]
    values = together(found, lambda each: each.gather("stop", {"from": each.index}))
    assert values == {i: [{"from": 0}, {"from": 1}, {"from": 2}] for i in range(3)}
    for each in found.values():
        each.close()


def test_a_process_that_never_comes_is_named_in_time():
    start = time.monotonic()
    found = meet(3, timeout_s=0.5, absent=(2,))
    assert time.monotonic() - start < 5
    for index in (0, 1):
        assert "process 2 (host unknown) of 3 did not come to the stage 'join'" in str(found[index])


def test_a_first_process_that_never_comes_is_named_by_its_address():
    found = meet(2, timeout_s=0.3, absent=(0,))
    assert "process 0 (127.0.0.1:" in str(found[1]) and "--host_timeout_s" in str(found[1])


def test_the_machine_may_know_who_is_expected(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t-w-0,t-w-1")
    assert "process 1 (t-w-1)" in str(meet(2, timeout_s=0.3, absent=(1,))[0])


def test_a_process_that_ends_or_stays_away_later_is_named_with_the_stage():
    found = meet(3, timeout_s=0.5)
    found[1].close()  # as the system closes the lines of a process that has ended
    left = {index: found[index] for index in (0, 2)}
    said = together(left, lambda each: each.gather("load"))
    name = found[0].names[1]
    for error in said.values():
        assert isinstance(error, ProcessMissing)
        assert f"process 1 ({name}) of 3 did not come to the stage 'load'" in str(error)
    for each in left.values():
        each.close()


@pytest.mark.parametrize(
    ("coordinator", "count", "index"), [("", 2, 0), ("here", 2, 0), ("here:1", 2, 2)]
)
def test_flags_that_describe_no_process_are_refused(coordinator, count, index):
    with pytest.raises(ValueError, match="--coordinator HOST:PORT"):
        processes.join(coordinator, count, index, 1.0)
