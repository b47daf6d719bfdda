"""Measure the speed of every step: `gapo-jax benchmark`, see gapo_jax/cli/benchmark.py."""

import sys

from gapo_jax.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
