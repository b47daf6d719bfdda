"""The workdir of a run: whose it is, what lies where, what several processes share of it.

Whatever is done lies in the workdir, so the same command continues an interrupted run.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import shutil
import tempfile
from pathlib import Path

from etils import epath

from gapo_jax import config as configuration
from gapo_jax import io
from gapo_jax.checkpoint import folder_exists, make_folder
from gapo_jax.config import Config
from gapo_jax.records import JsonObject
from gapo_jax.train.datasets.given import read_given
from gapo_jax.train.datasets.prompts import takes_prompts
from gapo_jax.train.datasets.user import check_source
from gapo_jax.train.lock import LOCK
from gapo_jax.train.runtime import Processes

log = logging.getLogger("gapo_jax")
CONFIG, SUMMARY, REPORT = "config.json", "summary.json", "report.html"
EXPORT, ADAPTER, CHECKPOINTS = "export", "adapter", "checkpoints"
STOPPED = "stopped.json"  # says why a run stopped itself
OWNER = "run.json"  # in a folder of checkpoints: whose they are
# What a run that stopped itself may be continued with another value of: what its message names.
_REMEDIES = r"(learning_rate|kl_coef|kl_target|kl_limit|clip_norm|inverse_q\.strength)$"


def claim_workdir(config: Config, workdir: Path) -> None:
    """Create the workdir, or check that the run in it is this one; write config.json.

    A configuration that never came to anything (no file lies beside it) may be another one, and a
    run that stopped itself may go on with other learning rates or another weight of the KL.

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
        stopped = workdir / STOPPED
        mended = [re.search(_REMEDIES, line.partition(": ")[0]) for line in changed]
        if changed and files and stopped.is_file() and all(mended):
            log.info(
                "%s holds a run that stopped itself (%s); it goes on with %s",
                workdir, io.read_json(stopped).get("reason"), "; ".join(changed)
            )  # fmt: skip
            stopped.unlink()
        elif changed and files:
            raise ValueError(
                f"{workdir} holds a run of another configuration ({'; '.join(changed)}); pass "
                "another --workdir, or the configuration that it was started with"
            )
    io.write_json(path, configuration.to_json(config))


def claim_checkpoints(folder: str, workdir: Path) -> None:
    """Note in a folder of checkpoints (`config.checkpoint.directory`) which workdir they belong to.

    Raises:
        ValueError: they belong to another one, whose run would be continued or written over.
    """
    note, own = epath.Path(folder) / OWNER, str(workdir.absolute())
    if not note.exists():
        note.write_text(json.dumps({"workdir": own}) + "\n")
        return
    owner = json.loads(note.read_text())["workdir"]
    if owner != own:
        raise ValueError(
            f"config.checkpoint.directory={folder} holds the checkpoints of the run in {owner}; "
            f"give the run in {own} a directory of its own, or remove {note} if it is that run, "
            "moved"
        )


def share_workdir(config: Config, workdir: Path, processes: Processes) -> tuple[Path, str]:
    """Return (folder of this process, folder of the checkpoints) of a run.

    The first process works in `workdir`. What it has made there already goes to the others, who
    make the same things from then on, each in a folder of its own that is of no further use.

    Raises:
        ValueError, FileNotFoundError: as `check_source`, `read_given`, `claim_workdir` and
            `claim_checkpoints`; or another process cannot see the checkpoints.
        ProcessMissing: a process does not come.
    """
    shared = None
    if processes.first:
        # A user's prompts are read, and so checked, as soon as they are there.
        if not takes_prompts(config, workdir):
            check_source(config, workdir)
        read_given(config, workdir)
        claim_workdir(config, workdir)
        checkpoints = config.checkpoint.directory or str(workdir.absolute() / CHECKPOINTS)
        make_folder(checkpoints)
        if config.checkpoint.directory:
            claim_checkpoints(checkpoints, workdir)
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


def finished_summary(config: Config, workdir: Path) -> JsonObject:
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
