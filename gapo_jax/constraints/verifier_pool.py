"""Verification in worker processes, beside the process that holds the devices.

The workers are started anew (`spawn`), since a process with JAX's threads must not be forked, and
import this package's constraints alone: no JAX. Verdicts are functions of their text, so they are
the same on any number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from gapo_jax.constraints.registry import check, check_loose

# Texts that a worker takes at a time: sending a task costs a worker about as much as judging one.
_AT_ONCE = 8


class Question(NamedTuple):
    """A response and the constraints it is held against, as `check` takes them."""

    response: str
    ids: tuple[str, ...]
    kwargs: tuple[dict[str, Any], ...]
    prompt: str


class Judged(NamedTuple):
    """Strict and loose verdicts, one a constraint; or the error that there was instead."""

    strict: tuple[bool, ...] = ()
    loose: tuple[bool, ...] = ()
    error: Exception | None = None


def question(response: str, constraints: Sequence[Any], prompt: str) -> Question:
    """Ask whether a response follows `constraints` (`records.Constraint`)."""
    ids = tuple(constraint.id for constraint in constraints)
    return Question(response, ids, tuple(dict(c.kwargs) for c in constraints), prompt)


def judge(asked: Question) -> Judged:
    """Return the verdicts on one response."""
    arguments: tuple[str, Sequence[str], Sequence[Mapping[str, Any]]] = asked[:3]
    try:
        strict = check(*arguments, prompt=asked.prompt)
        loose = check_loose(*arguments, prompt=asked.prompt)
    except (ValueError, TypeError, KeyError) as error:
        return Judged(error=error)
    return Judged(tuple(strict), tuple(loose))


def _begin() -> None:
    """Leave signals to the parent, which ends its workers, and end when it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class VerifierPool:
    """`judge` on `workers` processes, which start with the first question; with 0 in this one."""

    def __init__(self, workers: int = 0) -> None:
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin)

    def ask(self, asked: Sequence[Question]) -> Callable[[], list[Judged]]:
        """Begin with the questions; return a function that gives the answers in their order, and
        waits for them as far as needed. Without workers all is done then."""
        if self._pool is None:
            return lambda: [judge(one) for one in asked]
        found = self._pool.map(judge, asked, chunksize=_AT_ONCE)
        return lambda: list(found)

    def close(self) -> None:
        """End the workers; questions that nobody waits for are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
