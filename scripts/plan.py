"""Compile for a TPU that is not here: `gapo-jax plan`, see gapo_jax/cli/plan.py."""

import sys

from gapo_jax.cli.plan import main

if __name__ == "__main__":
    sys.exit(main())
