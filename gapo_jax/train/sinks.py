"""Where a run's metrics go besides its own files: TensorBoard, Weights & Biases, MLflow, trackio.

A sink is called in a thread of its own behind a bounded queue, so one that is slow or fails never
stops the training; what it could not take is counted and said. `metrics.jsonl` has everything in
any case. `sinks.json` in the workdir keeps the id of the run at each service and the last line that
was sent to it, so a continued run goes on there and sends no line twice.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gapo_jax import io
from gapo_jax.config import Config, to_json
from gapo_jax.records import JsonObject

log = logging.getLogger("gapo_jax")
MARKS = "sinks.json"
# What a sink needs that is an extra of the package, by the name of the sink.
EXTRAS = ("wandb", "mlflow", "trackio")
_QUEUE = 1024  # lines that wait for a sink: some 200 rounds
_CLOSE_S = 60.0  # how long the end of a run waits for all sinks together
_CELL = 4000  # characters of a text in a table of samples
_COLUMNS = ("step", "round", "prompt", "response", "score", "verdicts")


class Sink(Protocol):
    """What receives a run. Every method may block and may raise."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one line of metrics.jsonl."""
        ...

    def samples(self, step: int, rows: Sequence[Sequence[object]]) -> None:
        """Take sampled responses as a table with the columns `_COLUMNS`."""
        ...

    def file(self, path: Path) -> None:
        """Take a file, such as the report."""
        ...

    def close(self) -> None:
        """Send what is left and end."""
        ...


class _TensorBoard:
    """Event files in `tensorboard/`; those of a continued run tell the viewer what to forget.

    Every line is on the disk when `metrics` returns. tensorboardX's own SummaryWriter has a thread
    and a queue, and its `flush` puts there what has come out of the queue by then.
    """

    def __init__(self, workdir: Path, resume_step: int | None):
        # Protobuf is slow to import, and needed only here.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        messages: Any = event_pb2  # its classes are made when it is imported
        self._event, self._scalar = messages.Event, scalar
        self._writer = EventsWriter(str(folder / "events"))
        if resume_step is not None:
            start = messages.SessionLog(status=messages.SessionLog.START)
            self._write(resume_step + 1, session_log=start)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            # TensorBoard tags hold no colon; instruction ids do.
            self._write(step, summary=self._scalar(name.replace(":", "_"), value))
        self._writer.flush()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))

    def samples(self, step: int, rows: Sequence[Sequence[object]]) -> None:
        """Nothing: samples.jsonl lies beside the event files."""

    def file(self, path: Path) -> None:
        """Nothing: so does the file."""

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases; WANDB_MODE, WANDB_ENTITY and WANDB_BASE_URL say where."""

    def __init__(self, workdir: Path, config: Config, run_id: str):
        import wandb  # pyright: ignore[reportMissingImports]

        self._api: Any = wandb
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=config.log.project,
            name=config.name,
            id=self.run_id,
            resume="allow",
            dir=str(workdir),
            config=to_json(config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, rows: Sequence[Sequence[object]]) -> None:
        table = self._api.Table(columns=list(_COLUMNS), data=[list(row) for row in rows])
        self._run.log({"samples": table}, step=step)

    def file(self, path: Path) -> None:
        artifact = self._api.Artifact(f"{path.stem}-{self.run_id}", type=path.stem)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """MLflow; MLFLOW_TRACKING_URI says where. A table is one file for each round."""

    def __init__(self, workdir: Path, config: Config, run_id: str):
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._metric, self._client = Metric, MlflowClient()
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
        else:
            project = config.log.project
            known = self._client.get_experiment_by_name(project)
            experiment = known.experiment_id if known else self._client.create_experiment(project)
            run_id = self._client.create_run(experiment, run_name=config.name).info.run_id
            params = [Param(key, value[:6000]) for key, value in _flat(to_json(config))]
            for start in range(0, len(params), 100):  # the most that a request may have
                self._client.log_batch(run_id, params=params[start : start + 100])
            self._client.log_dict(run_id, to_json(config), "config.json")
        self.run_id = run_id

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        numbers = [self._metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(numbers), 1000):
            self._client.log_batch(self.run_id, metrics=numbers[start : start + 1000])

    def samples(self, step: int, rows: Sequence[Sequence[object]]) -> None:
        # The form of mlflow's own tables, which would want pandas to write it.
        table = {"columns": list(_COLUMNS), "data": [list(row) for row in rows]}
        self._client.log_dict(self.run_id, table, f"samples/{step:08d}.json")

    def file(self, path: Path) -> None:
        self._client.log_artifact(self.run_id, str(path))

    def close(self) -> None:
        self._client.set_terminated(self.run_id)


class _Trackio(_Wandb):
    """trackio, which has the functions of Weights & Biases under the same names; TRACKIO_DIR,
    TRACKIO_SPACE_ID and TRACKIO_SERVER_URL say where."""

    def __init__(self, workdir: Path, config: Config, run_id: str):
        import trackio  # pyright: ignore[reportMissingImports]

        self._api = trackio
        # It knows a run by its name.
        self.run_id = run_id or f"{config.name}-{uuid.uuid4().hex[:8]}"
        self._run = trackio.init(
            project=config.log.project,
            name=self.run_id,
            resume="allow",
            config=to_json(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )


_SERVICES = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


def require_sinks(names: Sequence[str]) -> None:
    """Raise ValueError, with the command that mends it, where the package of a sink is missing."""
    for name in names:
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"config.log.to names {name!r}, and the package {name} is not installed; "
                f"pip install 'gapo-jax[{name}]', or leave {name!r} out"
            )


def _flat(record: Mapping[str, object], path: str = "") -> list[tuple[str, str]]:
    """Return the leaves of a nested record as (dotted path, text)."""
    leaves = []
    for key, value in record.items():
        name = f"{path}{key}"
        leaves += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, str(value))]
    return leaves


class Marks:
    """The ids and last lines of `sinks.json`, which several threads write."""

    def __init__(self, workdir: Path):
        self._path, self._lock = workdir / MARKS, threading.Lock()
        self._marks = io.read_json(self._path) if self._path.is_file() else {}

    def get(self, name: str) -> JsonObject:
        """Return {"run_id", "step", "line"} of a sink, as far as they are known."""
        return dict(self._marks.get(name, {}))

    def set(self, name: str, **values: object) -> None:
        """Change what is kept of a sink and write the file."""
        with self._lock:
            self._marks[name] = self._marks.get(name, {}) | values
            io.write_json(self._path, self._marks)


class Background:
    """Calls one sink in a thread of its own.

    Args:
        name: for messages and `sinks.json`.
        opened: makes the sink, in the thread; its failure turns the sink off.
        marks: where the last line is kept; None for a sink that is told what to forget.
    """

    def __init__(self, name: str, opened: Callable[[], Sink], marks: Marks | None = None):
        self.name, self.failed, self.dropped = name, 0, 0
        self._marks = marks
        last = marks.get(name) if marks else {}
        self._sent = (last.get("step", -1), last.get("line", -1))
        self._queue: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._run, args=(opened,), daemon=True, name=name)
        self._thread.start()

    def line(
        self, step: int, line: int, values: Mapping[str, float], rows: Sequence[Sequence[object]]
    ) -> None:
        """Send one line of metrics.jsonl, the `line`-th of its step, with the samples before it.

        A line that was sent before the run was interrupted is left out.
        """

        def send(sink: Sink) -> None:
            if self._marks:
                if (step, line) <= self._sent:
                    return
                # Before it is sent: after a kill in between, the line is missing and not doubled.
                self._marks.set(self.name, step=step, line=line)
            if rows:
                sink.samples(step, rows)
            sink.metrics(step, values)

        self._put(send)

    def file(self, path: Path) -> None:
        """Send a file."""
        self._put(lambda sink: sink.file(path))

    def drain(self, deadline: float) -> None:
        """Wait until all that was put has been sent or has failed, until `deadline` at most."""
        done = self._queue.all_tasks_done
        with done:
            while self._queue.unfinished_tasks and (left := deadline - time.monotonic()) > 0:
                done.wait(left)

    def close(self, deadline: float) -> None:
        """Send what waits, until `deadline` (of time.monotonic) at most, and end; say what was not
        sent."""
        left = max(0.0, deadline - time.monotonic())
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=left)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        waiting = self._queue.qsize() if self._thread.is_alive() else 0
        if lost := self.dropped + self.failed + waiting:
            log.warning("%s did not take %d lines of metrics.jsonl", self.name, lost)

    def _put(self, call: Callable[[Sink], None]) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("%s is too slow: some lines will be in metrics.jsonl only", self.name)

    def _run(self, opened: Callable[[], Sink]) -> None:
        sink: Sink | None = None
        try:
            sink = opened()
        except Exception as error:
            log.warning("%s is left out: %s: %s", self.name, type(error).__name__, error)
        while (call := self._queue.get()) is not None:
            self._call(call, sink)
            self._queue.task_done()
        if sink is not None:
            self._call(lambda sink: sink.close(), sink)

    def _call(self, call: Callable[[Sink], None], sink: Sink | None) -> None:
        try:
            if sink is not None:
                call(sink)
                return
        except Exception as error:
            if not self.failed:
                log.warning("%s failed: %s: %s", self.name, type(error).__name__, error)
        self.failed += 1


class Sinks:
    """All sinks of a run.

    Args:
        workdir: folder of the run.
        config: of the run; None opens TensorBoard alone.
        resume_step: as `MetricsWriter`.
        last: (step, number of lines with that step) of the metrics.jsonl that is continued.
    """

    def __init__(
        self,
        workdir: Path,
        config: Config | None = None,
        resume_step: int | None = None,
        last: tuple[int, int] = (-1, 0),
    ):
        names = config.log.to if config else ("tensorboard",)
        self._limit = config.log.samples if config else 0
        self._step, self._line = last
        self._rows: list[list[object]] = []
        marks = Marks(workdir)

        def opener(name: str) -> Callable[[], Sink]:
            def opened() -> Sink:
                sink = _SERVICES[name](workdir, config, marks.get(name).get("run_id", ""))
                marks.set(name, run_id=sink.run_id)
                return sink

            return opened

        self.sinks = [
            Background(name, opener(name), marks)
            if name in _SERVICES
            else Background(name, lambda: _TensorBoard(workdir, resume_step))
            for name in names
        ]

    def sample(self, record: Mapping[str, object]) -> None:
        """Keep a record of samples.jsonl for the table of its round, the first `log.samples`."""
        if len(self._rows) < self._limit:
            row = [record.get(column) for column in _COLUMNS]
            self._rows.append([_cell(value) for value in row])

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Send one line of metrics.jsonl, and the samples since the line before."""
        self._line = self._line + 1 if step == self._step else 1
        self._step = step
        for sink in self.sinks:
            sink.line(step, self._line, values, self._rows)
        self._rows = []

    def file(self, path: Path) -> None:
        """Send a file."""
        for sink in self.sinks:
            sink.file(path)

    def flush(self) -> None:
        """Wait, for a limited time, until TensorBoard's file holds all lines."""
        deadline = time.monotonic() + _CLOSE_S
        for sink in self.sinks:
            if sink.name not in _SERVICES:
                sink.drain(deadline)

    def close(self) -> None:
        """Send what is left, for a limited time, and end."""
        deadline = time.monotonic() + _CLOSE_S
        for sink in self.sinks:
            sink.close(deadline)
        self.sinks = []


def _cell(value: object) -> object:
    """Return what a table shows of a value: numbers as they are, all else as text."""
    return value if isinstance(value, int | float | None) else str(value)[:_CELL]
