"""The workdir of a run: whose it is, what lies where, what several processes share of it.

Whatever is done lies in the workdir, so the same command continues an interrupted run.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gapo_jax import config as configuration
from gapo_jax import io
from gapo_jax.checkpoint import folder_exists, make_folder
from gapo_jax.config import Config
from gapo_jax.train.datasets.user import check_source
from gapo_jax.train.lock import LOCK
from gapo_jax.train.runtime import Processes

log = logging.getLogger("gapo_jax")
CONFIG, SUMMARY, REPORT = "config.json", "summary.json", "report.html"
EXPORT, ADAPTER, CHECKPOINTS = "export", "adapter", "checkpoints"


def claim_workdir(config: Config, workdir: Path) -> None:
    """Create the workdir, or check that the run in it is this one; write config.json.

    A configuration that never came to anything (no file lies beside it) may be another one.

    Raises:
        ValueError: the workdir holds a run of another configuration; lists what differs.
        OSError: the workdir cannot be written.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / CONFIG
    if path.exists():
        before = configuration.from_json(io.read_json(path))
        changed = configuration.differences(
            configuration.identity(before), configuration.identity(config)
        )
        files = [p for p in workdir.rglob("*") if p.is_file() and p.name not in (CONFIG, LOCK)]
        if changed and files:
            raise ValueError(
                f"{workdir} holds a run of another configuration ({'; '.join(changed)}); pass "
                "another --workdir, or the configuration that it was started with"
            )
    io.write_json(path, configuration.to_json(config))


def share_workdir(config: Config, workdir: Path, processes: Processes) -> tuple[Path, str]:
    """Return (folder of this process, folder of the checkpoints) of a run.

    The first process works in `workdir`. What it has made there already goes to the others, who
    make the same things from then on, each in a folder of its own that is of no further use.

    Raises:
        ValueError, FileNotFoundError: as `check_source` and `claim_workdir`; or another process
            cannot see the checkpoints.
        ProcessMissing: a process does not come.
    """
    shared = None
    if processes.first:
        check_source(config, workdir)
        claim_workdir(config, workdir)
        checkpoints = config.checkpoint.directory or str(workdir.absolute() / CHECKPOINTS)
        make_folder(checkpoints)
        made = [] if processes.count == 1 else sorted(workdir.glob("*.jsonl"))
        files = {p.name: p.read_text() for p in made if p.stem not in ("metrics", "samples")}
        shared = {"files": files, "checkpoints": checkpoints}
    shared = processes.gather("workdir", shared)[0]
    if processes.first:
        return workdir, shared["checkpoints"]
    if not folder_exists(shared["checkpoints"]):
        raise ValueError(
            f"process {processes.index} cannot see the folder {shared['checkpoints']} of the first "
            "process; set config.checkpoint.directory to one that all see (a shared disk, gs://...)"
        )
    own = Path(tempfile.mkdtemp(prefix="gapo_jax_process_"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    for name, text in shared["files"].items():
        (own / name).write_text(text)
    return own, shared["checkpoints"]


def finished_summary(config: Config, workdir: Path) -> dict[str, Any]:
    """Return the summary of a run that has ended with the rounds asked for and left all its files;
    empty otherwise.

    Raises:
        ValueError: as `claim_workdir`.
    """
    path = workdir / SUMMARY
    if not path.is_file():
        return {}
    claim_workdir(config, workdir)
    summary = io.read_json(path)
    exported = not config.export or ("export" in summary and (workdir / EXPORT).is_dir())
    report = workdir / REPORT
    ended = summary["rounds"] == config.rounds or summary.get("stopped_early", False)
    if not ended or not exported or not report.is_file():
        return {}
    log.info("%s holds this run, finished; more rounds go on from there: --config.rounds", workdir)
    return summary | {"report": str(report)}
