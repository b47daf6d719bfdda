"""Obtain weights: `gapo-jax fetch-weights`, see gapo_jax/cli/fetch_weights.py."""

import sys

from gapo_jax.cli.fetch_weights import main

if __name__ == "__main__":
    sys.exit(main())
