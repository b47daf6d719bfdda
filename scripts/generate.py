"""Sample text from a model: `gapo-jax generate`, see gapo_jax/cli/generate.py."""

import sys

from gapo_jax.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
