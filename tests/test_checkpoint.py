"""Checkpoints: exact, asynchronous, atomic, and clear about what is wrong."""

from __future__ import annotations

import errno
import gc
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gapo_jax import checkpoint, checksums
from gapo_jax.checkpoint import Checkpointer, CheckpointError


@flax.struct.dataclass
class TrainState:
    params: dict
    opt_state: optax.OptState
    step: jax.Array


def make_state(seed: int = 0, width: int = 3) -> dict:
    key = jax.random.key(seed)
    params = {"dense": {"kernel": jax.random.normal(key, (width, 2)), "bias": jnp.zeros(2)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(params, opt_state, params)
    return {
        "policy": TrainState(params, opt_state, jnp.int32(seed)),
        "keys": (key, jax.random.split(key, 4)),
        "kl_coef": jnp.float32(0.1 + seed),
        "half": jnp.arange(4, dtype=jnp.bfloat16),
    }


def arrays(tree) -> list[np.ndarray]:
    def to_numpy(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf)

    return [to_numpy(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, wanted in zip(arrays(actual), arrays(expected), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_round_trip_is_exact_and_keeps_types(tmp_path: pathlib.Path) -> None:
    state, host = make_state(7), {"round": 3, "replay": ["ä\n", "b"], "mean": 0.1, "none": None}
    with Checkpointer(tmp_path / "ck") as checkpointer:
        checkpointer.save(5, state, host)
    with Checkpointer(tmp_path / "ck") as checkpointer:
        assert checkpointer.latest() == 5
        restored, restored_host = checkpointer.restore(make_state(1))
    assert_same(restored, state)
    assert restored_host == host
    # A restored key is a typed key and draws what the saved one draws.
    np.testing.assert_array_equal(
        jax.random.normal(restored["keys"][0], (3,)), jax.random.normal(state["keys"][0], (3,))
    )


def test_host_dictionary_of_numbers_alone_is_json(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(2)}, {"a": 1, "b": 2.5}, wait=True)
        assert checkpointer.restore({"w": jnp.ones(2)})[1] == {"a": 1, "b": 2.5}


def test_only_the_newest_are_kept(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3, 4):
            checkpointer.save(step, {"w": jnp.full(2, step)}, {})
        checkpointer.wait()
        assert checkpointer.steps() == (3, 4)
        state, _ = checkpointer.restore({"w": jnp.zeros(2, jnp.int32)}, step=3)
        np.testing.assert_array_equal(state["w"], [3, 3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_saving_a_saved_step_again_does_nothing(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(2)}, {}, wait=True)
        checkpointer.save(1, {"w": jnp.zeros(2)}, {}, wait=True)
        np.testing.assert_array_equal(checkpointer.restore({"w": jnp.ones(2)})[0]["w"], [1, 1])


def test_a_save_is_not_changed_by_donation_or_by_later_changes(tmp_path: pathlib.Path) -> None:
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    state = {f"w{i}": jnp.full((512, 1024), float(i)) for i in range(16)}
    expected, host = arrays(state), {"texts": ["first"]}
    with Checkpointer(tmp_path) as checkpointer:
        step(jax.tree.map(jnp.copy, state))  # compiled beforehand, so that it runs at once
        checkpointer.save(1, state, host)
        host["texts"].append("second")
        state = jax.block_until_ready(step(step(state)))
        restored, restored_host = checkpointer.restore(state)
    for got, wanted in zip(arrays(restored), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert restored_host == {"texts": ["first"]}


def test_another_tree_or_shape_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(), {}, wait=True)
        with pytest.raises(ValueError, match=r"policy/params/dense/kernel: wanted float32\[5, 2\]"):
            checkpointer.restore(make_state(width=5))
        more = make_state() | {"critic": jnp.ones(2)}
        with pytest.raises(ValueError, match="critic: not in the checkpoint"):
            checkpointer.restore(more)
        less = make_state()
        del less["half"]
        with pytest.raises(ValueError, match="half: only in the checkpoint"):
            checkpointer.restore(less)
        other = make_state() | {"half": jnp.arange(4, dtype=jnp.float32)}
        with pytest.raises(ValueError, match=r"half: wanted float32\[4\], got bfloat16\[4\]"):
            checkpointer.restore(other)
        assert_same(checkpointer.restore(make_state(1))[0], make_state())
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_missing_checkpoints_are_named(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest() is None
        with pytest.raises(FileNotFoundError, match="any"):
            checkpointer.restore({"w": jnp.ones(2)})
        checkpointer.save(1, {"w": jnp.ones(2)}, {}, wait=True)
        with pytest.raises(FileNotFoundError, match=r"wanted checkpoint 2.*found \[1\]"):
            checkpointer.restore({"w": jnp.ones(2)}, step=2)


def _truncate_data(path: pathlib.Path) -> None:
    for file in (path / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _drop_metadata(path: pathlib.Path) -> None:
    (path / "state" / "_METADATA").unlink()


def _drop_host(path: pathlib.Path) -> None:
    shutil.rmtree(path / "host")


@pytest.mark.parametrize("damage", [_truncate_data, _drop_metadata, _drop_host])
def test_a_damaged_newest_checkpoint_is_skipped(tmp_path: pathlib.Path, damage) -> None:
    abstract = {"w": jax.ShapeDtypeStruct((300, 300), jnp.float32)}
    weights = jax.random.normal(jax.random.key(0), (300, 300))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": weights}, {"round": 1})
        checkpointer.save(2, {"w": weights * 2}, {"round": 2})
    damage(tmp_path / "2")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(UserWarning, match="checkpoint 2 .* set aside as 2.unreadable"):
            state, host = checkpointer.restore(abstract)
        np.testing.assert_array_equal(state["w"], weights)
        assert host == {"round": 1} and checkpointer.steps() == (1,)
        # The run goes on and saves the same step anew.
        checkpointer.save(2, {"w": weights * 3}, {"round": 2}, wait=True)
        np.testing.assert_array_equal(checkpointer.restore(abstract)[0]["w"], weights * 3)


# Orbax leaves coroutines behind when reading fails in the middle.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_never_comes_back_as_a_value(tmp_path: pathlib.Path) -> None:
    """Wherever it is: the step is set aside and the one before it is read, or nothing changed."""
    weights = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "step": jnp.int32(7)}
    other = jax.tree.map(lambda x: x * 2, weights)
    with Checkpointer(tmp_path / "whole") as checkpointer:
        checkpointer.save(1, weights, {"round": 1})
        checkpointer.save(2, other, {"round": 2, "texts": ["a long enough text"] * 3})
    rng, noticed = np.random.default_rng(0), 0
    for trial in range(12):
        folder = tmp_path / str(trial)
        shutil.copytree(tmp_path / "whole", folder)
        files = [path for path in (folder / "2").rglob("*") if path.is_file()]
        data = [path for path in files if path.parent.name == "d" and path.stat().st_size > 2000]
        path = data[0] if trial < 8 else files[trial % len(files)]
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with warnings.catch_warnings(), Checkpointer(folder) as checkpointer:
            warnings.simplefilter("ignore")
            state, host = checkpointer.restore(weights)
        noticed += host["round"] == 1
        assert_same(state, weights if host["round"] == 1 else other)
    gc.collect()
    assert noticed >= 8


def test_a_value_that_differs_from_its_checksum_is_named(tmp_path, monkeypatch) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": {"w": jnp.ones(3)}}, {"round": 1}, wait=True)
        honest = checkpoint.array_checksums
        monkeypatch.setattr(checkpoint, "array_checksums", lambda tree: honest(tree) | {"a/w": 5})
        checkpointer.save(2, {"a": {"w": jnp.ones(3)}}, {"round": 2}, wait=True)
        monkeypatch.undo()
        said = "checkpoint 2 .* set aside .*a/w differ from the checksums of the save"
        with pytest.warns(UserWarning, match=said):
            assert checkpointer.restore({"a": {"w": jnp.ones(3)}})[1] == {"round": 1}


def test_a_checkpoint_without_checksums_is_read(tmp_path: pathlib.Path) -> None:
    """As versions before the checksums wrote them."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(), {"round": 1}, wait=True)
    shutil.rmtree(tmp_path / "1" / "checksums")
    with Checkpointer(tmp_path) as checkpointer:
        assert_same(checkpointer.restore(make_state(1))[0], make_state())


def test_checksums_see_every_bit_and_no_layout() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    (plain,) = checksums.array_checksums({"w": jnp.asarray(values)}).values()
    # By hand: bits times odd weights in the order of the elements.
    bits, weights = values.view(np.uint32).ravel().astype(object), range(1, 49, 2)
    assert plain == sum(b * w for b, w in zip(bits, weights)) % 2**32
    for index in (0, 11, 23):
        for bit in (0, 13, 31):
            changed = values.copy()
            changed.view(np.uint32).reshape(-1)[index] ^= np.uint32(1 << bit)
            assert checksums.array_checksums({"w": changed})["w"] != plain
    swapped = values.copy()
    swapped[0, 0, 0], swapped[1, 2, 3] = values[1, 2, 3], values[0, 0, 0]
    assert checksums.array_checksums({"w": swapped})["w"] != plain
    host = jax.device_put(
        jnp.asarray(values), jnp.asarray(values).sharding.with_memory_kind("pinned_host")
    )
    assert checksums.array_checksums({"w": host})["w"] == plain
    tree = {
        "b": jnp.array([True, False, True]),
        "h": jnp.ones(3, jnp.bfloat16),
        "k": jax.random.key(3),
    }
    found = checksums.array_checksums(tree)
    assert found["b"] == 1 + 5 and found["h"] == 0x3F80 * (1 + 3 + 5) and found["k"] == 3 * 3


def test_reading_only_changes_nothing(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(2)}, {"round": 1})
        checkpointer.save(2, {"w": jnp.zeros(2)}, {"round": 2})
    _drop_metadata(tmp_path / "2")
    (tmp_path / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)  # a save under way
    before = sorted(tmp_path.rglob("*"))
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        with pytest.warns(UserWarning, match=r"checkpoint 2 .* is skipped \("):
            assert checkpointer.restore({"w": jnp.zeros(2)})[1] == {"round": 1}
        with pytest.raises(ValueError, match="read_only"):
            checkpointer.save(3, {"w": jnp.ones(2)}, {})
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(FileNotFoundError, match=r"wanted checkpoint \(any\) in .*found \[\]"):
        Checkpointer(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()


def test_a_step_that_is_set_aside_leaves_the_one_before_it(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"w": jnp.full(3, step)}, {}, wait=True)
        checkpointer.set_aside(2, "collapsed")
        assert checkpointer.latest() == 1
        restored, _ = checkpointer.restore({"w": jnp.zeros(3, int)})
        assert restored["w"].tolist() == [1, 1, 1]
        # The round is run again, and comes out otherwise.
        checkpointer.save(2, {"w": jnp.full(3, 7)}, {}, wait=True)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore({"w": jnp.zeros(3, int)})[0]["w"].tolist() == [7, 7, 7]
    assert (tmp_path / "2.collapsed").is_dir()


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Free some space"),
        (OSError(errno.EROFS, "Read-only file system"), "the right to write to"),
        (PermissionError(errno.EACCES, "Permission denied"), "the right to write to"),
    ],
)
def test_a_save_that_fails_says_what_to_do_about_its_cause(tmp_path, monkeypatch, cause, said):
    with Checkpointer(tmp_path) as checkpointer:

        def fail(*_, **__):
            raise RuntimeError("a save failed") from cause

        monkeypatch.setattr(checkpointer._manager, "save_checkpointables_async", fail)
        with pytest.raises(CheckpointError, match=f"{cause.strerror}.*{said}"):
            checkpointer.save(1, {"w": jnp.zeros(3)}, {})


def test_nothing_readable_is_an_error(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(2)}, {}, wait=True)
    _drop_metadata(tmp_path / "1")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match="no checkpoint in .* can be read .*step 1"):
            checkpointer.restore({"w": jnp.ones(2)})
    assert (tmp_path / "1").is_dir()


def test_going_back_in_time_is_refused(tmp_path: pathlib.Path) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, {"w": jnp.ones(2)}, {}, wait=True)
        with pytest.raises(ValueError, match=r"already holds steps \[5\]"):
            checkpointer.save(4, {"w": jnp.ones(2)}, {})


def test_bad_arguments(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="config.checkpoint.keep"):
        Checkpointer(tmp_path, keep=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="--workdir"):
        Checkpointer(tmp_path / "file" / "checkpoints")
    with Checkpointer(tmp_path / "ck") as checkpointer:
        with pytest.raises(TypeError, match="JSON"):
            checkpointer.save(1, {"w": jnp.ones(2)}, {"array": np.ones(2)})


_SAVER = """
import resource, signal, sys
import jax.numpy as jnp
from gapo_jax import checkpoint
from gapo_jax.checkpoint import Checkpointer, CheckpointError

def state(step, rows):
    # Not compressible to nothing, and different in every element.
    return {"w": jnp.sin(jnp.arange(rows * 1000.0) * step).reshape(rows, 1000)}

"""


def _python(code: str, *arguments: object, before: tuple[str, ...] = ()) -> list[str]:
    program = _SAVER + textwrap.dedent(code)
    return [*before, sys.executable, "-c", program, *(str(argument) for argument in arguments)]


def test_sigkill_in_the_middle_of_a_save_leaves_the_older_checkpoint(
    tmp_path: pathlib.Path,
) -> None:
    code = """
    import os, pathlib
    checkpointer = Checkpointer(sys.argv[1], keep=1)
    checkpointer.save(1, state(1, 10), {"round": 1}, wait=True)
    checkpointer.save(2, {str(i): state(2, 1000) for i in range(60)}, {"round": 2})
    # Half-written: step 2 has some data in a temporary folder, but no folder of its own yet.
    folder = pathlib.Path(sys.argv[1])
    while not any(path.is_file() for path in folder.glob("2.*/**/d/*")):
        assert not (folder / "2").exists(), "the save ended before it could be killed"
    os.kill(os.getpid(), signal.SIGKILL)
    """
    result = subprocess.run(_python(code, tmp_path), capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not (tmp_path / "2").exists() and list(tmp_path.glob("2.*"))
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.steps() == (1,)
        abstract = {"w": jax.ShapeDtypeStruct((10, 1000), jnp.float32)}
        restored, host = checkpointer.restore(abstract)
        expected = jnp.sin(jnp.arange(10_000.0)).reshape(10, 1000)
        np.testing.assert_array_equal(restored["w"], expected)
        assert host == {"round": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


_FULL = """
checkpointer = Checkpointer(sys.argv[1], keep=1)
checkpointer.save(1, state(1, 10), {"round": 1}, wait=True)
if len(sys.argv) > 2:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    checkpointer.save(2, state(2, 4_000), {"round": 2}, wait=True)
except CheckpointError as error:
    print("message:", error)
restored, host = checkpointer.restore(state(1, 10))
print("restored:", bool((restored["w"] == state(1, 10)["w"]).all()), host, checkpointer.steps())
checkpointer.save(3, state(3, 10), {"round": 3}, wait=True)
print("then:", checkpointer.steps())
"""


def _assert_survived(output: str) -> None:
    lines = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
    assert lines["restored"] == f"True {json.dumps({'round': 1})} (1,)".replace('"', "'")
    assert lines["then"] == "(3,)"
    message = lines["message"]
    assert "checkpoint 2 could not be written" in message and "GB free" in message
    assert "Complete checkpoints there: [1]" in message and "continues from step 1" in message


def test_a_write_that_fails_leaves_the_older_checkpoint(tmp_path: pathlib.Path) -> None:
    command = _python(_FULL, tmp_path, 100_000)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    _assert_survived(result.stdout)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: pathlib.Path) -> None:
    mount = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'
    before = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path))
    if shutil.which("unshare") is None or subprocess.run([*before, "true"]).returncode:
        pytest.skip("a small file system cannot be mounted here")
    command = _python(_FULL, tmp_path / "checkpoints", before=before)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    _assert_survived(result.stdout)
    assert "No space left" in result.stdout or "RESOURCE_EXHAUSTED" in result.stdout
