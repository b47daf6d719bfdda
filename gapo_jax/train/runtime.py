"""What surrounds a run: the signals that stop it and the processes that share it.

SIGTERM and Ctrl-C only set a flag, which the run reads at its next safe point, so that nothing is
torn down in between.

Several processes meet at JAX's coordination service, which process 0 hosts. Its barriers have a
time limit and its key-value store carries the small JSON values that all processes must agree on;
arrays never pass through it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import jax
from jax._src import distributed
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

# Longer values are cut: the service sends no heartbeats while it handles a very long one.
_VALUE_BYTES = 1 << 22
_REPLY_S = 10.0  # how much longer than the process that decides another one waits for its word


class RunInterrupted(Exception):
    """The run was asked to stop; what is needed to continue it is saved."""


class RunStopped(Exception):
    """The run stopped itself (collapse, or a value that is not finite).

    Attributes:
        saved: the number of rounds of the saved state, or None if nothing was saved.
        start_is_good: whether the state that the round began with is good.
    """

    def __init__(self, reason: str, *, start_is_good: bool = True) -> None:
        super().__init__(reason)
        self.saved: int | None = None
        self.start_is_good = start_is_good


class StopRequest:
    """Remembers that a signal asked the run to stop."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; a second Ctrl-C raises KeyboardInterrupt."""
        if self.signal_name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a `StopRequest` while the block runs."""
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ProcessMissing(RuntimeError):
    """A process did not come to a stage in time, or has ended; the message names both."""


class Processes:
    """The processes of one run. Made by `join`, or `Processes()` for a run of one process.

    All processes call the same methods with the same stages in the same order.
    """

    def __init__(
        self, index: int = 0, count: int = 1, timeout_s: float = 900.0, client: Any = None
    ):
        self.index, self.count, self.timeout_s = index, count, timeout_s
        self.names = [_expected_name(i) for i in range(count)]
        self._client = client
        self._stages = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes the files of the run."""
        return self.index == 0

    def gather(self, stage: str, value: Any = None) -> list[Any]:
        """Return the JSON value that every process gave, by process; all come to `stage` first.

        Raises:
            ProcessMissing: a process did not come within `timeout_s`, or has ended.
        """
        if self.count == 1:
            return [value]
        key = self._put({"stage": stage, "value": value})
        try:
            _interruptible(self._client.wait_at_barrier, key, int(self.timeout_s * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise ProcessMissing(self._explain(stage, self._collect(key), str(error))) from None
        given = self._collect(key)
        if problem := self._explain(stage, given):
            raise ProcessMissing(problem)
        # Everybody has read the stage before, as everybody has come to this one.
        if self._stages > 1:
            self._client.key_value_delete(f"{_key(self._stages - 2)}/{self.index}")
        return [given[i]["value"] for i in range(self.count)]

    def first_word(self, stage: str, word: str) -> str:
        """Return the word of the first process whose word is not empty, or ""; as `gather`."""
        return next(filter(None, self.gather(stage, word)), "")

    def leave(self, reason: str) -> None:
        """Tell the other processes that this one ends with an error.

        They learn of it at their next stage; without it they would notice the missing heartbeats
        of this process after a minute or more.
        """
        if self.count == 1:
            return
        try:
            key = self._put({"ended": reason})
            self._client.wait_at_barrier(key, int(_REPLY_S * 1000))
            if self.first:  # the service ends with this process: the others need it to read
                time.sleep(1.0)
        except jax.errors.JaxRuntimeError:
            pass  # nobody else came, or the service has ended

    def _put(self, record: object) -> str:
        """Store what this process says at its next stage and return the key of the stage."""
        key = _key(self._stages)
        self._stages += 1
        text = json.dumps(record)
        pieces = [text[i : i + _VALUE_BYTES] for i in range(0, len(text), _VALUE_BYTES)]
        for number, piece in enumerate(pieces):
            name = f"{key}/{self.index}/{number:04d}"
            self._client.key_value_set(name, piece)
        return key

    def _collect(self, key: str) -> dict[int, Any]:
        """Return what was stored for a stage, by process."""
        texts: dict[int, str] = {}
        try:
            for name, piece in sorted(self._client.key_value_dir_get(key)):
                index = int(name.split("/")[-2])
                texts[index] = texts.get(index, "") + piece
        except jax.errors.JaxRuntimeError:
            pass  # the service has ended, and process 0 with it
        return {index: json.loads(text) for index, text in texts.items()}

    def _explain(self, stage: str, given: dict[int, Any], error: str = "") -> str:
        """Return what is wrong at a stage: who ended, who is missing, or "" if nothing is."""
        ended = {i: record["ended"] for i, record in given.items() if "ended" in record}
        if ended:
            return "; ".join(
                f"process {i} ({self.names[i]}) of {self.count} has ended before the stage "
                f"{stage!r}: {reason}"
                for i, reason in sorted(ended.items())
            )
        here = [i for i, record in given.items() if record["stage"] == stage]
        missing = [i for i in range(self.count) if i not in here]
        if missing and given:
            return _missing_message(missing, self.names, stage, self.timeout_s)
        if error:  # the service itself does not answer
            return (
                f"process 0 ({self.names[0]}) of {self.count} does not answer at the stage "
                f"{stage!r}: its own log says why ({error.splitlines()[0]})"
            )
        return ""


def join(coordinator: str, count: int, index: int, timeout_s: float) -> Processes:
    """Connect this process with the others through the service at `coordinator` (HOST:PORT).

    To be called before any other use of JAX. Process 0 hosts the service and listens at that
    address only, or at JAX_COORDINATOR_BIND_ADDRESS, where the address that others use is not its
    own. PORT + 1 is used too, for the roll call.

    Raises:
        ProcessMissing: not all processes came within `timeout_s`.
        ValueError: the flags do not describe one process of several, or nothing can listen there.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or count < 1 or not 0 <= index < count:
        raise ValueError(
            "wanted --coordinator HOST:PORT, --num_processes N and --process_id from 0 to N - 1, "
            f"got {coordinator!r}, {count} and {index}"
        )
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator)
    bind_host, _, bind_port = bind.rpartition(":")
    seconds = max(1, int(timeout_s))
    if index == 0:
        _require_free(bind_host, int(bind_port))
    with _roll_call(
        f"{host}:{int(port) + 1}", f"{bind_host}:{int(bind_port) + 1}", count, index, seconds
    ):
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=seconds,
            # Of a process that ended without a word, as by SIGKILL, the service tells after this.
            heartbeat_timeout_seconds=max(10, min(100, seconds)),
            coordinator_bind_address=bind,
        )
    processes = Processes(index, count, timeout_s, distributed.global_state.client)
    processes.names = processes.gather("join", socket.gethostname())
    return processes


@contextlib.contextmanager
def _roll_call(address: str, bind: str, count: int, index: int, seconds: int) -> Iterator[None]:
    """Wait until all processes have registered with a service of its own; it ends with the block.

    `jax.distributed.initialize` alone cannot name a process that never comes: it gives the service
    no time limit to register, so every process gives up first and is aborted. Here the service has
    the limit. Its list of missing processes is found in the C++ log only, because the status that
    the client reports to Python cannot be converted (jaxlib 0.10.2).

    Raises:
        ProcessMissing: not all processes came within `seconds`.
    """
    service = None
    with _captured_stderr() as log:
        if index == 0:
            service = _jax.get_distributed_runtime_service(
                bind, count, cluster_register_timeout=seconds
            )
        elif not _answers(address, seconds):
            raise ProcessMissing(_missing_message([0], {0: address}, "join", seconds))
        client = _jax.get_distributed_runtime_client(
            address,
            index,
            init_timeout=seconds + int(_REPLY_S),
            shutdown_timeout=seconds,
            # Any callback at all keeps the client from aborting the process.
            missed_heartbeat_callback=lambda *status: None,
        )
        try:
            _interruptible(client.connect)
            registered = True
        except RuntimeError:
            registered = False
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.shutdown()  # logs why connecting failed
    if not registered:
        lists = re.findall(r"timed out task names:\n((?:\d+\n)+)", log.text)
        missing = sorted({int(i) for names in lists for i in names.split()})
        if not missing:
            print(log.text, file=sys.stderr)
        names = [_expected_name(i) for i in range(count)]
        raise ProcessMissing(_missing_message(missing, names, "join", seconds))
    yield
    if service is not None:
        service.shutdown()


class _Captured:
    text = ""


@contextlib.contextmanager
def _captured_stderr() -> Iterator[_Captured]:
    """Collect what is written to the file descriptor of stderr, by C++ code too."""
    captured = _Captured()
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            captured.text = file.read().decode("utf-8", "replace")


def _require_free(host: str, port: int) -> None:
    """Raise ValueError if this machine cannot listen at HOST:PORT and the port after it.

    The service would crash the process there (jaxlib 0.10.2).
    """
    for each in (port, port + 1):
        try:
            socket.create_server((host, each)).close()
        except OSError as error:
            raise ValueError(
                f"process 0 cannot listen at {host}:{each} ({error.strerror}): --coordinator wants "
                "an address of its machine, with a port that is free like the port after it"
            ) from None


def _answers(address: str, seconds: float) -> bool:
    """Return whether something listens at HOST:PORT within `seconds`."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)


def _interruptible(call: Callable[..., object], *arguments: object) -> None:
    """Call blocking C++ code in a thread, so that Ctrl-C interrupts the wait for it."""
    done: concurrent.futures.Future[object] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(call(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    done.result()


def _key(stage: int) -> str:
    return f"gapo_jax/{stage:09d}"


def _expected_name(index: int) -> str:
    """Return the name of a process before it has given it, where the machine knows."""
    names = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return names[index] if index < len(names) and names[index] else "machine unknown"


def _missing_message(missing: Sequence[int], names: Any, stage: str, timeout_s: float) -> str:
    who = ", ".join(f"process {i} ({names[i]})" for i in missing) or "a process"
    return (
        f"{who} did not come to the stage {stage!r} within {timeout_s:.0f} s, or has ended: its "
        "own log says why. Start all processes with the same command and their own --process_id; "
        "--host_timeout_s sets the limit"
    )


def stop_between_batches(
    stop: StopRequest, processes: Processes, advance: Callable[[int], None]
) -> Callable[[int], None]:
    """Return `advance` for a phase that samples, which ends the run (RunInterrupted) after a batch
    if any process was asked to stop. Such a phase writes its file at its end or not at all."""

    def on_batch(done: int) -> None:
        advance(done)
        if signal_name := processes.first_word("batch", stop.signal_name):
            raise RunInterrupted(signal_name)

    return on_batch
