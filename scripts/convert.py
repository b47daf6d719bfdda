"""Import, export and verify models: `gapo-jax convert`, see gapo_jax/cli/convert.py."""

import sys

from gapo_jax.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
