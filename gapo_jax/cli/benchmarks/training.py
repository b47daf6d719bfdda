"""The steps of the training loop, one at a time: forward, scoring, updates of every network."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax import rng
from gapo_jax.cli.benchmarks.common import (
    LEARNING_RATE,
    TEMPERATURE,
    compiled,
    make_experience,
    shapes_of,
    timed,
)
from gapo_jax.cli.benchmarks.peers import TorchDiscriminator
from gapo_jax.compilation import decoder_layers_to_unroll, jit_step
from gapo_jax.config import Config, presets
from gapo_jax.models import Decoder
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream
from gapo_jax.train.build import TrainSteps, discriminator_optimizer, make_steps
from gapo_jax.train.discriminator.steps import TextBatch
from gapo_jax.train.forward import PolicyNetworks, PolicySpec, init_critic
from gapo_jax.train.offline.steps import OfflineBatch, make_offline_step
from gapo_jax.train.online.steps import PolicyBatch, as_rollout
from gapo_jax.train.optimizers import make_optimizer
from gapo_jax.train.sources import load_discriminator
from gapo_jax.train.state import TrainState, copy_tree, start_policy
from gapo_jax.types import Experience


def settings(args: argparse.Namespace, method: str = "gapo") -> Config:
    """Return the configuration of SmolLM2 with the command line's choices."""
    config = presets.smollm2(method)
    for optim in (config.ppo.optim, config.ppo.critic_optim, config.offline.optim):
        optim.learning_rate = LEARNING_RATE
    config.lora.rank = args.lora_rank
    config.model.train_embeddings = args.train_embeddings
    config.model.critic = args.critic
    return config


def spec_of(args: argparse.Namespace, decoder: Decoder, config: Config) -> PolicySpec:
    """Return what the steps need to know of the generator."""
    layers = decoder.config.num_layers
    first = layers - (args.trainable_layers or layers)
    return PolicySpec(
        config=decoder.config,
        first_trainable_layer=first,
        temperature=TEMPERATURE,
        chunk=config.ppo.logprob_chunk,
        critic=config.model.critic,
        critic_hidden=0,
        unroll=decoder_layers_to_unroll(
            layers - first, decoder.config.d_model, jax.default_backend()
        ),
    )


def generator_steps(
    args: argparse.Namespace, decoder: Decoder
) -> tuple[TrainSteps, Callable[[Any], dict[str, TrainState]], PolicySpec]:
    """Return the compiled steps of the training loop, a function from the base parameters to the
    networks `policy` and `critic`, and what the steps know of the generator."""
    config = settings(args)
    spec = spec_of(args, decoder, config)
    optimizer = make_optimizer(config.ppo.optim, lambda _: LEARNING_RATE)
    nobody: Any = None  # the steps of the discriminator are bound, but not used
    optimizers = {name: optimizer for name in ("policy", "critic", "discriminator")}
    steps = make_steps(spec, nobody, config, optimizers)

    def create(params: Any) -> dict[str, TrainState]:
        root = rng.root_key(args.seed)
        critic_key = rng.key(root, Stream.CRITIC_WEIGHTS)
        trained = {
            "policy": start_policy(params, spec.first_trainable_layer, config, root),
            "critic": init_critic(spec, params, critic_key),
        }
        return {name: TrainState.create(part, optimizer) for name, part in trained.items()}

    return steps, create, spec


def token_counts(experience: Experience) -> JsonObject:
    """Return the numbers of real and of padded tokens, as arguments of `timed`."""
    return {"real": int(np.sum(experience.mask_BT)), "padded": int(experience.mask_BT.size)}


def measure_forward(args, decoder: Decoder, params, reference) -> JsonObject:
    """Hidden states of prompts and responses, as scoring computes them."""
    experience = make_experience(args, decoder.config.vocab_size)
    tokens_BT, mask_BT = experience.tokens_BT, experience.mask_BT
    forward = jit_step(functools.partial(decoder.apply, method="hidden"))
    counts = token_counts(experience)
    call = functools.partial(forward, {"params": params}, tokens_BT, mask_BT)
    results = {"jax": timed(call, args.repeats, **counts)}
    if reference is not None:
        call = reference.forward(tokens_BT, mask_BT)
        results["torch"] = timed(call, args.repeats, **counts, compiles=False)
    return results


def measure_score(args, decoder: Decoder, params, reference) -> JsonObject:
    """Log-probs of policy and reference and the critic's values in one program, which runs the
    frozen lower layers once."""
    steps, create, _ = generator_steps(args, decoder)
    experience = jax.device_put(make_experience(args, decoder.config.vocab_size))
    networks, counts = create(params), token_counts(experience)
    scoring = PolicyNetworks(params, networks["policy"].params, networks["critic"].params)
    rollout = as_rollout(experience)
    results = {"jax": timed(lambda: steps.score(scoring, rollout), args.repeats, **counts)}
    if reference is not None:
        call = reference.score(experience)
        results["torch"] = timed(call, args.repeats, **counts, compiles=False)
    return results


def repeated_update(
    step: Callable[..., Any], network: TrainState, *inputs: Any
) -> Callable[[], Any]:
    """Return a call that updates the network, which is donated, on and on."""

    def update() -> Any:
        nonlocal network
        network, metrics = step(network, *inputs)
        return network, metrics

    return update


def measure_policy_update(args, decoder: Decoder, params, reference) -> JsonObject:
    """Forward, backward and AdamW step of the PPO loss: the step of the training loop itself."""
    steps, create, spec = generator_steps(args, decoder)
    experience = jax.device_put(make_experience(args, decoder.config.vocab_size))
    batch, policy = PolicyBatch(experience, None), create(params)["policy"]
    update = repeated_update(steps.policy, policy, batch, params, None)
    counts = token_counts(experience)
    results = {"jax": timed(update, args.repeats, **counts)}
    if reference is not None:
        call = reference.policy_update(
            experience, spec.first_trainable_layer, args.train_embeddings, Config()
        )
        results["torch"] = timed(call, args.repeats, **counts, compiles=False)
    return results


def measure_policy_memory(args, decoder: Decoder, params, reference) -> JsonObject:
    """Memory that a policy update needs, as XLA plans it, in MiB. Nothing runs.

    `base` are the generator's starting weights, which are also the reference; `trained` is what the
    step updates, `moments` the optimiser's state, `temporaries` activations and gradients.
    """
    del reference
    steps, create, _ = generator_steps(args, decoder)
    experience = shapes_of(make_experience(args, decoder.config.vocab_size))
    base, network = shapes_of(params), jax.eval_shape(create, params)["policy"]
    batch = PolicyBatch(experience, None)
    run, compile_s = compiled(steps.policy, network, batch, base, None)
    parts = {"base": base, "trained": network.params, "moments": network.opt_state}
    sizes = {
        name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for name, tree in parts.items()
    }
    sizes["temporaries"] = run.memory_analysis().temp_size_in_bytes
    sizes["total"] = sum(sizes.values())
    return {f"{name}_mib": round(size / 2**20, 1) for name, size in sizes.items()} | {
        "compile_s": compile_s
    }


def measure_offline(method: str, args, decoder: Decoder, params, reference) -> JsonObject:
    """An update by `sft` (`--batch` rows) or `dpo` (`--batch` pairs, reference included)."""
    config = settings(args, method)
    spec = spec_of(args, decoder, config)
    optimizer = make_optimizer(config.offline.optim, lambda _: LEARNING_RATE)
    sides = 2 if method == "dpo" else 1
    experience = jax.device_put(make_experience(args, decoder.config.vocab_size, samples=sides))
    trained = start_policy(params, spec.first_trainable_layer, config, rng.root_key(args.seed))
    update = repeated_update(
        make_offline_step(spec, config, optimizer), TrainState.create(trained, optimizer),
        OfflineBatch(as_rollout(experience)), params,
    )  # fmt: skip
    counts = token_counts(experience)
    results = {"jax": timed(update, args.repeats, **counts)}
    if reference is not None:
        call = reference.offline_update(as_rollout(experience), spec.first_trainable_layer, config)
        results["torch"] = timed(call, args.repeats, **counts, compiles=False)
    return results


def measure_discriminator(args, decoder: Decoder, params, reference) -> JsonObject:
    """Scoring and update of a batch of texts of `--text-tokens` (all layers, dropout as
    configured); a round scores 96 texts and makes 8 updates."""
    del params
    config = settings(args)
    if args.discriminator:
        config.model.discriminator = args.discriminator
    root = rng.root_key(args.seed)
    weights_key = rng.key(root, Stream.DISCRIMINATOR_WEIGHTS)
    module, start, tokenizer = load_discriminator(config, weights_key)
    optimizer = discriminator_optimizer(config, 1)
    optimizers = {name: optimizer for name in ("policy", "critic", "discriminator")}
    steps = make_steps(spec_of(args, decoder, config), module, config, optimizers)
    size, width = config.discriminator.batch_size, args.text_tokens
    draw = rng.stream(args.seed, Stream.BENCHMARK, "texts")
    tokens_BT = jnp.asarray(draw.integers(5, len(tokenizer), (size, width)), jnp.int32)
    ones_BT, ones_B = jnp.ones_like(tokens_BT), jnp.ones(size, jnp.float32)
    half_B = jnp.arange(size) % 2
    batch = TextBatch(tokens_BT, ones_BT, 0 * ones_BT, half_B * 1.0, ones_B, half_B)
    counts = {"real": size * width, "padded": size * width}
    texts = tokens_BT, ones_BT, 0 * ones_BT
    update = repeated_update(
        steps.disc_update, TrainState.create(copy_tree(start), optimizer), batch, root
    )
    calls: dict[str, Callable[[], Any]] = {
        "score": lambda: steps.disc_score(start, *texts), "update": update
    }  # fmt: skip
    figures = {name: {"jax": timed(call, args.repeats, **counts)} for name, call in calls.items()}
    if reference is not None:
        theirs = TorchDiscriminator(module, start, config)
        calls = {"score": theirs.score(tokens_BT), "update": theirs.update(tokens_BT, half_B)}
        for name, call in calls.items():
            figures[name]["torch"] = timed(call, args.repeats, **counts, compiles=False)
    return figures
