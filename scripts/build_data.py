"""Make, check and mine data: `gapo-jax build-data`, see gapo_jax/cli/build_data.py."""

import sys

from gapo_jax.cli.build_data import main

if __name__ == "__main__":
    sys.exit(main())
