"""Verification in worker processes, beside the process that holds the devices.

The workers are started anew (`spawn`), since a process with JAX's threads must not be forked, and
import only this folder: no JAX. A verdict is a function of its text, so it is the same on any
number of workers. It fails closed: a response that takes longer than `TIME_LIMIT_S`, or whose
worker dies, counts as violating all its constraints.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from gapo_jax.constraints import plugins
from gapo_jax.constraints.registry import check, check_loose
from gapo_jax.records import Constraint, JsonObject

# Of all verdicts on one response; the built-in checks, bounded by their text, end long before.
TIME_LIMIT_S = 120.0
# Responses per task of a worker: sending a task costs a worker about as much as one response.
_CHUNK = 8

log = logging.getLogger("gapo_jax")


class VerificationRequest(NamedTuple):
    """A response and the constraints to verify, as `check` takes them."""

    response: str
    ids: tuple[str, ...]
    kwargs: tuple[JsonObject, ...]
    prompt: str


class Verdicts(NamedTuple):
    """Strict and loose verdicts, one per constraint; or the error that occurred instead."""

    strict: tuple[bool, ...] = ()
    loose: tuple[bool, ...] = ()
    error: Exception | None = None


def make_request(
    response: str, constraints: Iterable[Constraint], prompt: str
) -> VerificationRequest:
    """Return the request to verify a response against constraints."""
    constraints = tuple(constraints)
    ids = tuple(constraint.id for constraint in constraints)
    kwargs = tuple(dict(constraint.kwargs) for constraint in constraints)
    return VerificationRequest(response, ids, kwargs, prompt)


def _all_violated(request: VerificationRequest, reason: str) -> Verdicts:
    log.warning("a response counts as violating all of %s: %s", list(request.ids), reason)
    none = (False,) * len(request.ids)
    return Verdicts(none, none)


def verify_response(request: VerificationRequest) -> Verdicts:
    """Return the verdicts on one response."""
    response, ids, kwargs, prompt = request
    try:
        with plugins.time_limit(TIME_LIMIT_S):
            # Both forms in one task: sending the text to a worker costs more than most verdicts.
            strict = check(response, ids, kwargs, prompt=prompt)
            loose = check_loose(response, ids, kwargs, prompt=prompt)
    except (ValueError, TypeError, KeyError) as error:
        return Verdicts(error=error)
    except plugins.TimeUp as error:
        return _all_violated(request, str(error))
    return Verdicts(tuple(strict), tuple(loose))


def follow_parent() -> None:
    """Leave signals to the parent of a worker, which ends its workers; end when it is gone."""
    # A Ctrl-C reaches the whole process group. A worker that died of it would break the pool while
    # the parent still saves the run.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    # Without this a parent that was killed would leave its workers waiting for ever.
    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _start_worker(files: Sequence[Path], own: bytes) -> None:
    follow_parent()
    plugins.restore(files, own)


class VerifierPool:
    """`verify_response` on a number of worker processes, or in this process with 0 workers.

    The workers start at the first request and know the plug-in types registered by then.
    """

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # At the first request and not in the constructor: plug-ins may be registered in
            # between.
            self._pool = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=plugins.for_workers(),
            )
        return self._pool

    def submit(self, requests: Sequence[VerificationRequest]) -> Callable[[], list[Verdicts]]:
        """Begin with the requests; return a function that waits for the verdicts, in their order.

        Without workers the function does the work.
        """
        # Nothing is done until the verdicts are asked for; a caller cannot tell the difference.
        if not self._workers:
            return lambda: [verify_response(request) for request in requests]
        begun = self._started().map(verify_response, requests, chunksize=_CHUNK)

        def collect() -> list[Verdicts]:
            results: list[Verdicts] = []
            try:
                for verdicts in begun:
                    results.append(verdicts)
            # The results of the pool are lost with it, whichever worker died.
            except BrokenProcessPool:
                self._drop()
                results += [self._alone(request) for request in requests[len(results) :]]
            return results

        return collect

    def _alone(self, request: VerificationRequest) -> Verdicts:
        """Verify after a worker has died: one response at a time, to find the one that kills it."""
        try:
            # A worker that cannot even start is no fault of the response, which must not pay for
            # it.
            self._started().submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the verifier processes cannot start (their error is printed above); correct it, or"
                " set config.data.verify_workers=0 to verify in this process"
            ) from error
        try:
            return self._started().submit(verify_response, request).result()
        except BrokenProcessPool:
            self._drop()
            return _all_violated(request, "its verifier process died")

    def _drop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None

    def close(self) -> None:
        """End the workers; requests that nobody waits for are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
