"""The processes of a run: how they find each other, agree, and say who is missing.

JAX's own service ends every process without a word about which one never came. So the processes
first meet over plain sockets (at the coordinator's port plus one), where every stage has a time
limit and whoever is missing is named; the same line later carries the small things that all
processes must agree on. Arrays never pass here.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, TextIO

import jax


class ProcessMissing(RuntimeError):
    """A process did not come to a stage in time; the message names it and the stage."""


class Processes:
    """The processes of one run; without `join` there is only this one."""

    def __init__(self, index: int = 0, count: int = 1, timeout_s: float = 900.0):
        self.index, self.count, self.timeout_s = index, count, timeout_s
        self.names: list[str] = [_expected(i) for i in range(count)]
        # Of the first process: the line to every other one. Of the others: the one to the first.
        self._lines: dict[int, TextIO] = {}
        self._sockets: dict[int, socket.socket] = {}

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes what a run leaves."""
        return self.index == 0

    def gather(self, stage: str, value: Any = None) -> list[Any]:
        """Return what every process gave (JSON-ready), by process; all come to `stage` first.

        Raises:
            ProcessMissing: a process did not come within `timeout_s`, or has ended.
        """
        if self.count == 1:
            return [value]
        if self.first:
            return self._collect(stage, value)
        line = self._lines[0]
        try:
            _write(line, {"stage": stage, "value": value})
            # The first process waits for the others; it needs a moment longer to say so.
            self._sockets[0].settimeout(self.timeout_s + 10)
            answer = _read(line)
        except OSError:
            answer = None
        if answer is None:
            raise ProcessMissing(self._message([0], stage))
        if answer["missing"]:
            raise ProcessMissing(self._message(answer["missing"], stage))
        return answer["values"]

    def first_word(self, stage: str, word: str) -> str:
        """Return the first of the processes' words that is not empty, or "", in every process; a
        stage as in `gather`."""
        return next(filter(None, self.gather(stage, word)), "")

    def _collect(self, stage: str, value: Any) -> list[Any]:
        values, missing = [value] + [None] * (self.count - 1), []
        deadline = time.monotonic() + self.timeout_s
        for other, line in self._lines.items():
            try:
                self._sockets[other].settimeout(max(0.1, deadline - time.monotonic()))
                found = _read(line)
            except OSError:
                found = None
            if found is None or found["stage"] != stage:
                missing.append(other)
            else:
                values[other] = found["value"]
        for other, line in self._lines.items():
            if other not in missing:
                _write(line, {"missing": missing, "values": [] if missing else values})
        if missing:
            raise ProcessMissing(self._message(missing, stage))
        return values

    def _message(self, missing: list[int], stage: str) -> str:
        who = ", ".join(f"process {i} ({self.names[i]})" for i in missing)
        return (
            f"{who} of {self.count} did not come to the stage {stage!r} within "
            f"{self.timeout_s:.0f} s, or has ended: its own log says why. Start all processes with "
            "the same command and their own --process_id; --host_timeout_s sets the limit"
        )

    def close(self) -> None:
        """Close the lines to the other processes."""
        for line in self._lines.values():
            line.close()
        for each in self._sockets.values():
            each.close()
        self._lines, self._sockets = {}, {}


def join(coordinator: str, count: int, index: int, timeout_s: float) -> Processes:
    """Meet the other processes, then start JAX's service on `coordinator` (HOST:PORT).

    To be called before any other use of jax.

    Raises:
        ProcessMissing: not all came within `timeout_s`.
        ValueError: the flags do not describe one process of several.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or count < 1 or not 0 <= index < count:
        raise ValueError(
            "wanted --coordinator HOST:PORT, --num_processes N and --process_id from 0 to N - 1, "
            f"got {coordinator!r}, {count} and {index}"
        )
    processes = Processes(index, count, timeout_s)
    try:
        meet(processes, host, int(port) + 1)
    except ProcessMissing:
        processes.close()
        raise
    jax.distributed.initialize(
        coordinator, count, index, initialization_timeout=max(1, int(timeout_s))
    )
    return processes


def meet(processes: Processes, host: str, port: int) -> None:
    """Open the lines between the first process, which listens at HOST:PORT, and the others.

    Raises:
        ProcessMissing: not all came in time.
    """
    if processes.first:
        _receive(processes, port)
    else:
        _call(processes, host, port)
    processes.names = processes.gather("join", socket.gethostname())


def _receive(processes: Processes, port: int) -> None:
    """Take the calls of all other processes."""
    deadline = time.monotonic() + processes.timeout_s
    with socket.create_server(("", port), backlog=processes.count) as server:
        while len(processes._lines) < processes.count - 1:
            try:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                caller, _ = server.accept()
                caller.settimeout(max(0.1, deadline - time.monotonic()))
                line = caller.makefile("rw", encoding="utf-8")
                hello = _read(line)
            except OSError:
                missing = [i for i in range(1, processes.count) if i not in processes._lines]
                for other in processes._lines.values():
                    _write(other, {"missing": missing, "values": []})
                raise ProcessMissing(processes._message(missing, "join")) from None
            if hello is not None:
                processes._sockets[hello["process"]] = caller
                processes._lines[hello["process"]] = line


def _call(processes: Processes, host: str, port: int) -> None:
    """Call the first process until it answers."""
    deadline = time.monotonic() + processes.timeout_s
    while True:
        try:
            line = socket.create_connection((host, port), timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                processes.names[0] = f"{host}:{port}"
                raise ProcessMissing(processes._message([0], "join")) from None
            time.sleep(0.2)
    processes._sockets = {0: line}
    processes._lines = {0: line.makefile("rw", encoding="utf-8")}
    _write(processes._lines[0], {"process": processes.index})


def _expected(index: int) -> str:
    """Return the name of a host before it has given it, where the machine knows."""
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return names[index] if index < len(names) and names[index] else "host unknown"


def _write(line: TextIO, record: Any) -> None:
    line.write(json.dumps(record) + "\n")
    line.flush()


def _read(line: TextIO) -> Any:
    text = line.readline()
    return json.loads(text) if text else None
