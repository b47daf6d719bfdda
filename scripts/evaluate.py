"""Measure constraint accuracy: `gapo-jax evaluate`, see gapo_jax/cli/evaluate.py."""

import sys

from gapo_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
