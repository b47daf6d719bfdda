"""Train a model: `gapo-jax train`, see gapo_jax/cli/train.py."""

import sys

from gapo_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
