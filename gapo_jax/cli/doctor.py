"""Check whether a run can start here, and name the command that mends each problem.

    gapo-jax doctor [--workdir DIR] [--config FILE] [--report]   (python scripts/doctor.py)

Checks Python, packages, devices, what each kind of accelerator has and wants, memory, disk, write
access, the weights of the quickstart, optional packages and, with --config, whether the mesh of a
configuration fits the devices here. --report prints a block for a bug report instead. The exit
status is 0 if a run can start, otherwise 1. Only the standard library is imported, because the
installation may be what is broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

# The folder of the checkout, or site-packages.
ROOT = pathlib.Path(__file__).resolve().parents[2]
OK, WARN, FAIL = "ok", "warn", "FAIL"

MIN_PYTHON = (3, 11)
MIN_MEMORY_GB = 7.0  # the quickstart on a CPU was seen to hold 6.0 at its peak
MIN_DISK_GB = 3.0  # the quickstart leaves 1.6: two checkpoints and its export
DEVICE_TIMEOUT_S = 120
OPTIONAL = {
    "torch": ("convert verify", "pip install torch"),
    "pytest": ("the tests", "bash scripts/test.sh"),
    "tensorboard": ("viewing WORKDIR/tensorboard", "pip install tensorboard"),
}
CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
_FIT_MESH = """
import sys
sys.path.insert(0, {root!r})
from gapo_jax.cli.experiment import load_config
from gapo_jax.sharding import make_mesh
mesh = load_config({config!r}).mesh
made = make_mesh(mesh.data, mesh.fsdp, mesh.tensor)
print(" x ".join(f"{{name}} {{size}}" for name, size in made.shape.items()))
"""
_LIST_DEVICES = (
    "import jax, json; print(json.dumps([[d.platform, d.device_kind] for d in jax.devices()]))"
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, the command that mends it."""

    status: str
    name: str
    state: str
    mend: str = ""


def check_python() -> Iterator[Finding]:
    """Check the version of Python."""
    version = platform.python_version()
    if sys.version_info < MIN_PYTHON:
        mend = "install Python 3.11 or newer, then: bash scripts/quickstart.sh"
        yield Finding(FAIL, "python", f"{version}, wanted 3.11 or newer", mend)
    else:
        yield Finding(OK, "python", f"{version} at {sys.executable}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def in_checkout() -> bool:
    """Return whether this file belongs to a checkout, not to an installed wheel."""
    return (ROOT / "pyproject.toml").is_file()


def command(name: str) -> str:
    """Return how a user starts a command of the package here."""
    return f"python scripts/{name.replace('-', '_')}.py" if in_checkout() else f"gapo-jax {name}"


def install(extra: str = "") -> str:
    """Return the command that installs the package, with an extra."""
    wanted = f"[{extra}]" if extra else ""
    if in_checkout():
        return f'pip install -e ".{wanted}"' if extra else "pip install -e ."
    return f"pip install -U 'gapo-jax{wanted}'"


def requirements() -> dict[str, str]:
    """Return package -> lowest version, from pyproject.toml or from the metadata of the wheel."""
    if in_checkout():
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        lines = text.split("dependencies = [", 1)[1].split("]\n", 1)[0].split('"')[1::2]
    else:
        lines = [x for x in importlib.metadata.requires("gapo-jax") or () if "extra ==" not in x]
    matches = (re.match(r"([\w-]+)(?:\[.*\])?.*?>=([\d.]+)", line) for line in lines)
    return {match[1]: match[2] for match in matches if match}


def check_packages() -> Iterator[Finding]:
    """Check required packages, and pairs of versions that do not work together."""
    mend = install()
    problems = 0
    for package, lowest in requirements().items():
        version = _installed(package)
        if version is None or _version(version) < _version(lowest):
            problems += 1
            state = "not installed" if version is None else version
            yield Finding(FAIL, package, f"{state}, wanted {lowest} or newer", mend)
    jax, flax = _installed("jax"), _installed("flax")
    if jax and flax and _version(flax) <= (0, 12, 8) and _version(jax) >= (0, 11, 1):
        problems += 1
        text = f"flax {flax} does not work with jax {jax}"
        yield Finding(FAIL, "jax and flax", text, "pip install -U flax")
    if not problems:
        shown = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
        yield Finding(OK, "packages", ", ".join(f"{name} {_installed(name)}" for name in shown))
    if _installed("gapo-jax") is None:
        yield Finding(WARN, "gapo_jax", "not installed; found beside the scripts only", mend)


def check_devices(timeout_s: float = DEVICE_TIMEOUT_S) -> Iterator[Finding]:
    """Ask JAX for its devices, in another process because a broken accelerator can hang."""
    if _installed("jax") is None:
        return
    platforms = os.environ.get("JAX_PLATFORMS")
    asked = f" (JAX_PLATFORMS={platforms})" if platforms else ""
    mend = f"JAX_PLATFORMS=cpu {command('doctor')} (runs on the CPU meanwhile)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LIST_DEVICES], capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        text = f"jax found no device within {timeout_s:.0f} s{asked}; another process may hold it"
        yield Finding(FAIL, "devices", text, mend)
        return
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        yield Finding(FAIL, "devices", f"jax cannot start{asked}: {last}", mend)
        return
    devices = json.loads(done.stdout.splitlines()[-1])
    kinds = ", ".join(sorted({f"{kind} ({where})" for where, kind in devices}))
    yield Finding(OK, "devices", f"{len(devices)} x {kinds}{asked}")
    yield from _unused_accelerator({where for where, _ in devices}, platforms)


def _unused_accelerator(used: set[str], platforms: str | None) -> Iterator[Finding]:
    if used != {"cpu"} or platforms == "cpu":
        return
    if shutil.which("nvidia-smi"):
        text = "there is an NVIDIA driver, but jax computes on the CPU"
        yield Finding(WARN, "accelerator", text, install("cuda"))
    if any(pathlib.Path("/dev").glob("accel[0-9]*")):
        text = "there is a TPU, but jax computes on the CPU"
        yield Finding(WARN, "accelerator", text, install("tpu"))


def check_accelerators() -> Iterator[Finding]:
    """Say for each kind of accelerator whether one is here, and what is installed or missing."""
    plugin = next((f"{n} {v}" for n in CUDA_PLUGINS if (v := _installed(n))), None)
    gpu, tpu = shutil.which("nvidia-smi"), any(pathlib.Path("/dev").glob("accel[0-9]*"))
    tpu = tpu or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    libtpu = _installed("libtpu")
    for name, here, has, extra in (
        ("NVIDIA GPU", gpu, plugin, "cuda"),
        ("TPU", tpu, f"libtpu {libtpu}" if libtpu else None, "tpu"),
    ):
        state = f"{'a driver is here' if here else 'none here'}; {has or 'no plug-in of jax'}"
        missing = bool(here) and not has
        yield Finding(WARN if missing else OK, name, state, install(extra) if missing else "")
    if not libtpu:
        text = "libtpu is not installed; needed for `plan` on TPU topologies"
        yield Finding(WARN, "plan", text, install("plan"))


def check_mesh(config: str, timeout_s: float = DEVICE_TIMEOUT_S) -> Iterator[Finding]:
    """Check the mesh of a configuration against the devices, in another process as above."""
    code = _FIT_MESH.format(root=str(ROOT), config=config)
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        yield Finding(FAIL, "mesh", f"jax found no device within {timeout_s:.0f} s")
        return
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        yield Finding(FAIL, "mesh", f"{config}: {last.partition(': ')[2] or last}")
    else:
        yield Finding(OK, "mesh", f"{config}: {done.stdout.strip().splitlines()[-1]}")


def memory_gb() -> float:
    """Return the memory in GB that this process may use: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        path = pathlib.Path("/sys/fs/cgroup") / limit
        if path.is_file() and path.read_text().strip().isdigit():
            total = min(total, int(path.read_text()))
    return total / 1e9


def check_machine() -> Iterator[Finding]:
    """Report processor cores and check memory."""
    yield Finding(OK, "processor", f"{os.cpu_count()} cores, {platform.machine()}")
    memory = memory_gb()
    status = OK if memory >= MIN_MEMORY_GB else WARN
    mend = "" if status == OK else f"{command('train')} --config configs/gapo_tiny.py"
    wanted = "" if status == OK else f", the quickstart wants {MIN_MEMORY_GB:.0f} GB; smaller:"
    yield Finding(status, "memory", f"{memory:.1f} GB{wanted}", mend)


def _nearest_existing(folder: pathlib.Path) -> pathlib.Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def check_folder(name: str, folder: pathlib.Path, mend: str, wanted_gb: float) -> Iterator[Finding]:
    """Check that files can be written below `folder`, and the free space."""
    existing = _nearest_existing(folder.absolute())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        text = f"{folder} cannot be written to: {error.strerror or error}"
        yield Finding(FAIL, name, text, mend)
        return
    free = shutil.disk_usage(existing).free / 1e9
    if free < wanted_gb:
        text = f"{folder} has {free:.1f} GB free, a run wants {wanted_gb:.0f} GB"
        yield Finding(WARN, name, text, mend)
    else:
        yield Finding(OK, name, f"{folder}, {free:.0f} GB free")


def check_weights() -> Iterator[Finding]:
    """Check the two models of the quickstart and the folder that they are cached in."""
    sys.path.insert(0, str(ROOT))
    mend = command("fetch-weights")
    try:
        from gapo_jax import hub
        from gapo_jax.data import weights
    except ImportError as error:
        yield Finding(WARN, "weights", f"not looked for: {error}", install())
        return
    elsewhere = f"GAPO_JAX_CACHE=DIR {mend}"
    yield from check_folder("cache", hub.cache_dir(), elsewhere, wanted_gb=0.5)
    for name in weights.WEIGHTS:
        try:
            yield Finding(OK, name, str(weights.locate(name)))
        except FileNotFoundError:
            yield Finding(FAIL, name, f"not in {hub.cache_dir()}", mend)


def check_optional() -> Iterator[Finding]:
    """Check packages that only some commands need."""
    for package, (purpose, mend) in OPTIONAL.items():
        version = _installed(package)
        if version is None:
            yield Finding(WARN, package, f"not installed; needed only for {purpose}", mend)
        else:
            yield Finding(OK, package, version)


def bug_report(findings: Sequence[Finding]) -> str:
    """Return what to paste into a bug report: versions, findings, and the variables that JAX reads.

    The home folder is written as ~, and nothing that could be a secret is in it.
    """
    packages = ("gapo-jax", *requirements(), "jaxlib", *CUDA_PLUGINS, "libtpu", "torch")
    versions = [f"{name} {_installed(name)}" for name in packages if _installed(name)]
    kept = re.compile(r"(JAX|XLA|TPU|LIBTPU|CUDA|NCCL|GAPO_JAX|SLURM_NTASKS|MEGASCALE)")
    secret = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")
    variables = [f"{k}={v}" for k, v in sorted(os.environ.items()) if kept.match(k)]
    lines = [
        f"{platform.platform()}, Python {platform.python_version()}",
        ", ".join(versions),
        *(f"{finding.status:<5} {finding.name}: {finding.state}" for finding in findings),
        *(line for line in variables if not secret.search(line.partition("=")[0])),
    ]
    text = "\n".join(lines).replace(str(pathlib.Path.home()), "~")
    return f"```text\n{text}\n```"


def examine(workdir: pathlib.Path, config: str = "") -> Iterator[Finding]:
    """Yield all findings, in order; with a configuration, whether its mesh fits."""
    other = f"{command('train')} --config configs/NAME.py --workdir DIR"
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        check_python,
        check_packages,
        check_devices,
        check_accelerators,
        *([lambda: check_mesh(config)] if config else []),
        check_machine,
        lambda: check_folder("workdir", workdir, other, MIN_DISK_GB),
        check_weights,
        check_optional,
    )
    for check in checks:
        yield from check()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if any of them stands in the way of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--config", default="", help="FILE[:PRESET] whose mesh has to fit")
    parser.add_argument("--report", action="store_true", help="print a block for a bug report")
    args = parser.parse_args(argv)
    failed = 0
    if args.report:
        findings = list(examine(args.workdir, args.config))
        print(bug_report(findings))
        return int(any(finding.status == FAIL for finding in findings))
    for finding in examine(args.workdir, args.config):
        failed += finding.status == FAIL
        print(f"{finding.status:<5} {finding.name:<22} {finding.state}", flush=True)
        if finding.mend:
            print(f"{'':<5} {'':<22} -> {finding.mend}", flush=True)
    print("nothing stands in the way of a run" if not failed else f"{failed} to mend (see ->)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
