"""Save and restore a whole run by Orbax v1: asynchronous, atomic, and checked when read.

The only module that imports orbax. A checkpoint is one folder `DIRECTORY/STEP` with three items:
`state`, a pytree of arrays (parameters, optimizer states, typed PRNG keys, counters); `host`, a
JSON dictionary (replay buffer, seconds); and `checksums` of both, which
checkpoints of earlier versions lack. The folder gets its name when everything is on the disk, so a
process that is killed during a save leaves nothing that could be taken for a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from gapo_jax.checksums import array_checksums, named_leaves
from gapo_jax.records import Json, JsonObject

_ITEMS = ("state", "host")  # those that every checkpoint has
_CHECKSUMS = "checksums"


def _absolute(folder: str | os.PathLike[str]) -> epath.Path:
    """Return a folder as epath, which reads buckets too; a local one as an absolute path."""
    if "://" in str(folder):
        return epath.Path(folder)
    return epath.Path(pathlib.Path(folder).absolute())


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder for checkpoints (local or `gs://BUCKET/FOLDER`) if it is not there.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        _absolute(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot use {folder} for checkpoints: {error}. Give a folder that can be written to "
            "with --workdir or config.checkpoint.directory."
        ) from error


def folder_exists(folder: str | os.PathLike[str]) -> bool:
    """Return whether this process sees a folder (local or `gs://BUCKET/FOLDER`)."""
    return _absolute(folder).is_dir()


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says what to do."""


class Checkpointer:
    """The checkpoints of one run, the newest `keep` of them.

    One save may be under way at a time; `save` waits for the one before it. Not thread-safe. In a
    run of several processes every process calls every method.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 2, read_only: bool = False):
        """Open `directory`, made if missing; what an interrupted save left there is removed.

        With `read_only` nothing in it is changed, so that the checkpoints of a run can be read
        while it goes on.

        Raises:
            ValueError: `keep` is below 1.
            FileNotFoundError: with `read_only`, the directory is not there.
            CheckpointError: the directory cannot be made or written to.
        """
        if keep < 1:
            raise ValueError(f"wanted keep >= 1, got {keep}; set config.checkpoint.keep")
        self.directory = _absolute(directory)
        self._keep, self._read_only = keep, read_only
        self._pending: tuple[int, Any] | None = None
        self._saved: set[int] = set()
        if read_only and not folder_exists(self.directory):
            raise _missing(None, self.directory, ())
        if not read_only:
            make_folder(self.directory)
        try:
            self._manager = self._open()
        except OSError as error:
            raise CheckpointError(
                f"cannot use {self.directory} for checkpoints: {error}. Give a folder that can be "
                "written to with --workdir."
            ) from error

    def save(self, step: int, state: Any, host: JsonObject, *, wait: bool = False) -> None:
        """Start saving `state` and `host` as checkpoint `step`; return once both are copied.

        The arrays are copied off the devices and the dictionary is copied before this returns, so
        the caller may donate the former and change the latter at once. Writing goes on in the
        background; its errors are raised by the next `save`, `wait` or `close`. A step that this
        object has saved already is not written again.

        Args:
            step: the number of the checkpoint, above all earlier ones.
            state: pytree of jax or numpy arrays and typed keys.
            host: JSON-ready dictionary; tuples come back as lists and keys as strings.
            wait: also wait until the checkpoint is on the disk.

        Raises:
            CheckpointError: this save (or, from the background, the one before) failed, as on a
                full disk. Older checkpoints are untouched.
            ValueError: a newer checkpoint is in the directory, or it is open for reading only.
            TypeError: `host` is not JSON-ready.
        """
        if self._read_only:
            raise ValueError(f"{self.directory} is open for reading only; leave out read_only")
        self.wait()
        if step not in self._saved:
            newer = [other for other in self.steps() if other > step]
            if newer:
                raise ValueError(
                    f"cannot save step {step}: {self.directory} already holds steps {newer}. "
                    "Continue from the newest, or start afresh with another --workdir."
                )
            host = json.loads(json.dumps(host))
            items = {"state": state, "host": host, _CHECKSUMS: _all_checksums(state, host)}
            try:
                response = self._manager.save_checkpointables_async(step, items, overwrite=True)
            except Exception as error:
                raise self._save_error(step, error) from error
            self._pending = (step, response)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait for the save under way, if there is one.

        Raises:
            CheckpointError: it failed; `save` says when.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            raise self._save_error(step, error) from error
        self._saved.add(step)

    def steps(self) -> tuple[int, ...]:
        """Return the steps of the complete checkpoints, ascending."""
        return tuple(checkpoint.step for checkpoint in self._manager.checkpoints)

    def latest(self) -> int | None:
        """Return the newest complete step, None if there is none."""
        return max(self.steps(), default=None)

    def restore(
        self,
        abstract_state: Any,
        step: int | None = None,
        former_names: Mapping[str, str] | None = None,
    ) -> tuple[Any, JsonObject]:
        """Read a checkpoint back onto the devices.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct` (or arrays) with the shapes, dtypes
                and shardings wanted; a leaf without sharding goes to the first device. The mesh
                may differ from the one that the checkpoint was saved from.
            step: which one; None takes the newest that can be read. Newer ones that cannot be
                read are set aside (renamed to `STEP.unreadable`) with a warning; `read_only`, with
                the warning alone.
            former_names: of fields of `abstract_state`, a dataclass: the names that older
                checkpoints may have them under.

        Returns:
            `(state, host)`; the leaves of `state` are jax arrays, but for a network without
            parameters, of which nothing is read where the checkpoint has some.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: the checkpoint's tree, shapes or dtypes differ; the message names paths.
            CheckpointError: no checkpoint can be read.
        """
        self.wait()
        wanted = list(self.steps())[::-1] if step is None else [step]
        if not wanted or (step is not None and step not in self.steps()):
            raise _missing(step, self.directory, self.steps())
        abstract_state = jax.tree.map(_abstract, abstract_state)
        failures: list[tuple[int, Exception]] = []
        for candidate in wanted:
            try:
                items = self._load(candidate, abstract_state, former_names or {})
                error = None
            except _MismatchError as mismatch:
                raise ValueError(str(mismatch)) from None
            except Exception as failure:
                error = failure
            if error := _agree(error):
                failures.append((candidate, error))
                continue
            self._set_aside(failures)
            self._saved.add(candidate)
            return items
        reasons = "; ".join(f"step {number}: {_first_line(error)}" for number, error in failures)
        raise CheckpointError(
            f"no checkpoint in {self.directory} can be read ({reasons}). Restore it from a copy, "
            "or start afresh with another --workdir."
        )

    def _load(
        self, step: int, abstract_state: Any, former_names: Mapping[str, str]
    ) -> tuple[Any, JsonObject]:
        """Load a checkpoint, check it and compare it with its checksums; return (state, host)."""
        path = self.directory / str(step)
        fields, saved = self._saved_leaves(step)
        renamed = _renamed(fields, former_names)
        unused = _unused(saved, abstract_state)
        template = _under_names(abstract_state, renamed, unused)
        wanted: dict[str, Any] = {"state": template, "host": None}
        _check_leaves(saved, template, unused, path)
        if (path / _CHECKSUMS).is_dir():
            wanted[_CHECKSUMS] = None
        items = self._manager.load_checkpointables(step, wanted)
        state, host = items["state"], items["host"]
        if _CHECKSUMS in wanted:
            sums = items[_CHECKSUMS]
            damaged = [key for key, n in _all_checksums(state, host).items() if sums.get(key) != n]
            if damaged:
                more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
                raise CheckpointError(
                    f"{', '.join(damaged[:3])}{more} differ from the checksums of the save"
                )
        if renamed or unused:
            values = {new: state[old] for new, old in renamed.items()}
            values |= {k: v for k, v in state.items() if k not in renamed.values()}
            state = dataclasses.replace(abstract_state, **values)
        return state, host

    def close(self) -> None:
        """Wait for the save under way and release the directory.

        Raises:
            CheckpointError: the save failed; `save` says when.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> ocp.training.Checkpointer:
        policies: Any = ocp.training  # its policies do not match its own annotations
        return ocp.training.Checkpointer(
            str(self.directory),
            context=_context(),
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(self._keep),
            # A temporary folder may be that of a save under way.
            cleanup_tmp_directories=not self._read_only,
        )

    def _saved_leaves(self, step: int) -> tuple[set[str], dict[str, tuple[tuple[int, ...], Any]]]:
        """Return what checkpoint `step` says that it holds: the names of its parts, empty ones
        too, and path -> (shape, dtype)."""
        path = self.directory / str(step)
        missing = [name for name in _ITEMS if not (path / name).is_dir()]
        if missing:
            raise CheckpointError(f"{path} lacks {missing}")
        with _context():
            metadata = ocp.checkpointables_metadata(str(path)).metadata["state"]
        if metadata is None:
            raise CheckpointError(f"{path / 'state'} has no readable metadata")
        leaves = {path: (leaf.shape, np.dtype(leaf.dtype)) for path, leaf in named_leaves(metadata)}
        return set(metadata) if isinstance(metadata, Mapping) else set(), leaves

    def _set_aside(self, failures: list[tuple[int, Exception]]) -> None:
        for step, error in failures:
            target = self.directory / f"{step}.unreadable"
            fate = "skipped" if self._read_only else f"set aside as {target.name}"
            warnings.warn(
                f"checkpoint {step} in {self.directory} cannot be read and is {fate} "
                f"({_first_line(error)}); continuing from an older one.",
                stacklevel=3,
            )
            if not self._read_only:
                self.set_aside(step, "unreadable")

    def set_aside(self, step: int, suffix: str) -> None:
        """Rename a complete checkpoint to `STEP.suffix`: the one before it is then the newest."""
        if jax.process_index() == 0:
            target = self.directory / f"{step}.{suffix}"
            if target.exists():
                target.rmtree()
            (self.directory / str(step)).rename(target)
        multihost_utils.sync_global_devices("gapo_jax.checkpoint.set_aside")
        self._manager.reload()
        self._saved.discard(step)

    def _save_error(self, step: int, error: Exception) -> CheckpointError:
        """Clear what the failed save left and say what happened and what remains."""
        # Orbax's manager would raise the same error again at every later call; opening another
        # also removes the temporary folder, which takes the space that is missing.
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = self._open()
        room = "Its room is unknown"
        if "://" not in str(self.directory):
            room = f"The disk has {shutil.disk_usage(self.directory).free / 1e9:.2f} GB free"
        kept = list(self.steps())
        continue_from = f"step {kept[-1]}" if kept else "the start"
        return CheckpointError(
            f"checkpoint {step} could not be written to {self.directory}: {_first_line(error)}. "
            f"{room}. Complete checkpoints there: {kept}. {self._remedy(error)} and run the same "
            f"command again: it continues from {continue_from}."
        )

    def _remedy(self, error: BaseException | None) -> str:
        """Return what to do about an error of a save, which may be the cause of others."""
        denied = "://" not in str(self.directory) and not os.access(self.directory, os.W_OK)
        while error is not None:
            denied |= getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS)
            error = error.__cause__ or error.__context__
        if denied:
            return f"Give this user the right to write to {self.directory}"
        return (
            "Free some space (or use a larger disk with --workdir, or a smaller "
            "config.checkpoint.keep)"
        )


def _all_checksums(state: Any, host: Json) -> dict[str, int]:
    """Return the checksums of the arrays, and that of `host` under a path that no array has."""
    return array_checksums(state) | {"/host": zlib.crc32(json.dumps(host).encode())}


def _agree(error: Exception | None) -> Exception | None:
    """Return this process's error, or one in its place where only another process has one."""
    if jax.process_count() == 1:
        return error
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is None and np.any(failed):
        return CheckpointError(f"process {int(np.argmax(failed))} cannot read it")
    return error


class _MismatchError(Exception):
    """The checkpoint is readable but is not of the tree that was asked for."""


def _missing(step: int | None, directory: epath.Path, steps: Sequence[int]) -> FileNotFoundError:
    return FileNotFoundError(
        f"wanted checkpoint {'(any)' if step is None else step} in {directory}, "
        f"found {list(steps)}; pass a workdir of a run that has saved."
    )


def _context() -> ocp.Context:
    """Bind the dictionaries to JSON, because one of numbers would be taken for a pytree; let unused
    networks be left unread."""
    registry = ocp.handlers.local_registry()
    for name in ("host", _CHECKSUMS):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.checkpointables.registry = registry
    return context


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


def _renamed(saved: set[str], former_names: Mapping[str, str]) -> dict[str, str]:
    """Return those of `former_names` that a checkpoint with the parts `saved` still has."""
    return {new: old for new, old in former_names.items() if old in saved and new not in saved}


def _unused(saved: Iterable[str], state: Any) -> set[str]:
    """Return the networks of a checkpoint that have no parameters in `state`: earlier versions kept
    a discriminator in runs that never ask one."""
    in_checkpoint, in_state = (
        {path.partition("/params/")[0] for path in paths if "/params/" in path}
        for paths in (saved, dict(named_leaves(state)))
    )
    return in_checkpoint - in_state


def _under_names(state: Any, renamed: Mapping[str, str], unused: set[str]) -> Any:
    """Return the fields of a dataclass without some, under other names, as a dictionary; itself
    where all keep their names."""
    if not renamed and not unused:
        return state
    fields = [f.name for f in dataclasses.fields(state) if f.metadata.get("pytree_node", True)]
    return {renamed.get(name, name): getattr(state, name) for name in fields if name not in unused}


def _check_leaves(
    saved: JsonObject, abstract_state: Any, unused: set[str], where: epath.Path
) -> None:
    """Raise `_MismatchError` naming every path that is missing, unexpected or of another shape, but
    for those in `unused` networks."""
    wanted = {}
    for path, leaf in named_leaves(abstract_state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        wanted[path] = (leaf.shape, np.dtype(leaf.dtype))
    problems = [f"{path}: not in the checkpoint" for path in wanted if path not in saved]
    problems += [
        f"{path}: only in the checkpoint"
        for path in saved
        if path not in wanted and path.split("/")[0] not in unused
    ]
    problems += [
        f"{path}: wanted {wanted[path][1]}{list(wanted[path][0])}, "
        f"got {saved[path][1]}{list(saved[path][0])}"
        for path in wanted
        if path in saved and wanted[path] != saved[path]
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise _MismatchError(
            f"{where} is a checkpoint of another model or optimizer: {'; '.join(problems[:8])}"
            f"{more}. Use the configuration that it was saved with (config.json in the workdir), "
            "or another --workdir."
        )


def _first_line(error: BaseException) -> str:
    """Return what the innermost cause says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
