"""The command line: one module a command, called by `gapo-jax COMMAND` and by `scripts/NAME.py`.

Every module has `main(argv) -> int`, which returns the exit status of the program. Nothing else in
the package prints results or reads the command line.
"""

from __future__ import annotations

import os
import sys


def summary(docstring: str | None) -> str:
    """Return the first line of a module's docstring, which describes its command."""
    return (docstring or "").partition("\n")[0]


def program(command: str) -> str | None:
    """Return what the usage line of `command` calls the program: `gapo-jax COMMAND`, or None for
    argparse's default where a script of a checkout was started."""
    started = os.path.basename(sys.argv[0])
    return f"gapo-jax {command}" if started.startswith("gapo-jax") else None
