"""What all measurements share: weights, random work, the clock."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax import rng
from gapo_jax.compilation import CompileCounter
from gapo_jax.data.weights import locate
from gapo_jax.models import Decoder, DecoderConfig, load_decoder
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream
from gapo_jax.train.clock import peak_memory_gb
from gapo_jax.types import Experience

SMOLLM2_SIZE = DecoderConfig(
    vocab_size=49152, num_layers=30, d_model=576, num_heads=9, num_kv_heads=3, head_dim=64,
    d_ff=1536, rope_theta=100000.0, max_positions=8192,
)  # fmt: skip
TEMPERATURE, LEARNING_RATE = 0.8, 1e-5


def random_decoder(config: DecoderConfig) -> tuple[Decoder, Any]:
    """Return a decoder and random parameters on the device."""
    ones_BT = jnp.ones((1, 2), jnp.int32)
    decoder = Decoder(config)
    key = rng.key(0, Stream.GENERATOR_WEIGHTS)
    return decoder, jax.jit(decoder.init)(key, ones_BT, ones_BT)["params"]


def load(args: argparse.Namespace) -> tuple[Decoder, Any, str]:
    """Return decoder, parameters on the device and a line that says where they come from."""
    changes = {"remat": args.remat, "dtype": args.dtype}
    source = args.model
    if source is None and not args.layers:
        try:
            source = str(locate("smollm2-135m-instruct"))
        except FileNotFoundError as error:
            print(f"random weights of SmolLM2's size: {error}", file=sys.stderr)
    if source is not None:
        decoder, params = load_decoder(source, **changes)
        return decoder, jax.device_put(params), source
    if args.layers:
        changes["num_layers"] = args.layers
    config = DecoderConfig(**{**vars(SMOLLM2_SIZE), **changes})
    layers = f", {args.layers} layers" if args.layers else ""
    return *random_decoder(config), f"random weights of the size of SmolLM2-135M{layers}"


def make_prompts(
    args: argparse.Namespace, vocab_size: int, count: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return random prompts and masks [A, P] int32, padded on the left; the first is full.

    A is `count`, or else `--batch`.
    """
    draw = rng.stream(args.seed, Stream.BENCHMARK, "prompts")
    width = args.prompt_tokens
    lengths_A = draw.integers((width + 1) // 2, width + 1, count or args.batch)
    lengths_A[0] = width
    mask_AP = (np.arange(width) >= width - lengths_A[:, None]).astype(np.int32)
    tokens_AP = draw.integers(3, vocab_size, mask_AP.shape).astype(np.int32) * mask_AP
    return tokens_AP, mask_AP


def make_experience(args: argparse.Namespace, vocab_size: int, samples: int = 0) -> Experience:
    """Return random experience in the layout of training, as numpy arrays.

    Each of the `make_prompts` has `samples` (or else `--samples`) full responses.
    """
    samples = samples or args.samples
    tokens_BP, mask_BP = (np.repeat(x, samples, 0) for x in make_prompts(args, vocab_size))
    draw = rng.stream(args.seed, Stream.BENCHMARK, "experience")
    shape = (tokens_BP.shape[0], args.new_tokens)
    response_BR = draw.integers(3, vocab_size, shape).astype(np.int32)
    ones_BR = np.ones(shape, np.int32)
    arrays: dict[str, Any] = {
        name: draw.normal(size=shape).astype(np.float32)
        for name in ("ref_logprobs_BR", "values_BR", "advantages_BR", "returns_BR")
    }
    arrays |= {
        "tokens_BT": np.concatenate([tokens_BP, response_BR], axis=1),
        "mask_BT": np.concatenate([mask_BP, ones_BR], axis=1),
        "response_mask_BR": ones_BR,
        "old_logprobs_BR": np.full(shape, -10.0, np.float32),
    }
    return Experience(**arrays)


def spread(seconds: list[float]) -> dict[str, float]:
    """Return median, least and greatest of some seconds."""
    figures = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {f"{name}_s": float(f"{value:.4g}") for name, value in figures.items()}


def timed(
    call: Callable[[], Any],
    repeats: int,
    *,
    real: int = 0,
    padded: int = 0,
    compiles: bool = True,
    first: Callable[[], Any] | None = None,
) -> JsonObject:
    """Run `call` (or `first`, which compiles the same) once unmeasured and `repeats` times
    measured; return seconds, tokens and memory.

    `real` and `padded` count the tokens of one call; `compile_s` (unless `compiles` is off, for
    torch) is what XLA spent on compiling in the first one.
    """

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    with CompileCounter() as counter:
        jax.block_until_ready((first or call)())
    figures: JsonObject = spread([once() for _ in range(repeats)])
    if compiles:
        figures["compile_s"] = round(counter.seconds, 2)
    if real:
        figures |= {"real_tokens": real, "padded_tokens": padded}
        figures["real_tokens_per_s"] = round(real / figures["median_s"], 1)
        figures["padded_tokens_per_s"] = round(padded / figures["median_s"], 1)
    return figures | {"peak_mib": round(peak_memory_gb() * 1e9 / 2**20)}


def shapes_of(tree: Any) -> Any:
    """Return the shapes of a tree of arrays, for compiling without running."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def compiled(function: Any, *args: Any) -> tuple[Any, float]:
    """Compile a jitted function for these arguments; return it and the seconds it took."""
    start = time.perf_counter()
    executable = function.lower(*args).compile()
    return executable, round(time.perf_counter() - start, 2)
