"""Run a command: `gapo-jax train --config gapo_tiny`, the same as `python scripts/train.py ...`.

Commands are imported when they are called, because most of them load JAX and `doctor` has to work
where JAX cannot be loaded.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a model with any method",
    "evaluate": "measure constraint accuracy of responses, or of a model",
    "generate": "sample text from a model",
    "chat": "talk to a model, its constraints checked while it writes",
    "convert": "import, export and verify models",
    "build-data": "mine preferential prompts, lint data, make the product set",
    "plan": "compile for a TPU that is not here: does it fit, what does it move",
    "benchmark": "measure sampling, scoring, updates and rounds",
    "ablate": "measure what each switch does, over seeds",
    "study": "run a grid of configurations and seeds, draw its tables",
    "report": "show runs while they go on, one or several over each other",
    "doctor": "check whether a run can start here",
    "fetch-weights": "obtain the two small models of the quickstart",
}


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<14} {text}" for name, text in COMMANDS.items()]
    return "usage: gapo-jax COMMAND ...\n\n" + "\n".join(lines) + "\n\ngapo-jax COMMAND --help"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names and return its exit status."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    name = name.replace("_", "-")
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"error: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"gapo_jax.cli.{name.replace('-', '_')}")
    return module.main(rest)


if __name__ == "__main__":
    sys.exit(main())
