"""One run at a time in a workdir."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"
log = logging.getLogger("gapo_jax")


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keep other runs out of `workdir` while the block runs; make the folder if it is missing.

    The lock is the kernel's (flock) on WORKDIR/.lock, so that it ends with the process however
    that ends; the file only says who holds it, and is removed with the lock. Two machines exclude
    each other where their file system passes locks on, as NFS does.

    Raises:
        ValueError: another run has the workdir; the message names its process and machine.
        OSError: the folder cannot be made or written to.
    """
    made = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / LOCK
    file = _open_locked(path)
    os.ftruncate(file, 0)
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.ctime()}
    os.write(file, (json.dumps(holder) + "\n").encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
        if made:
            with contextlib.suppress(OSError):  # anything in it stays
                workdir.rmdir()


def _open_locked(path: Path) -> int:
    """Open and lock a file; return its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ValueError(
                f"{path.parent} is in use by {_holder(path)}. Wait until that run has ended or "
                "stop it, or pass another --workdir"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): start one run at a time in it", path, error)
            return file
        # The holder before may have removed the file between our opening and our locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file).st_ino == path.stat().st_ino:
                if left := path.read_text():
                    log.info("the run of %s in %s has ended", _describe(left), path.parent)
                return file
        os.close(file)


def _holder(path: Path) -> str:
    try:
        return _describe(path.read_text())
    except OSError:
        return "another process"


def _describe(text: str) -> str:
    """Return the process and machine that a lock file names."""
    try:
        holder = json.loads(text)
        return f"process {holder['process']} on {holder['machine']} (since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
