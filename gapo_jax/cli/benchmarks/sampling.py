"""Sampling: prefill and decode of one batch, or of responses whose lengths differ much."""

from __future__ import annotations

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np

from gapo_jax import rng
from gapo_jax.cli.benchmarks.common import TEMPERATURE, make_prompts, timed
from gapo_jax.models import Decoder
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream
from gapo_jax.rollout.sampler import make_sampler


def measure_sample(args: argparse.Namespace, decoder: Decoder, params: Any, reference: Any) -> Any:
    """Prefill and decode; tokens are new tokens (without --skewed all real: no row ends early)."""
    if args.skewed:
        return measure_skewed(args, decoder, params)
    tokens_AP, mask_AP = make_prompts(args, decoder.config.vocab_size)
    rows = args.batch * args.samples
    sample = make_sampler(
        decoder, max_new_tokens=args.new_tokens, eos_ids=(), pad_id=0, slots=args.slots,
        chunk=args.chunk, top_k=args.top_k, top_p=args.top_p,
    )  # fmt: skip
    keys_B = rng.row_keys(args.seed, Stream.BENCHMARK, "rows", count=rows)
    inputs = (params, tokens_AP, mask_AP, keys_B, jnp.float32(TEMPERATURE))
    counts = {"real": rows * args.new_tokens, "padded": rows * args.new_tokens}
    results = {"jax": timed(lambda: sample(*inputs), args.repeats, **counts)}
    if reference is not None:
        call = reference.sampler(tokens_AP, mask_AP, args.samples, args.new_tokens)
        results["torch"] = timed(call, args.repeats, **counts, compiles=False)
    return results


def skewed_lengths(rows: int, longest: int, seed: int) -> np.ndarray:
    """Return lengths int32 [rows] in random order: half of them longest / 32, a tenth the longest,
    the rest spread evenly between."""
    draw = rng.stream(seed, Stream.BENCHMARK, "lengths")
    short, long = rows // 2, -(-rows // 10)
    between = draw.integers(longest // 32, longest + 1, rows - short - long)
    lengths_B = np.concatenate([np.full(short, longest // 32), np.full(long, longest), between])
    return draw.permutation(np.maximum(lengths_B, 1)).astype(np.int32)


def measure_skewed(args: argparse.Namespace, decoder: Decoder, params: Any) -> JsonObject:
    """`--rows` responses of skewed lengths: batches of `--batch` rows that wait for their longest,
    and as many slots that are refilled. Nobody knows the lengths beforehand."""
    prompts = -(-args.rows // args.samples)
    rows = prompts * args.samples
    tokens_AP, mask_AP = make_prompts(args, decoder.config.vocab_size, prompts)
    keys_B = rng.row_keys(args.seed, Stream.BENCHMARK, "rows", count=rows)
    limits_B = skewed_lengths(rows, args.new_tokens, args.seed)
    options: Any = {"max_new_tokens": args.new_tokens, "eos_ids": (), "pad_id": 0}
    together = make_sampler(decoder, **options)
    refilled: Any = make_sampler(decoder, **options, slots=args.batch, chunk=args.chunk)

    def static(limits_B: np.ndarray = limits_B) -> Any:
        rollouts = []
        for start in range(0, rows, args.batch):
            rows_B = np.arange(start, start + args.batch) % rows
            asked = rows_B[:: args.samples] // args.samples
            rollouts.append(
                together(
                    params, tokens_AP[asked], mask_AP[asked], keys_B[rows_B], TEMPERATURE,
                    limits_B[rows_B],
                )
            )  # fmt: skip
        return rollouts

    def continuous(limits_B: np.ndarray = limits_B) -> Any:
        return refilled(params, tokens_AP, mask_AP, keys_B, TEMPERATURE, limits_B)

    short_B = np.minimum(limits_B, 2)  # which compiles the same programs
    real, padded = int(limits_B.sum()), 0
    for start in range(0, rows, args.batch):
        rows_B = np.arange(start, start + args.batch) % rows
        padded += args.batch * int(limits_B[rows_B].max())
    results: JsonObject = {
        "static": timed(
            static, args.repeats, real=real, padded=padded, first=lambda: static(short_B)
        ),
        "continuous": timed(
            continuous, args.repeats, real=real, padded=real, first=lambda: continuous(short_B)
        ),
    }
    figures = results["continuous"]
    figures["padded_tokens"] = refilled.decoded
    figures["padded_tokens_per_s"] = round(refilled.decoded / figures["median_s"], 1)
    results["continuous_over_static"] = round(
        figures["real_tokens_per_s"] / results["static"]["real_tokens_per_s"], 2
    )
    return results
