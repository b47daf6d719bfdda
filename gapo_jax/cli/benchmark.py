r"""Throughput of sampling, scoring, every update and whole rounds, as JSON.

    gapo-jax benchmark sample --batch 32 --compare
    gapo-jax benchmark sample --batch 12 --samples 8
    gapo-jax benchmark sample --skewed --batch 16 --rows 64 --new-tokens 512 \
        --layers 10 --repeats 1
    gapo-jax benchmark forward score policy_update --batch 8 --compare
    gapo-jax benchmark sft_step dpo_step --batch 8 --compare
    gapo-jax benchmark ppo_iteration --batch 16 --compare
    gapo-jax benchmark discriminator --compare
    gapo-jax benchmark round
    gapo-jax benchmark policy_memory --batch 8 --lora-rank 16
    gapo-jax benchmark logprob_memory --batch 32
    gapo-jax benchmark scaling --batch 4 --repeats 1

Each measurement runs once to compile and `--repeats` times to be measured, and reports median,
least and greatest seconds, real and padded tokens and both per second (of the median), the seconds
that XLA compiled and the peak memory of the process so far (of the device, where it says). Where a
cache of compiled programs is set, compiling may cost nothing. `--compare` does the same work
afterwards in plain torch and transformers: same weights, tokens and shapes, in the same process.

Prompts have random lengths down to half of `--prompt-tokens`; no row ends early. With `--skewed`
half of `--rows` responses have 1/32 of `--new-tokens`, a tenth all of them, the rest between: one
batch after another that waits for its longest row, beside slots that are refilled. `round` runs
rounds of configs/gapo_quickstart.py by GAPO and by PPO (the same with a frozen discriminator).
`policy_memory` and `logprob_memory` only compile. `scaling` doubles prompts, length and layers.
Weights: `--model`, or the cached SmolLM2, or random ones of its size, and the output says which.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence

import jax

from gapo_jax.cli import program
from gapo_jax.cli.benchmarks.common import load
from gapo_jax.cli.benchmarks.costs import measure_logprob_memory, measure_scaling
from gapo_jax.cli.benchmarks.peers import TorchReference
from gapo_jax.cli.benchmarks.rounds import measure_ppo_iteration, measure_round
from gapo_jax.cli.benchmarks.sampling import measure_sample
from gapo_jax.cli.benchmarks.training import (
    measure_discriminator,
    measure_forward,
    measure_offline,
    measure_policy_memory,
    measure_policy_update,
    measure_score,
)

MEASUREMENTS = {
    "sample": measure_sample,
    "forward": measure_forward,
    "score": measure_score,
    "policy_update": measure_policy_update,
    "sft_step": functools.partial(measure_offline, "sft"),
    "dpo_step": functools.partial(measure_offline, "dpo"),
    "discriminator": measure_discriminator,
    "ppo_iteration": measure_ppo_iteration,
    "round": measure_round,
    "policy_memory": measure_policy_memory,
    "logprob_memory": measure_logprob_memory,
    "scaling": measure_scaling,
}
SHAPES = (
    "batch samples rows layers prompt_tokens new_tokens slots chunk top_k top_p minibatch "
    "trainable_layers critic remat lora_rank"
).split()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        program("benchmark"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="+", choices=sorted(MEASUREMENTS))
    parser.add_argument("--model", help="HF folder, hub id or .gguf; default: the cached SmolLM2")
    parser.add_argument("--layers", type=int, default=0, help="random weights with so many layers")
    parser.add_argument("--discriminator", help="of `discriminator`; default: the cached MiniLM")
    parser.add_argument("--config", help="of `round`; default: configs/gapo_quickstart.py")
    parser.add_argument("--batch", type=int, default=32, help="prompts (pairs for dpo_step)")
    parser.add_argument("--samples", type=int, default=1, help="responses to each prompt")
    parser.add_argument(
        "--minibatch", type=int, default=8, help="rows of `ppo_iteration`'s updates"
    )
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--text-tokens", type=int, default=144, help="of `discriminator`")
    parser.add_argument("--skewed", action="store_true", help="sample responses of unequal length")
    parser.add_argument("--rows", type=int, default=96, help="responses with --skewed")
    parser.add_argument("--slots", type=int, default=0, help="continuous batching in `sample`")
    parser.add_argument("--chunk", type=int, default=8, help="tokens between two refills")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--trainable-layers", type=int, default=0, help="the upper ones; 0: all")
    parser.add_argument("--train-embeddings", action="store_true")
    parser.add_argument("--critic", choices=("reference", "policy", "decoder"), default="reference")
    parser.add_argument("--lora-rank", type=int, default=0, help="0: no adapters")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="run torch on the same too")
    args = parser.parse_args(argv)
    if args.compare and args.lora_rank:
        parser.error("--compare has no adapters in torch; leave out --lora-rank")
    if args.batch * args.samples % args.minibatch and "ppo_iteration" in args.what:
        parser.error(f"--minibatch {args.minibatch} must divide {args.batch * args.samples} rows")
    if args.skewed and args.batch % args.samples:
        parser.error(f"--batch {args.batch} must be a multiple of --samples {args.samples}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for and print one JSON object."""
    args = parse(argv)
    try:
        decoder, params, weights = load(args)
        reference = TorchReference(decoder, params, args.dtype) if args.compare else None
    except (FileNotFoundError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report = {
        "weights": weights,
        "device": str(jax.devices()[0].device_kind),
        "dtype": args.dtype,
        "repeats": args.repeats,
        **{name: getattr(args, name) for name in SHAPES},
    }
    for what in args.what:
        numbers = MEASUREMENTS[what](args, decoder, params, reference)
        for part in (numbers, *numbers.values()):  # of `discriminator`: its score and its update
            if isinstance(part, dict) and "torch" in part:
                part["speedup"] = round(part["torch"]["median_s"] / part["jax"]["median_s"], 2)
        report[what] = numbers
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
