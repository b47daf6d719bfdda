"""Whole rounds: GAPO beside PPO, phase by phase, and one PPO iteration of fixed shapes."""

from __future__ import annotations

import runpy
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gapo_jax import rng
from gapo_jax.cli.benchmarks.common import TEMPERATURE, make_experience, make_prompts, spread, timed
from gapo_jax.cli.benchmarks.training import generator_steps, token_counts
from gapo_jax.config import Config, finalize
from gapo_jax.models import Decoder
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream
from gapo_jax.rollout.experience import build_experience
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.clock import peak_memory_gb
from gapo_jax.train.discriminator.warmup import compile_widths
from gapo_jax.train.forward import PolicyNetworks
from gapo_jax.train.main import open_run
from gapo_jax.train.metrics import read_metrics
from gapo_jax.train.online.loop import gapo_round
from gapo_jax.train.online.steps import CriticBatch, PolicyBatch
from gapo_jax.train.runtime import StopRequest
from gapo_jax.train.state import TrainState, merge_trainable

QUICKSTART = Path(__file__).parents[2] / "configs" / "gapo_quickstart.py"


def measure_round(args, decoder, params, reference) -> JsonObject:
    """Measure rounds of the quickstart by GAPO and by PPO: the cost of training a discriminator."""
    del decoder, params, reference  # a run loads its own
    settings = runpy.run_path(args.config or str(QUICKSTART))["get_config"]
    results: JsonObject = {}
    for method in ("gapo", "ppo"):
        config = settings()
        config.method, config.rounds = method, args.repeats + 1
        config.data.bootstrap_responses = min(96, config.data.bootstrap_responses)
        config.data.pairs, config.data.pairs_heldout = min(128, config.data.pairs), 32
        if args.model:
            config.model.generator = args.model
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            results[method] = measure_rounds(finalize(config), Path(folder))
    gapo, ppo = results["gapo"], results["ppo"]
    results["gapo_over_ppo"] = round(gapo["median_s"] / ppo["median_s"], 3)
    seconds = gapo["phases"].get("discriminator", 0.0) + gapo["phases"]["score"]
    results["discriminator_share"] = round(seconds / gapo["median_s"], 3)
    return results


def measure_rounds(config: Config, workdir: Path) -> JsonObject:
    """Return seconds of the rounds after the first, which compiles, and of each phase."""
    ctx, state = open_run(config, workdir, StopRequest())
    rounds: list[dict[str, float]] = []
    try:
        compile_widths(
            state.discriminator, ctx.steps, ctx.models.disc_tokenizer, config.discriminator,
            state.key,
        )  # fmt: skip
        for index in range(config.rounds):
            before = dict(ctx.clock.seconds)
            state, _ = gapo_round(ctx, state, index)
            rounds.append({k: v - before.get(k, 0.0) for k, v in ctx.clock.seconds.items()})
        compiles = ctx.writer.compiles
    finally:
        ctx.writer.close()
        ctx.checkpointer.close()
    lines = [line for line in read_metrics(workdir) if line["phase"] == "rollout"][1:]
    speed = {
        name: round(statistics.median(line[f"throughput/{name}"] for line in lines), 1)
        for name in ("real_tokens_per_s", "padded_tokens_per_s")
    }
    return {
        **spread([sum(phases.values()) for phases in rounds[1:]]),
        "phases": {
            phase: round(statistics.median(phases[phase] for phases in rounds[1:]), 2)
            for phase in rounds[-1]
            if rounds[-1][phase] > 0
        },
        "sampling": speed,
        "compile_s": round(compiles.seconds, 1),
        "compile_count": compiles.count,
        "peak_mib": round(peak_memory_gb() * 1e9 / 2**20),
    }


def measure_ppo_iteration(args, decoder: Decoder, params, reference) -> JsonObject:
    """Measure one PPO iteration without a discriminator.

    It samples `--batch` x `--samples` full responses, scores them by policy, reference and critic,
    estimates advantages of random rewards, and runs one epoch of critic and policy in minibatches
    of `--minibatch`. Tokens are counted in prompts and responses. The torch side has no critic.
    """
    steps, create, spec = generator_steps(args, decoder)
    assert steps.critic is not None
    update_critic = steps.critic
    networks = create(params)
    tokens_AP, mask_AP = make_prompts(args, decoder.config.vocab_size)
    rows = args.batch * args.samples
    sample = make_sampler(decoder, max_new_tokens=args.new_tokens, eos_ids=(), pad_id=0)
    draw = rng.stream(args.seed, Stream.BENCHMARK, "rewards")
    rewards_B = jnp.asarray(draw.normal(size=rows), jnp.float32)
    keys_B = rng.row_keys(args.seed, Stream.BENCHMARK, "rows", count=rows)

    def take(tree: Any, start: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[start : start + args.minibatch], tree)

    def iterate() -> dict[str, TrainState]:
        policy, critic = networks["policy"], networks["critic"]
        weights = merge_trainable(params, policy.params, spec.first_trainable_layer)
        rollout = sample(weights, tokens_AP, mask_AP, keys_B, TEMPERATURE)
        parts = [
            steps.score(PolicyNetworks(params, policy.params, critic.params), take(rollout, start))
            for start in range(0, rows, args.minibatch)
        ]
        scored = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        experience, _ = build_experience(
            rollout, scored.old_logprobs_BR, scored.ref_logprobs_BR, scored.values_BR, rewards_B,
            jnp.float32(0.05),
        )  # fmt: skip
        for start in range(0, rows, args.minibatch):
            part = take(experience, start)
            features, lower = take((scored.features_BRD, scored.frozen_hidden_BTD), start)
            critic, _ = update_critic(critic, CriticBatch(part, features, lower))
            policy, _ = steps.policy(policy, PolicyBatch(part, lower), params, None)
        networks.update(policy=policy, critic=critic)
        return networks

    experience = make_experience(args, decoder.config.vocab_size)
    counts = token_counts(experience)
    results = {"jax": timed(iterate, args.repeats, **counts)}
    if reference is not None:
        batches = [take(experience, start) for start in range(0, rows, args.minibatch)]
        calls = torch_iteration(args, reference, batches, (tokens_AP, mask_AP), spec)
        results["torch"] = timed(
            lambda: [call() for call in calls] and None, args.repeats, **counts, compiles=False
        )
    return results


def torch_iteration(args, reference, batches, prompts, spec) -> list[Callable[[], Any]]:
    """Return the calls that make the same PPO iteration in torch."""
    first = spec.first_trainable_layer
    return [
        reference.sampler(*prompts, args.samples, args.new_tokens),
        *(reference.score(batch) for batch in batches),
        *(reference.policy_update(b, first, args.train_embeddings, Config()) for b in batches),
    ]
