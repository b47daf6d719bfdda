"""How cost grows: memory of log-probs over the vocabulary, time with prompts, length and layers."""

from __future__ import annotations

import argparse
import copy
import dataclasses

import jax
import jax.numpy as jnp

from gapo_jax.cli.benchmarks.common import SMOLLM2_SIZE, compiled, random_decoder
from gapo_jax.cli.benchmarks.sampling import measure_sample
from gapo_jax.cli.benchmarks.training import measure_policy_update
from gapo_jax.config import PPOConfig
from gapo_jax.losses import chunked_logprobs
from gapo_jax.models import Decoder
from gapo_jax.records import JsonObject

DOUBLINGS = 3


def measure_logprob_memory(args, decoder: Decoder, params, reference) -> JsonObject:
    """Temporary memory of log-probs over the vocabulary and of their gradient by the hidden states,
    chunk by chunk and with all logits at once, as XLA plans it. Nothing runs."""
    del params, reference
    config = decoder.config
    shape = (args.batch * args.samples, args.new_tokens)
    hidden_BRD = jax.ShapeDtypeStruct((*shape, config.d_model), jnp.dtype(config.dtype))
    embedding_VD = jax.ShapeDtypeStruct(
        (config.vocab_size, config.d_model), jnp.dtype(config.dtype)
    )
    targets_BR = jax.ShapeDtypeStruct(shape, jnp.int32)
    chunk = PPOConfig().logprob_chunk

    def chunked(hidden_BRD: jax.Array, embedding_VD: jax.Array, targets_BR: jax.Array):
        return chunked_logprobs(
            hidden_BRD, embedding_VD.T, targets_BR, chunk_tokens=chunk, tied=True
        )[0]

    def naive(hidden_BRD: jax.Array, embedding_VD: jax.Array, targets_BR: jax.Array):
        logits_BRV = (hidden_BRD @ embedding_VD.T).astype(jnp.float32)
        logprobs_BRV = jax.nn.log_softmax(logits_BRV)
        return jnp.take_along_axis(logprobs_BRV, targets_BR[..., None], axis=-1)[..., 0]

    sizes: JsonObject = {"tokens": shape[0] * shape[1], "chunk_tokens": chunk}
    for name, function in (("chunked", chunked), ("naive", naive)):
        gradient = jax.grad(lambda *inputs, f=function: f(*inputs).sum())
        for part, program in (("forward", function), ("backward", gradient)):
            run, _ = compiled(jax.jit(program), hidden_BRD, embedding_VD, targets_BR)
            size = run.memory_analysis().temp_size_in_bytes
            sizes[f"{name}_{part}_mib"] = round(size / 2**20, 1)
    return sizes


def measure_scaling(args, decoder: Decoder, params, reference) -> JsonObject:
    """Seconds of sampling and of a policy update, and of compiling them, while prompts, length or
    layers double; random weights of SmolLM2's width. `per_doubling` near 2 is linear.

    The smallest point has `--batch` prompts, `--prompt-tokens` + `--new-tokens` and 4 layers.
    """
    del decoder, params, reference
    results: JsonObject = {}
    start = _point(args, "prompts", 1)
    for axis in ("prompts", "length", "layers"):
        points = [start, *(_point(args, axis, 2**power) for power in range(1, DOUBLINGS))]
        results[axis] = {"points": points}
        for name in ("sample", "policy_update"):
            seconds = [point[name]["median_s"] for point in points]
            ratios = [round(b / a, 2) for a, b in zip(seconds, seconds[1:])]
            results[axis][f"{name}_per_doubling"] = ratios
    return results


def _point(args: argparse.Namespace, axis: str, factor: int) -> JsonObject:
    """Measure one point of one curve."""
    args, layers = copy.copy(args), 4
    args.samples, args.lora_rank, args.trainable_layers, args.skewed = 1, 0, 0, False
    if axis == "prompts":
        args.batch *= factor
    elif axis == "length":
        args.prompt_tokens, args.new_tokens = args.prompt_tokens * factor, args.new_tokens * factor
    else:
        layers *= factor
    config = dataclasses.replace(
        SMOLLM2_SIZE, num_layers=layers, dtype=args.dtype, remat=args.remat
    )
    decoder, params = random_decoder(config)
    point: JsonObject = {
        "prompts": args.batch,
        "length": args.prompt_tokens + args.new_tokens,
        "layers": layers,
    }
    for name, measure in (("sample", measure_sample), ("policy_update", measure_policy_update)):
        figures = measure(args, decoder, params, None)["jax"]
        point[name] = {key: figures[key] for key in ("median_s", "compile_s")}
    return point
