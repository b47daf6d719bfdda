"""What a run says while it goes: metrics.jsonl, samples.jsonl, sinks, the console, bars.

The files of a run that is continued hold what an uninterrupted run would have written: lines of
steps after the checkpoint are dropped first.
"""

from __future__ import annotations

import math
import os
import pathlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from gapo_jax import io
from gapo_jax.compilation import CompileCounter
from gapo_jax.config import Config
from gapo_jax.records import Json, JsonObject
from gapo_jax.train.sinks import Sinks

Item = TypeVar("Item")

PHASES = ("warmup", "rollout", "discriminator", "policy", "eval", "save")
# What a console line shows, in this order; the files hold everything.
_CONSOLE = (
    "disc/loss",
    "disc/acc_accepted",
    "disc/acc_rejected",
    "disc/acc_generated",
    "disc/score_gap",
    "reward/mean",
    "kl/ref",
    "policy/loss",
    "policy/clip_fraction",
    "pref/accuracy",
    "pref/margin",
    "value/loss",
    "value/explained_variance",
    "response/length",
    "response/eos_rate",
    "constraint/instruction_strict",
    "constraint/prompt_strict",
    "throughput/real_tokens_per_s",
    "compile/count",
)


class MetricsWriter:
    """Writes the metrics and samples of a run below its workdir.

    Args:
        workdir: folder of the run, made if missing.
        resume_step: the step of the checkpoint that the run continues from. Lines of later steps,
            and a line cut off by a kill, are dropped first. None keeps the files as they are.
        config: of the run, whose `log` names the sinks; TensorBoard alone without it.
        console: where the one-line reports go; standard output by default.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        resume_step: int | None = None,
        config: Config | None = None,
        console: TextIO | None = None,
    ):
        self.workdir = pathlib.Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.compiles = CompileCounter()
        self._console = console
        # One process writes; in the others of a run of several this object does nothing.
        self._files: dict[str, TextIO] = {}
        self._sinks: Sinks | None = None
        if jax.process_index():
            return
        for name in ("metrics.jsonl", "samples.jsonl"):
            if resume_step is not None:
                drop_after(self.workdir / name, resume_step)
            self._files[name] = open(self.workdir / name, "a", encoding="utf-8")
        kept = [record["step"] for record in read_metrics(self.workdir)] or [-1]
        last = (kept[-1], kept.count(kept[-1]))
        self._sinks = Sinks(self.workdir, config, resume_step, last)

    def write(
        self,
        step: int,
        round: int,  # noqa: A002 - the name in the file
        phase: str,
        metrics: Mapping[str, object],
        *,
        time_s: float | None = None,
    ) -> JsonObject:
        """Append one record to metrics.jsonl, to the sinks and to the console; return it.

        Args:
            step: number of the update, never falling within a run.
            round: number of the round.
            phase: one of `PHASES`.
            metrics: name -> number, or an array of one element. A value that is not finite is
                written as null, with a warning. `compile/count` and `compile/loaded`, the numbers
                of programs compiled and read from the cache on disk since this object was made,
                and `compile/seconds`, what the former took, are added to every record.
            time_s: duration of the phase in seconds; taken from `metrics["time/PHASE_s"]` if not
                given, else null.

        Raises:
            ValueError: an unknown phase, or a value that is not one number.
        """
        if phase not in PHASES:
            raise ValueError(f"wanted a phase of {PHASES}, got {phase!r}")
        values = {name: _number(name, value, step) for name, value in metrics.items()}
        values.setdefault("compile/count", self.compiles.count)
        values.setdefault("compile/loaded", self.compiles.loaded)
        values.setdefault("compile/seconds", self.compiles.seconds)
        if time_s is None:
            time_s = values.get(f"time/{phase}_s")
        head = {"step": int(step), "round": int(round), "phase": phase, "time_s": time_s}
        record = head | dict(sorted(values.items()))
        if self._sinks is not None:
            self._append("metrics.jsonl", record)
            numbers = {name: value for name, value in values.items() if value is not None}
            self._sinks.line(int(step), numbers)
            # Above a progress bar rather than through it.
            console = self._console or sys.stdout
            tqdm.write(console_line(record), file=console)
            console.flush()
        return record

    def sample(self, record: Mapping[str, object]) -> None:
        """Append one record (with its `step`) to samples.jsonl.

        Raises:
            ValueError: the record has no `step`; without it a resumed run could not drop it.
        """
        if "step" not in record:
            raise ValueError(f"wanted a sample with the key 'step', got the keys {list(record)}")
        if self._sinks is not None:
            self._append("samples.jsonl", dict(record))
            self._sinks.sample(record)

    def file(self, path: pathlib.Path) -> None:
        """Hand a file, such as the report, to the sinks that keep files."""
        if self._sinks is not None:
            self._sinks.file(path)

    def flush(self) -> None:
        """Put everything written so far on the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        if self._sinks is not None:
            self._sinks.flush()

    def close(self) -> None:
        """Flush and close all files and sinks. Later writes are lost; closing twice is no error."""
        self.compiles.close()
        self.flush()
        for file in self._files.values():
            file.close()
        if self._sinks is not None:
            self._sinks.close()
        self._files, self._sinks = {}, None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, name: str, record: Mapping[str, object]) -> None:
        # One write of a whole line, so that a killed run loses at most its last line.
        self._files[name].write(io.json_line(record, allow_nan=False))
        self._files[name].flush()


def drop_after(path: pathlib.Path, step: int) -> None:
    """Drop the lines of a JSONL file whose `step` is above `step`, atomically.

    A last line that a kill has cut off is dropped too. A missing file stays missing.

    Raises:
        ValueError: another line is not a JSON object with a `step`; the message has its number.
    """
    if not path.exists():
        return
    kept = [record for record in _records(path) if record["step"] <= step]
    io.write_jsonl(path, kept, sync=True)


def read_metrics(path: str | pathlib.Path) -> list[JsonObject]:
    """Return the records of a metrics.jsonl or samples.jsonl, or of the one in a workdir.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line other than an unfinished last one is malformed; the message has its
            number.
    """
    path = pathlib.Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    return list(_records(path))


def _records(path: pathlib.Path) -> Iterator[JsonObject]:
    """Yield the records; an unfinished last line, as a kill leaves it, is left out."""
    for number, record in io.scan_jsonl(path, drop_torn=True):
        if isinstance(record, str):
            raise ValueError(f"{path}, line {number}: {record}. Mend or remove the line.")
        if "step" not in record:
            raise ValueError(
                f"{path}, line {number}: wanted a JSON object with a 'step', got "
                f"{str(record)[:80]!r}. Mend or remove the line."
            )
        yield record


def _number(name: str, value: Any, step: int) -> float | int | None:
    """Return a Python number, None if it is not finite."""
    if getattr(value, "size", 1) != 1 or isinstance(value, str | bytes) or value is None:
        raise ValueError(f"metric {name!r} must be one number, got {value!r}")
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool | int):
        return int(value)
    if not math.isfinite(value):
        warnings.warn(
            f"metric {name!r} is {value} at step {step}; it is written as null", stacklevel=3
        )
        return None
    return float(value)


def mean_metrics(updates: Sequence[Mapping[str, float | jax.Array]]) -> dict[str, float]:
    """Average the metrics of updates key by key; NaN (a class without rows) does not count, but in
    a loss or a gradient norm it must be seen."""
    fetched = jax.device_get(list(updates))
    means = {}
    for key in fetched[0] if fetched else ():
        values = np.array([metrics[key] for metrics in fetched], np.float64)
        if not key.endswith(("loss", "grad_norm")):
            values = values[~np.isnan(values)]
        if len(values):
            means[key] = float(values.mean())
    return means


def console_line(record: Json) -> str:
    """Return a record in one line: the head, then the few metrics that say how it goes."""
    time_s = record.get("time_s")
    parts = [f"round {record['round']:>3}", f"step {record['step']:>5}", f"{record['phase']:<13}"]
    parts.append(f"{time_s:7.1f}s" if time_s is not None else " " * 8)
    for name in _CONSOLE:
        if record.get(name) is not None:
            parts.append(f"{name.removesuffix('_per_s')}={_short(record[name])}")
    return " ".join(parts).rstrip()


def _short(value: float) -> str:
    if isinstance(value, int) or (abs(value) >= 1000 and math.isfinite(value)):
        return f"{value:.0f}"
    return f"{value:.4g}"


def progress(iterable: Iterable[Item], desc: str, *, total: int | None = None) -> Iterable[Item]:
    """Wrap an iterable in a progress bar with the time left; silent if there is no terminal."""
    return tqdm(
        iterable,
        desc=desc,
        total=total,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    )
