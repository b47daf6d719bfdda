"""Sinks: slow and failing ones, continued runs, and the real Weights & Biases, MLflow, trackio."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import threading

import pytest
from by_path import ROOT

from gapo_jax.config import Config, finalize
from gapo_jax.train import sinks
from gapo_jax.train.metrics import MetricsWriter, read_metrics


class Kept:
    """A sink that keeps what it gets, and can be made to wait or to fail."""

    def __init__(self, run_id: str = "", fail: bool = False):
        self.run_id = run_id or "new"
        self.fail, self.lines, self.tables, self.files, self.closed = fail, [], [], [], False
        self.started, self.go = threading.Event(), threading.Event()
        self.go.set()

    def metrics(self, step, values):
        self.started.set()
        self.go.wait(30)
        if self.fail:
            raise ConnectionError("no route")
        self.lines.append((step, dict(values)))

    def samples(self, step, rows):
        self.tables.append((step, rows))

    def file(self, path):
        self.files.append(path.name)

    def close(self):
        self.closed = True


@pytest.fixture
def kept(monkeypatch):
    """The sinks that runs have opened under the name `wandb`, in order."""
    opened = []

    def make(workdir, config, run_id):
        opened.append(Kept(run_id))
        return opened[-1]

    monkeypatch.setitem(sinks._SERVICES, "wandb", make)
    return opened


def writer(workdir, to=("wandb",), **options):
    config = Config()
    config.log.to, config.log.samples = to, 2
    return MetricsWriter(workdir, config=finalize(config), console=io.StringIO(), **options)


def write(writer, first, last):
    for step in range(first, last + 1):
        for i in range(3):
            writer.sample({"step": step, "round": step, "prompt": f"p{i}", "verdicts": [True]})
        writer.write(step, step, "rollout", {"reward/mean": 0.5 * step})
        writer.write(step, step, "policy", {"kl/ref": 0.1 * step})


def test_a_continued_run_goes_on_under_its_id_and_sends_no_line_twice(tmp_path, kept) -> None:
    with writer(tmp_path) as run:
        write(run, 1, 5)
        run.write(6, 6, "rollout", {"reward/mean": 3.0})  # killed within the step
    with writer(tmp_path, resume_step=3) as run:
        write(run, 4, 7)
        run.file(tmp_path / "report.html")
    first, second = kept
    assert (first.run_id, second.run_id) == ("new", "new") and second.closed
    sent = [(step, name) for step, values in first.lines + second.lines for name in values]
    sent = [(step, name) for step, name in sent if "/" in name and "compile" not in name]
    assert sent == [(step, name) for step in range(1, 8) for name in ("reward/mean", "kl/ref")]
    # The first two responses of each round, texts and lists as text, once.
    tables = first.tables + second.tables
    assert [step for step, _ in tables] == [1, 2, 3, 4, 5, 7]
    assert tables[0][1][1] == [1, 1, "p1", None, None, "[True]"]
    assert second.files == ["report.html"]


def test_a_slow_sink_holds_nothing_up_and_says_what_it_missed(
    tmp_path, kept, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(sinks, "_QUEUE", 4)
    opened = threading.Event()
    make = sinks._SERVICES["wandb"]

    def slow(*arguments):
        sink = make(*arguments)
        sink.go.clear()
        opened.set()
        return sink

    monkeypatch.setitem(sinks._SERVICES, "wandb", slow)
    with caplog.at_level(logging.WARNING, "gapo_jax"), writer(tmp_path) as run:
        assert opened.wait(30)
        run.write(0, 0, "eval", {})
        assert kept[0].started.wait(30)
        for step in range(1, 11):  # one is in its hands, four wait, six are too many
            run.write(step, 0, "eval", {})
        assert len(read_metrics(tmp_path)) == 11
        kept[0].go.set()
    assert [step for step, _ in kept[0].lines] == [0, 1, 2, 3, 4] and kept[0].closed
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "wandb is too slow: some lines will be in metrics.jsonl only",
        "wandb did not take 6 lines of metrics.jsonl",
    ]


def test_the_end_of_a_run_does_not_wait_for_a_sink_that_hangs(
    tmp_path, kept, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(sinks, "_CLOSE_S", 0.0)
    make, opened = sinks._SERVICES["wandb"], threading.Event()

    def stuck(*arguments):
        sink = make(*arguments)
        sink.go.clear()
        opened.set()
        return sink

    monkeypatch.setitem(sinks._SERVICES, "wandb", stuck)
    run = writer(tmp_path)
    assert opened.wait(30)
    run.write(1, 0, "eval", {})
    assert kept[0].started.wait(30)
    run.write(2, 0, "eval", {})
    run.close()
    assert not kept[0].closed and "did not take" in caplog.text
    kept[0].go.set()


def test_a_sink_that_fails_is_named_once_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    failing, well = Kept(fail=True), Kept()

    def refused(*arguments):
        raise ConnectionError("no server at this address")

    monkeypatch.setattr(
        sinks,
        "_SERVICES",
        {"wandb": lambda *_: failing, "mlflow": refused, "trackio": lambda *_: well},
    )
    with writer(tmp_path, ("wandb", "mlflow", "trackio")) as run:
        write(run, 1, 3)
    said = [record.getMessage() for record in caplog.records]
    assert said.count("wandb failed: ConnectionError: no route") == 1
    assert said.count("mlflow is left out: ConnectionError: no server at this address") == 1
    assert {"wandb did not take 6 lines of metrics.jsonl"} < set(said)
    assert len(well.lines) == 6 and len(read_metrics(tmp_path)) == 6


def test_a_sink_without_its_package_is_refused_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'trackio'.*pip install 'gapo-jax\[trackio\]'"):
        sinks.require_sinks(("tensorboard", "trackio"))


@pytest.mark.parametrize(
    ("to", "message"),
    [(("wanb",), "did you mean 'wandb'"), (("wandb", "wandb"), "names a sink twice")],
)
def test_names_of_sinks_are_checked(to, message) -> None:
    config = Config()
    config.log.to = to
    with pytest.raises(ValueError, match=message):
        finalize(config)


# A run that is killed after step 5 and continued after step 3, in processes of their own as these
# packages keep threads and settings for as long as a process lives.
_PROGRAM = """
import sys, warnings
sys.path.insert(0, {tests!r})
import test_sinks
run = test_sinks.writer({workdir!r}, ({name!r},), resume_step={resume})
test_sinks.write(run, {first}, {last})
if {last} == 6:
    run.file(run.workdir / "config.json")
run.close()
"""


def real_run(name, workdir, **environment):
    """Train nothing twice over one workdir with a real sink; return sinks.json's entry."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; it is the extra {name!r}")
    (workdir / "config.json").write_text("{}")
    for resume, first, last in ((None, 1, 5), (3, 4, 6)):
        program = _PROGRAM.format(
            tests=str(ROOT / "tests" / "train"),
            workdir=str(workdir),
            name=name,
            resume=resume,
            first=first,
            last=last,
        )
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
            cwd=workdir,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "failed" not in done.stderr and "left out" not in done.stderr, done.stderr
    return json.loads((workdir / sinks.MARKS).read_text())[name]


def wandb_records(path):
    """Yield the records of a .wandb file: a head of 7 bytes, then LevelDB's log format."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # too short for a head: the rest of the block is empty
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_offline(tmp_path) -> None:
    mark = real_run("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    from wandb.proto import wandb_internal_pb2

    rewards, ids, configs, artifacts = [], set(), 0, []
    for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(path):
            record = wandb_internal_pb2.Record.FromString(data)
            items = {"/".join(i.nested_key) or i.key: i for i in record.history.item}
            if "reward/mean" in items:
                step = record.history.step.num
                rewards.append((step, json.loads(items["reward/mean"].value_json)))
                assert "kl/ref" in items and any(name.startswith("samples") for name in items)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                configs += any(item.key == "ppo" for item in record.run.config.update)
            if record.HasField("request") and record.request.HasField("log_artifact"):
                artifacts.append(record.request.log_artifact.artifact.type)
            if record.HasField("artifact"):
                artifacts.append(record.artifact.type)
    assert rewards == [(step, 0.5 * step) for step in range(1, 7)]
    assert ids == {mark["run_id"]} and configs
    assert "config" in artifacts and "run_table" in artifacts


@pytest.mark.filterwarnings("ignore")  # of sqlalchemy, in mlflow's own calls
def test_mlflow(tmp_path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mark = real_run("mlflow", tmp_path, MLFLOW_TRACKING_URI=uri)
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    history = client.get_metric_history(mark["run_id"], "reward/mean")
    assert sorted((m.step, m.value) for m in history) == [(s, 0.5 * s) for s in range(1, 7)]
    run = client.get_run(mark["run_id"])
    assert run.data.params["ppo.clip_low"] == "0.2" and run.info.status == "FINISHED"
    files = {item.path for item in client.list_artifacts(mark["run_id"])}
    assert files == {"config.json", "samples"}
    assert len(client.list_artifacts(mark["run_id"], "samples")) == 6


def test_trackio(tmp_path) -> None:
    mark = real_run("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    import sqlite3

    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {row[0] for row in rows} == {mark["run_id"]}
    lines = [(step, json.loads(text)) for _, step, text in rows]
    found = [(step, line["reward/mean"]) for step, line in lines if "reward/mean" in line]
    assert found == [(step, 0.5 * step) for step in range(1, 7)]
    assert sum("samples" in line for _, line in lines) == 6
