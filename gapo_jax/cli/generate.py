"""Sample text from a model: an HF folder, a hub id, a .gguf file or the workdir of a run.

    gapo-jax generate --model runs/quickstart --prompt "Name three rivers." [--greedy]

Several --prompt arguments are answered together. The system turn is the one that a run was trained
with, and for any other model the one of its chat template; --system replaces it ("" leaves it
empty). --stop cuts the answer before a string.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gapo_jax import rng
from gapo_jax.checkpoint import CheckpointError
from gapo_jax.cli import program, summary
from gapo_jax.data.chat import stop_ids
from gapo_jax.evaluate.console import printable
from gapo_jax.models import Decoder
from gapo_jax.rng import Stream
from gapo_jax.rollout.generate import generate, prompt_width
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.restore import load_any, trained_system

SLOTS = 32  # rows decoded at a time where there are more prompts


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(program("generate"), description=summary(__doc__))
    parser.add_argument("--model", required=True, help="HF folder, hub id, .gguf or workdir")
    parser.add_argument("--prompt", required=True, action="append", help="repeat for a batch")
    parser.add_argument("--tokenizer", help="its source, for a .gguf whose own we cannot read")
    parser.add_argument("--system", default=None, help="replaces the system turn")
    parser.add_argument("--step", type=int, default=None, help="checkpoint of a run")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--stop", action="append", default=[], help="repeat for several strings")
    parser.add_argument("--greedy", action="store_true", help="temperature 0")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Load, sample and print; return the exit status."""
    args = parse(argv)
    try:
        loaded = load_any(args.model, step=args.step, tokenizer=args.tokenizer)
        if args.system is None:
            args.system = trained_system(args.model)
        if not isinstance(loaded.module, Decoder):
            raise ValueError(f"--model {args.model} is an encoder; it cannot generate text")
        config = loaded.module.config
        limit = config.max_positions - args.max_new_tokens
        count = len(args.prompt)
        made = generate(
            make_sampler(
                loaded.module,
                max_new_tokens=args.max_new_tokens,
                eos_ids=stop_ids(loaded.tokenizer, config.eos_ids),
                pad_id=config.pad_id,
                slots=SLOTS if count > SLOTS else 0,
                top_k=args.top_k,
                top_p=args.top_p,
                min_p=args.min_p,
            ),
            loaded.params,
            loaded.tokenizer,
            args.prompt,
            rng.row_keys(args.seed, Stream.GENERATE_COMMAND, count=count),
            batch_size=count,
            width=prompt_width(loaded.tokenizer, args.prompt, args.system, limit),
            temperature=0.0 if args.greedy else args.temperature,
            system=args.system,
            stop=args.stop,
        )
    except (OSError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shown = printable if sys.stdout.isatty() else str  # a terminal obeys control characters
    for prompt, response in zip(args.prompt, made.texts):
        if count > 1:
            print(f"### {shown(prompt)}")
        print(shown(response.strip()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
