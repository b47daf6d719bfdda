"""Reward functions of one's own, in TRL's convention, each in a worker process.

    def politeness(prompts, completions, **columns):
        return [float("please" in text) for text in completions]

A function is called once a round with keyword arguments: `prompts`, `completions`,
`completion_ids`, every further column of the rows as a list, and `trainer_state`, `log_extra` and
`log_metric` as TRL has them; one without `**kwargs` gets those that it names. It returns one number
for each completion, or None where it has nothing to say. Where the prompts are dialogues, prompts
and completions are lists of messages, else texts. It may be `async`.

The worker is a process of its own (`spawn`), so that a function that hangs, exhausts its memory or
ends its process does no harm to the run. It loads no JAX unless the function does. This module
loads none either.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gapo_jax.constraints.verifiers import follow_parent
from gapo_jax.records import Json, JsonObject

START_S = 120.0  # to start a worker and import what the function needs
# What TRL passes beside the columns of the rows, which may not have these names.
RESERVED = (
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric",
)  # fmt: skip

log = logging.getLogger("gapo_jax")


class TrainerState(NamedTuple):
    """What a function is told of the training under the name that it has in TRL: the updates and
    the share of the rounds (TRL: of the epochs) that are done."""

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    is_world_process_zero: bool = True


class Call(NamedTuple):
    """The arguments of one call; every list has one entry for each completion."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    state: TrainerState = TrainerState()

    def row(self, index: int) -> Call:
        """Return the call of one completion alone."""
        one = slice(index, index + 1)
        columns = {name: values[one] for name, values in self.columns.items()}
        rows = self.prompts[one], self.completions[one], self.completion_ids[one]
        return Call(*rows, columns, self.state)


@dataclasses.dataclass
class FunctionScores:
    """What a function says of a round's completions.

    Attributes:
        values: one number a completion; NaN where it returned None, or failed.
        failed: whether it failed, for each completion.
        reasons: what went wrong, each reason once.
        metrics: the numbers that it gave to `log_metric`.
        extra: the columns that it gave to `log_extra`.
    """

    values: list[float]
    failed: list[bool]
    reasons: list[str] = dataclasses.field(default_factory=list)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    extra: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


class _Failed(Exception):
    """A call gave no scores; the message says why."""


class RewardFunction:
    """A function FILE.py:NAME or MODULE:NAME in a worker process.

    The worker is started by `start`, and anew at the next call after one that was ended.
    """

    def __init__(self, target: str, timeout_s: float) -> None:
        self.target, self.timeout_s = target, timeout_s
        self._process: Any = None
        self._connection: Any = None
        self._sent: Call | None = None
        self._problem = ""
        self._deadline = 0.0

    def start(self, columns: Sequence[str] | None = None) -> None:
        """Start the worker and load the function.

        Args:
            columns: those of the rows, to check that the function has all that it needs; None
                leaves that out.

        Raises:
            ValueError: there is no such function, it cannot be loaded, or it needs a column that
                the rows do not have.
        """
        try:
            needed = self._load()
        except _Failed as error:
            raise ValueError(f"config.reward.sources: {self.target!r} {error}") from None
        known = {*RESERVED, *(needed if columns is None else columns)}
        if missing := [name for name in needed if name not in known]:
            assert columns is not None
            raise ValueError(
                f"config.reward.sources: {self.target!r} needs the column {missing[0]!r}, and the "
                f"rows have {sorted(columns)}; add it to config.data.source, or give the parameter "
                "a default"
            )

    def _load(self) -> list[str]:
        """Start a worker; return the names of the parameters that the function needs."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.target))
        self._process.start()
        theirs.close()
        # The clean-up of `multiprocessing` would wait for the worker. It was registered earlier, so
        # this one is called before it.
        atexit.register(self.close)
        return self._receive(START_S)

    def submit(self, call: Call) -> None:
        """Begin with a call."""
        self._sent, self._problem = call, ""
        try:
            self._send(call)
        except _Failed as error:
            self._problem = str(error)

    def collect(self) -> FunctionScores:
        """Wait for the call that was begun and return its scores.

        A call that fails as a whole is repeated for one completion after the other, within the same
        time once more, so that one completion cannot spoil the scores of the others.
        """
        call, self._sent = self._sent, None
        assert call is not None
        try:
            if self._problem:
                raise _Failed(self._problem)
            return _scores(*self._receive(self._deadline - time.monotonic()))
        except _Failed as error:
            return self._one_by_one(call, str(error))

    def _one_by_one(self, call: Call, reason: str) -> FunctionScores:
        count = len(call.completions)
        scores = FunctionScores([math.nan] * count, [True] * count, [reason])
        if count < 2:
            return scores
        # A share of the time each, so that one that hangs leaves time for the others.
        share, left = max(self.timeout_s / count, min(1.0, self.timeout_s)), self.timeout_s
        for index in range(count):
            if left <= 0:
                break
            try:
                self._send(call.row(index))
                start = time.monotonic()
                try:
                    one = _scores(*self._receive(min(share, left)))
                finally:
                    left -= time.monotonic() - start
            except _Failed as error:
                scores.reasons.append(str(error))
                continue
            scores.values[index], scores.failed[index] = one.values[0], one.failed[0]
            scores.reasons += one.reasons
        scores.reasons = list(dict.fromkeys(scores.reasons))
        return scores

    def _send(self, call: Call) -> None:
        if self._process is None:
            self._load()
        try:
            self._connection.send(call)
        except OSError:
            self.close()
            raise _Failed("its process died") from None
        self._deadline = time.monotonic() + self.timeout_s

    def _receive(self, seconds: float) -> Any:
        """Return what the worker answers within a time; end it where it does not."""
        try:
            if not self._connection.poll(max(seconds, 0.0)):
                self.close()
                raise _Failed(f"took longer than {seconds:.3g} s (config.reward.timeout_s)")
            good, answer = self._connection.recv()
        except (EOFError, OSError):
            self.close()
            raise _Failed("its process died") from None
        if not good:
            raise _Failed(answer)
        return answer

    def close(self) -> None:
        """End the worker, and what it has started."""
        atexit.unregister(self.close)
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            # The worker leads a group of its own (`_serve`), if it has come so far.
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        self._connection.close()


def _scores(values: list[Any], metrics: dict[str, float], extra: JsonObject) -> FunctionScores:
    """Return the scores of an answer, in which a text stands for a value that is no number."""
    reasons = list(dict.fromkeys(value for value in values if isinstance(value, str)))
    numbers = [math.nan if value is None or isinstance(value, str) else value for value in values]
    failed = [isinstance(value, str) for value in values]
    return FunctionScores(numbers, failed, reasons, metrics, extra)


def filled(scores: FunctionScores, floor: float) -> list[float]:
    """Return the values with the lowest score in the place of those that failed: `floor`, or the
    lowest value of the round where that is lower.

    Where the function gave no value at all in the round, those that failed are left out (NaN):
    nothing says what would be low for it.
    """
    valid = [value for value in scores.values if not math.isnan(value)]
    lowest = min([floor, *valid]) if valid else math.nan
    pairs = zip(scores.values, scores.failed, strict=True)
    return [lowest if failed else value for value, failed in pairs]


# In the worker.


def _serve(connection: Any, target: str) -> None:
    """Load the function and answer calls, until the other side closes the connection."""
    follow_parent()
    with contextlib.suppress(AttributeError, OSError):
        os.setsid()  # so that what the function starts can be ended with it
    try:
        function = load_function(target)
        needed = _needed(function)
    except BaseException as error:  # sys.exit in the user's file too
        connection.send((False, _text_of(error)))
        return
    connection.send((True, needed))
    with contextlib.suppress(EOFError, OSError):
        while True:
            call = connection.recv()
            try:
                answer = True, _answer(function, call)
            except BaseException as error:
                answer = False, _text_of(error)
            connection.send(answer)


def _text_of(error: BaseException) -> str:
    if isinstance(error, _Failed):
        return str(error)
    first = next(iter(str(error).splitlines()), "")
    return f"failed with {type(error).__name__}: {first}"[:500]


def load_function(target: str) -> Callable[..., Any]:
    """Return the function FILE.py:NAME or MODULE:NAME."""
    where, _, name = target.rpartition(":")
    if where.endswith(".py"):
        path = Path(where).expanduser().resolve()
        if not path.is_file():
            raise _Failed(f"names no file: there is none at {path}")
        # As for a script: the file may import its neighbours.
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(where)
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if not callable(function) or isinstance(function, type):
        functions = [
            known
            for known, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise _Failed(f"has no function {name!r}; there is {functions or 'none'}")
    return function


def _needed(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters without a default.

    Raises:
        _Failed: one of them cannot be given by name.
    """
    needed = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise _Failed(
                f"takes {name!r} by position only; arguments are given by name, as in TRL"
            )
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty:
            needed.append(name)
    return needed


def _answer(
    function: Callable[..., Any], call: Call
) -> tuple[list[Any], dict[str, float], dict[str, list[Any]]]:
    """Call the function; return its values, metrics and extra columns as plain Python."""
    metrics: dict[str, list[float]] = {}
    extra: dict[str, list[Any]] = {}
    arguments: JsonObject = {
        "prompts": call.prompts,
        "completions": call.completions,
        "completion_ids": call.completion_ids,
        **call.columns,
        "trainer_state": call.state,
        "log_extra": lambda column, values: extra.update({str(column): list(values)}),
        "log_metric": lambda name, value: metrics.setdefault(str(name), []).append(float(value)),
    }
    values = function(**_accepted(function, arguments))
    if inspect.isawaitable(values):
        values = asyncio.run(_awaited(values))
    try:
        numbers = [_number(value) for value in values]
    except TypeError:
        raise _Failed(f"returned {values!r:.80}; wanted a list of numbers") from None
    if len(numbers) != len(call.completions):
        raise _Failed(f"returned {len(numbers)} values for {len(call.completions)} completions")
    means = {name: sum(logged) / len(logged) for name, logged in metrics.items()}
    columns = {
        name: [str(value) for value in logged]
        for name, logged in extra.items()
        if len(logged) == len(numbers)
    }
    return numbers, means, columns


async def _awaited(values: Any) -> Any:
    return await values


def _accepted(function: Callable[..., Any], arguments: Json) -> JsonObject:
    """Return those of the arguments that the function takes."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


def _number(value: Any) -> float | str | None:
    """Return a value as a float, None, or a text that says why it is no score."""
    if value is None:
        return None
    # A text such as "1.0" has no __float__: taken for a number it would hide a mistake.
    try:
        number = value.__float__()
    except Exception:
        return f"returned {value!r:.80} for a completion; wanted a number or None"
    return number if math.isfinite(number) else f"returned {number} for a completion"
