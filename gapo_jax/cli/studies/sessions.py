"""Under what a run was made: code, machine and time, for each time that it was started."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import gapo_jax
from gapo_jax import io
from gapo_jax.records import JsonObject

SESSIONS = "sessions.json"  # of a workdir
_RESULTS = "docs/results"  # where lines are appended while a study runs: no change of the code
_PACKAGES = ("jax", "jaxlib", "flax", "optax")


@dataclasses.dataclass
class Session:
    """One start of a run, its beginning, and whether it was told to stop."""

    number: int
    started: float
    told: bool = False


def code_version() -> JsonObject:
    """Return {"commit", "dirty"} of the checkout that the package lies in; None outside of one."""
    root = Path(gapo_jax.__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{_RESULTS}")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def machine() -> JsonObject:
    """Return the processor's model, its cores, and the versions of what computes."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                 if line.startswith("model name")]  # fmt: skip
        model = lines[0] if lines else model
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def read_sessions(workdir: Path) -> list[JsonObject]:
    """Return the sessions of a run, the first one first."""
    path = workdir / SESSIONS
    return io.read_json(path) if path.exists() else []


def open_session(workdir: Path, cores: int, made_shared: bool) -> Session:
    """Write that a run was started on a number of cores; return what `close_session` needs."""
    sessions = read_sessions(workdir)
    record = code_version() | {"machine": machine(), "cores": cores, "made_shared": made_shared}
    # Null where the study itself was killed: then nobody knows.
    record |= {"wall_s": None, "processor_s": None}
    io.write_json(workdir / SESSIONS, [*sessions, record])
    return Session(len(sessions), time.monotonic())


def close_session(session: Session, process: subprocess.Popen[bytes], workdir: Path) -> int | None:
    """Return the exit status of a run, with its times written, or None while it goes on."""
    if process.returncode is None:
        # `wait4` and not `poll`, which would not say how long the processor worked.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if not pid:
            return None
        process.returncode = os.waitstatus_to_exitcode(status)
        sessions = read_sessions(workdir)
        sessions[session.number] |= {
            "wall_s": round(time.monotonic() - session.started, 1),
            "processor_s": round(usage.ru_utime + usage.ru_stime, 1),
        }
        io.write_json(workdir / SESSIONS, sessions)
    return process.returncode
