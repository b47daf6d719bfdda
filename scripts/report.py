"""Show runs in a browser, while they go on too: `gapo-jax report`, see gapo_jax/cli/report.py."""

import sys

from gapo_jax.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
