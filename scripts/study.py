"""Run a study and draw its tables: `gapo-jax study`, see gapo_jax/cli/study.py."""

import sys

from gapo_jax.cli.study import main

if __name__ == "__main__":
    sys.exit(main())
