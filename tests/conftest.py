"""Fixtures that several test folders share.

All tests of a session, and the programs that they start, share one cache of compiled programs, new
in every session: half of their time would go into compiling the same small networks again. They are
compiled with few optimisations, as most run for less time than that takes.
"""

from __future__ import annotations

import atexit
import gc
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before any of the package is imported: the shapes and dtypes that signatures promise are checked
# whenever a function is called or traced. Not in train/: its batches and results are also built of
# numpy arrays and, by `jax.tree.map` and `jit(...).lower`, of shardings and descriptions of arrays.
CHECKED = ("losses", "rewards", "rollout")
install_import_hook([f"gapo_jax.{name}" for name in CHECKED], "beartype.beartype")

from gapo_jax.data.weights import locate  # noqa: E402

# Before jax is imported. Test processes and the programs that tests start inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _folder = tempfile.mkdtemp(prefix="gapo_jax_tests_")
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": _folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

# The newer of XLA's two ways to compile fused operations for a CPU makes up two thirds of compiling
# a small step. Of a flag that it does not know XLA dies, hence for the versions that have it only.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )

import jax  # noqa: E402

# Tracing makes many objects, few of them garbage: collected less often, it takes a fifth less time.
gc.set_threshold(100_000, 20, 20)

# What takes longest is started first, so that at the end no test process works while the others
# have nothing left; whole runs come before what finds their programs compiled.
_FIRST = (
    "runs/test_gapo_tiny", "runs/test_two", "multidevice/", "test_sharding",
    "train/offline/test_loop", "train/online/test_loop", "parity/test_real", "runs/", "train/",
    "parity/",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of tests by `_FIRST`; `--no-loadscope-reorder` makes pytest-xdist keep it."""
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(here).as_posix()
        return next((i for i, start in enumerate(_FIRST) if path.startswith(start)), len(_FIRST))

    items.sort(key=rank)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compile fast what compiles longer than it runs: everything but networks of full size."""
    quick = item.path.name not in ("test_real.py", "test_benchmark.py")
    jax.config.update("jax_disable_most_optimizations", quick)


def _cached(name: str) -> Path:
    try:
        return locate(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The cached SmolLM2-135M-Instruct .gguf file; skips with the reason if it is not there."""
    return _cached("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The cached all-MiniLM-L6-v2 folder; skips with the reason if it is not there."""
    return _cached("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def on_eight_devices():
    """Runs files of tests/multidevice in a process of their own, as the number of devices is fixed
    when jax starts."""

    def run(*names: str) -> None:
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        files = [str(Path(__file__).parent / "multidevice" / name) for name in names]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run([*command, *files], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def byte_level():
    """A cased byte-level tokenizer that frames texts as RoBERTa's does, without segments."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(specials + alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": token for name, token in zip(("cls", "pad", "sep", "unk"), specials)},
    )
