"""SIGTERM and Ctrl-C ask a run to stop at the next safe point; nothing is torn down in between."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from gapo_jax.train.processes import Processes


class RunInterrupted(Exception):
    """The run was asked to stop; what is needed to continue it is saved."""


class RunStopped(Exception):
    """The run stopped itself (collapse or a value that is not finite). `saved` counts the rounds of
    the state that is saved; it is None where nothing is."""

    saved: int | None = None


class StopRequest:
    """Remembers that a signal asked the run to stop."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take note of a signal; a second Ctrl-C interrupts at once."""
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
