"""Talk to a model in the terminal: `gapo-jax chat`, see gapo_jax/cli/chat.py."""

import sys

from gapo_jax.cli.chat import main

if __name__ == "__main__":
    sys.exit(main())
