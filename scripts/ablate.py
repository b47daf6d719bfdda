"""Measure what each switch does: `gapo-jax ablate`, see gapo_jax/cli/ablate.py."""

import sys

from gapo_jax.cli.ablate import main

if __name__ == "__main__":
    sys.exit(main())
