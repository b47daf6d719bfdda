"""The scripts that people run first: what they say when something is missing, and their syntax."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from by_path import ROOT

from gapo_jax.cli import doctor, generate

SHELL = sorted((ROOT / "scripts").glob("*.sh")) + [ROOT / ".ci" / "run"]


def test_a_model_that_cannot_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "/models/mine")

    monkeypatch.setattr(generate, "load_any", refuse)
    assert generate.main(["--model", "/models/mine", "--prompt", "Hi"]) == 1
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: '/models/mine'\n"


def findings(check) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.status, finding.mend) for finding in check}


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_parse(path: pathlib.Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK) or path.name == "find_python.sh"


def _bash(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f". scripts/find_python.sh\n{code}"
    return subprocess.run(
        ["bash", "-c", program, "scripts/quickstart.sh"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_the_first_python_that_really_runs_is_taken(tmp_path: pathlib.Path) -> None:
    shim = tmp_path / "broken"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    done = _bash('find_python && echo "$python"', PYTHON=f"{shim} {sys.executable}")
    assert done.stdout.strip() == sys.executable


def test_an_old_python_is_explained(tmp_path: pathlib.Path) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = _bash("find_python", PYTHON=str(old))
    assert done.returncode == 1 and "wanted Python 3.11, 3.12 or 3.13" in done.stderr
    assert "PYTHON=/path/to/python3.11 bash scripts/quickstart.sh" in done.stderr


def test_an_environment_is_built_once_and_again_when_its_stamp_differs(
    tmp_path: pathlib.Path,
) -> None:
    # --no-index keeps pip from the network: an empty requirement list has nothing to fetch.
    (tmp_path / "none.txt").write_text("")
    code = f"""python={sys.executable}
    make_environment {tmp_path}/env "--no-index -r {tmp_path}/none.txt" || exit 1
    cat {tmp_path}/env/.stamp
    touch {tmp_path}/env/kept
    make_environment {tmp_path}/env "no-such-package --no-index" && ls {tmp_path}/env/kept
    sed -i "s/^[0-9a-f]*/0/" {tmp_path}/env/.stamp
    make_environment {tmp_path}/env "no-such-package --no-index" || echo refused
    ls {tmp_path}/env"""
    done = _bash(code)
    assert ".".join(map(str, sys.version_info[:3])) in done.stdout.splitlines()[0]
    assert "/env/kept" in done.stdout and "refused" in done.stdout
    # A failed installation leaves no stamp, so that the next run tries again.
    assert "kept" in done.stdout.split("refused")[1]
    assert not (tmp_path / "env" / ".stamp").exists()
    assert "pip could not install 'no-such-package --no-index'" in done.stderr


def test_the_test_script_refuses_an_unknown_mode() -> None:
    command = ["bash", str(ROOT / "scripts" / "test.sh"), "everything"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "got 'everything'" in done.stderr


def test_the_doctor_reads_the_requirements() -> None:
    found = doctor.requirements()
    assert found["jax"] == "0.10.2" and found["orbax-checkpoint"].startswith("0.12")
    assert "torch" not in found and len(found) > 15


def test_the_doctor_names_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {name: "99.0" for name in doctor.requirements()} | {"flax": "0.8.1"}
    del versions["gguf"]
    monkeypatch.setattr(doctor, "_installed", versions.get)
    found = findings(doctor.check_packages())
    assert found["gguf"] == found["flax"] == (doctor.FAIL, "pip install -e .")
    assert found["jax and flax"] == (doctor.FAIL, "pip install -U flax")
    assert "jax" not in found and "packages" not in found


def test_the_doctor_survives_a_device_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LIST_DEVICES", "import time; time.sleep(60)")
    ((name, (status, mend)),) = findings(doctor.check_devices(timeout_s=0.2)).items()
    assert (name, status) == ("devices", doctor.FAIL) and "JAX_PLATFORMS=cpu" in mend


def test_the_doctor_reports_a_jax_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LIST_DEVICES", "raise RuntimeError('no such plugin')")
    (finding,) = doctor.check_devices()
    assert finding.status == doctor.FAIL and "no such plugin" in finding.state


def test_the_doctor_says_what_each_accelerator_has_and_wants(monkeypatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor, "_installed", {"libtpu": "0.0.52"}.get)
    found = findings(doctor.check_accelerators())
    assert found["NVIDIA GPU"] == (doctor.WARN, 'pip install -e ".[cuda]"')
    assert found["TPU"] == (doctor.OK, "") and "plan" not in found
    monkeypatch.setattr(doctor, "_installed", {"jax-cuda13-plugin": "0.10.2"}.get)
    found = findings(doctor.check_accelerators())
    assert found["NVIDIA GPU"][0] == doctor.OK
    assert found["plan"] == (doctor.WARN, 'pip install -e ".[plan]"')


def test_the_doctor_fits_the_mesh_of_a_configuration(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    text = (ROOT / "configs" / "gapo_tiny.py").read_text()
    for sizes, status, said in (
        ("fsdp=2", doctor.OK, "data 2 x fsdp 2 x tensor 1"),
        ("data=3", doctor.FAIL, "wanted mesh sizes that multiply to the 4 devices here"),
    ):
        own = tmp_path / f"own_{status}.py"
        name, size = sizes.split("=")
        change = f"""
def changed(get=get_config):
    config = get()
    config.mesh.{name} = {size}
    return config
get_config = changed
"""
        own.write_text(text + change)
        (finding,) = doctor.check_mesh(str(own))
        assert finding.status == status and said in finding.state, finding
    (finding,) = doctor.check_mesh("no_such_config")
    assert finding.status == doctor.FAIL and "no configuration no_such_config" in finding.state


def test_a_bug_report_has_what_is_wrong_and_no_secret(monkeypatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("GAPO_JAX_TOKEN", "hidden")
    home = str(pathlib.Path.home())
    found = [doctor.Finding(doctor.FAIL, "weights", f"not in {home}/x", "fetch")]
    text = doctor.bug_report(found)
    assert "FAIL  weights: not in ~/x" in text and "JAX_PLATFORMS=cpu" in text
    assert "hidden" not in text and home not in text and "jax 0." in text
    assert text.startswith("```text\n") and text.endswith("\n```")


def test_the_doctor_notices_an_unused_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    found = findings(doctor._unused_accelerator({"cpu"}, None))
    assert found["accelerator"] == (doctor.WARN, 'pip install -e ".[cuda]"')
    assert not findings(doctor._unused_accelerator({"cuda"}, None))
    assert not findings(doctor._unused_accelerator({"cpu"}, "cpu"))


def test_the_doctor_tries_to_write(tmp_path: pathlib.Path) -> None:
    (fine,) = doctor.check_folder("workdir", tmp_path / "a" / "b", "mend", wanted_gb=0)
    assert fine.status == doctor.OK and not list(tmp_path.iterdir())
    (small,) = doctor.check_folder("workdir", tmp_path, "mend", wanted_gb=1e9)
    assert (small.status, small.mend) == (doctor.WARN, "mend")
    # /proc refuses new files, also to the superuser.
    if pathlib.Path("/proc/self").exists():
        (refused,) = doctor.check_folder("workdir", pathlib.Path("/proc/runs"), "mend", wanted_gb=0)
        assert (refused.status, refused.mend) == (doctor.FAIL, "mend")


def test_the_doctor_ends_with_1_if_the_weights_are_missing(tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "GAPO_JAX_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "scripts" / "doctor.py"), "--workdir", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and not done.stderr
    assert "FAIL  smollm2-135m-instruct" in done.stdout
    assert "-> python scripts/fetch_weights.py" in done.stdout
    assert "1 x cpu (cpu)" in done.stdout
