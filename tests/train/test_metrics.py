"""What a run writes down, how a continued run mends it, and the count of compilations."""

from __future__ import annotations

import io
import json
import os
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from gapo_jax.compilation import CompileCounter, drop_oldest, keep_compiled_programs
from gapo_jax.train import metrics, rounds
from gapo_jax.train.clock import PhaseClock
from gapo_jax.train.metrics import MetricsWriter, read_metrics
from gapo_jax.train.runtime import Processes
from gapo_jax.train.workdir import STOPPED


def write_run(workdir: pathlib.Path, first: int, last: int, resume: int | None = None) -> str:
    console = io.StringIO()
    with MetricsWriter(workdir, resume_step=resume, console=console) as writer:
        for step in range(first, last + 1):
            writer.write(step, step // 2, "rollout", {"reward/mean": 0.5 * step}, time_s=1.0)
            writer.write(step, step // 2, "policy", {"kl/ref": 0.01 * step, "policy/loss": -0.1})
            writer.sample({"step": step, "response": f"{step} ä\n"})
    return console.getvalue()


def test_records_are_json_lines_in_order(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, 1, 2)
    records = read_metrics(tmp_path)
    assert [(r["step"], r["phase"]) for r in records] == [
        (1, "rollout"),
        (1, "policy"),
        (2, "rollout"),
        (2, "policy"),
    ]
    head = ["step", "round", "phase", "time_s"]
    compiles = ["compile/count", "compile/loaded", "compile/seconds"]
    assert list(records[0]) == [*head, *compiles, "reward/mean"]
    assert records[0]["time_s"] == 1.0 and records[1]["time_s"] is None
    samples = read_metrics(tmp_path / "samples.jsonl")
    assert samples == [{"step": 1, "response": "1 ä\n"}, {"step": 2, "response": "2 ä\n"}]


def test_numbers_of_any_kind_are_written_plainly(tmp_path: pathlib.Path) -> None:
    values = {"a": jnp.float32(0.5), "b": np.int64(3), "c": True, "d": jnp.ones((1,)), "e": 2}
    with MetricsWriter(tmp_path, console=io.StringIO()) as writer:
        record = writer.write(1, 0, "eval", values | {"time/eval_s": 4.0})
    assert record["time_s"] == 4.0
    found = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {name: found[name] for name in values} == {"a": 0.5, "b": 3, "c": 1, "d": 1.0, "e": 2}


def test_not_finite_is_null_and_warned_of(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path, console=io.StringIO()) as writer:
        with pytest.warns(UserWarning, match="'policy/loss' is nan at step 7"):
            writer.write(7, 1, "policy", {"policy/loss": jnp.nan, "kl/ref": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"policy/loss": null' in text and "NaN" not in text


def test_bad_input_is_refused(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path, console=io.StringIO()) as writer:
        with pytest.raises(ValueError, match="'training'"):
            writer.write(1, 0, "training", {})
        with pytest.raises(ValueError, match="'kl/ref' must be one number"):
            writer.write(1, 0, "policy", {"kl/ref": np.ones(2)})
        with pytest.raises(ValueError, match="'step'"):
            writer.sample({"response": "text"})
    assert read_metrics(tmp_path) == []


def test_a_continued_run_writes_what_a_straight_run_writes(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path / "straight", 1, 6)
    write_run(tmp_path / "broken", 1, 5)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(tmp_path / "broken" / name, "a") as file:
            file.write('{"step": 5, "round')  # what a kill leaves
    write_run(tmp_path / "broken", 4, 6, resume=3)
    for name in ("metrics.jsonl", "samples.jsonl"):
        straight, broken = (tmp_path / run / name for run in ("straight", "broken"))
        assert broken.read_bytes() == straight.read_bytes()
    assert not list((tmp_path / "broken").glob("*.tmp"))


def test_an_unfinished_last_line_is_not_read(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, 1, 1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')
    assert len(read_metrics(tmp_path)) == 2


def test_a_malformed_line_is_named(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, 1, 1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("not json\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3: .*'not json'"):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match="line 3"):
        MetricsWriter(tmp_path, resume_step=1)


def test_the_console_has_one_line_a_record(tmp_path: pathlib.Path) -> None:
    lines = write_run(tmp_path, 10, 11).splitlines()
    assert len(lines) == 4
    assert lines[0] == "round   5 step    10 rollout           1.0s reward/mean=5 compile/count=0"
    assert lines[1].endswith("kl/ref=0.1 policy/loss=-0.1 compile/count=0")


def _events(workdir: pathlib.Path) -> dict[tuple[str, int], float]:
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (workdir / "tensorboard").glob("events.out.tfevents.*")
    data, found, at = path.read_bytes(), {}, 0
    while at < len(data):  # TFRecord: length (8), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_holds_the_same_numbers(tmp_path: pathlib.Path) -> None:
    write_run(tmp_path, 1, 3)
    found = _events(tmp_path)
    assert found["reward/mean", 3] == 1.5
    assert found["kl/ref", 2] == pytest.approx(0.02)
    assert len([name for name, _ in found if not name.startswith("compile/")]) == 9
    assert found["compile/count", 1] == 0


def test_all_that_a_checkpoint_has_seen_is_on_the_disk_before_it(tmp_path: pathlib.Path) -> None:
    seen = []
    state = SimpleNamespace(last_saved=None, replay=(), replace=lambda **_: state)
    with MetricsWriter(tmp_path, console=io.StringIO()) as writer:
        ctx = SimpleNamespace(
            writer=writer,
            clock=PhaseClock(),
            workdir=tmp_path,
            processes=Processes(),
            updates_per_round=2,
            checkpointer=SimpleNamespace(save=lambda *_: seen.append(_events(tmp_path))),
        )
        (tmp_path / STOPPED).write_text("{}")  # of a stop that has been mended
        for number in (1, 2):
            writer.write(2 * number, number, "policy", {"policy/loss": float(number)})
            rounds.save(ctx, state, number)
    assert [events.get(("policy/loss", 2 * n)) for n, events in enumerate(seen, 1)] == [1.0, 2.0]
    assert not (tmp_path / STOPPED).exists()


@pytest.fixture
def uncached():
    """Compile although another test may have compiled the same program."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_compilations_are_counted_once(uncached: None) -> None:
    double = jax.jit(lambda x: x * 2)
    x3, x4 = jnp.ones(3), jnp.ones(4)
    with CompileCounter() as counter:
        double(x3)
        assert counter.count == 1 and counter.seconds > 0
        double(x3)
        assert counter.count == 1
        double(x4)
        assert counter.count == 2
    jax.jit(lambda x: x * 3)(x3)
    assert counter.count == 2


def test_a_program_kept_on_disk_is_not_compiled_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    names = (
        "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    x = jnp.ones(7)
    try:
        keep_compiled_programs()
        compilation_cache.reset_cache()
        with CompileCounter() as counter:
            first = jax.jit(lambda x: x * 5 + 1)(x)
            assert counter.count == 1
            jax.clear_caches()
            second = jax.jit(lambda x: x * 5 + 1)(x)
            assert counter.count == 1 and counter.loaded == 1
        np.testing.assert_array_equal(first, second)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_programs_beyond_the_limit_go_the_oldest_first(tmp_path: pathlib.Path) -> None:
    for age, name in enumerate("cab"):
        (tmp_path / name).write_bytes(b"1234")
        os.utime(tmp_path / name, (age, age))
    drop_oldest(tmp_path, 8)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    drop_oldest(tmp_path / "missing", 8)


def test_every_record_says_how_much_was_compiled(tmp_path: pathlib.Path, uncached: None) -> None:
    triple, x = jax.jit(lambda x: x * 3), jnp.ones(5)
    with MetricsWriter(tmp_path, console=io.StringIO()) as writer:
        records = []
        for step in range(3):
            records.append(writer.write(step, step, "policy", {}))
            triple(x)
    assert [record["compile/count"] for record in records] == [0, 1, 1]
    seconds = [record["compile/seconds"] for record in records]
    assert seconds[0] == 0 < seconds[1] == seconds[2]


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(metrics.progress(range(3), "rounds")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_progress_shows_the_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(metrics.sys, "stderr", terminal)
    assert list(metrics.progress([1, 2], "rounds")) == [1, 2]
    assert "rounds" in terminal.getvalue() and "<" in terminal.getvalue()
