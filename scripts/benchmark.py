"""Throughput of sampling, the training forward, a policy update and whole rounds, as JSON.

    python scripts/benchmark.py sample --batch 32 --compare
    python scripts/benchmark.py sample --batch 12 --samples 8
    python scripts/benchmark.py forward policy_update --batch 8 --compare
    python scripts/benchmark.py round
    python scripts/benchmark.py policy_memory --batch 8 --lora-rank 16

Each measurement compiles once, runs `--repeats` times and reports median, least and greatest
seconds, real and padded tokens per second (of the median), compile seconds and the peak memory of
the process so far. `--compare` runs transformers on torch afterwards: same weights, tokens and
shapes, in the same process. Prompts have random lengths down to half of `--prompt-tokens`; no row
ends early. `round` plays rounds of configs/gapo_quickstart.py by GAPO and by PPO (the same with a
frozen discriminator) and gives the median seconds of each phase. `policy_memory` only compiles and
says what a policy update needs. Weights: `--model`, or the cached SmolLM2, or random ones of its
size, and the output says which.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax.config import Config, finalize
from gapo_jax.data.weights import locate
from gapo_jax.models import Decoder, DecoderConfig, load_decoder, save_hf
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.compilation import jit_step
from gapo_jax.train.discriminator import prime
from gapo_jax.train.forward import GeneratorSpec, layers_to_unroll
from gapo_jax.train.interrupt import StopRequest
from gapo_jax.train.online import one_round
from gapo_jax.train.optim import make_optimizer
from gapo_jax.train.run import open_run
from gapo_jax.train.state import Network, start_policy
from gapo_jax.train.steps import policy_step
from gapo_jax.types import Experience

SMOLLM2_SIZE = DecoderConfig(
    vocab_size=49152, num_layers=30, d_model=576, num_heads=9, num_kv_heads=3, head_dim=64,
    d_ff=1536, rope_theta=100000.0, max_positions=8192,
)  # fmt: skip
TEMPERATURE, LEARNING_RATE = 0.8, 1e-5
QUICKSTART = Path(__file__).parents[1] / "configs" / "gapo_quickstart.py"


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=sorted(MEASUREMENTS))
    parser.add_argument("--model", help="HF folder, hub id or .gguf; default: the cached SmolLM2")
    parser.add_argument("--batch", type=int, default=32, help="prompts")
    parser.add_argument("--samples", type=int, default=1, help="responses to each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--trainable-layers", type=int, default=0, help="the upper ones; 0: all")
    parser.add_argument("--train-embeddings", action="store_true")
    parser.add_argument("--lora-rank", type=int, default=0, help="0: no adapters")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="run torch on the same too")
    args = parser.parse_args()
    if args.compare and args.lora_rank:
        parser.error("--compare has no adapters in torch; leave out --lora-rank")
    return args


def load(args: argparse.Namespace) -> tuple[Decoder, Any, str]:
    """Return decoder, parameters on the device and a line that says where they come from."""
    changes = {"remat": args.remat, "dtype": args.dtype}
    source = args.model
    if source is None:
        try:
            source = str(locate("smollm2-135m-instruct"))
        except FileNotFoundError as error:
            print(f"random weights of SmolLM2's size: {error}", file=sys.stderr)
    if source is not None:
        decoder, params = load_decoder(source, **changes)
        return decoder, jax.device_put(params), source
    config = DecoderConfig(**{**vars(SMOLLM2_SIZE), **changes})
    ones_BT = jnp.ones((1, 2), jnp.int32)
    params = jax.jit(Decoder(config).init)(jax.random.key(0), ones_BT, ones_BT)["params"]
    return Decoder(config), params, "random weights of the size of SmolLM2-135M"


def make_prompts(args: argparse.Namespace, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random prompts and masks [B, P] int32, padded on the left; the first is full."""
    rng = np.random.default_rng(args.seed)
    width = args.prompt_tokens
    lengths_B = rng.integers((width + 1) // 2, width + 1, args.batch)
    lengths_B[0] = width
    mask_BP = (np.arange(width) >= width - lengths_B[:, None]).astype(np.int32)
    tokens_BP = rng.integers(3, vocab_size, mask_BP.shape).astype(np.int32) * mask_BP
    return tokens_BP, mask_BP


def make_experience(args: argparse.Namespace, vocab_size: int) -> Experience:
    """Return random experience in the layout of training: full responses to `make_prompts`."""
    tokens_BP, mask_BP = (np.repeat(x, args.samples, 0) for x in make_prompts(args, vocab_size))
    rng = np.random.default_rng(args.seed + 1)
    shape = (tokens_BP.shape[0], args.new_tokens)
    response_BR = rng.integers(3, vocab_size, shape).astype(np.int32)
    ones_BR = np.ones(shape, np.int32)
    numbers = {
        name: rng.normal(size=shape).astype(np.float32)
        for name in ("ref_logprobs_BR", "values_BR", "advantages_BR", "returns_BR")
    }
    return Experience(
        tokens_BT=np.concatenate([tokens_BP, response_BR], axis=1),
        mask_BT=np.concatenate([mask_BP, ones_BR], axis=1),
        response_mask_BR=ones_BR,
        old_logprobs_BR=np.full(shape, -10.0, np.float32),
        **numbers,
    )


def timed(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Run `call` once unmeasured and `repeats` times measured; return seconds and memory."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "median_s": round(statistics.median(seconds), 3),
        "min_s": round(min(seconds), 3),
        "max_s": round(max(seconds), 3),
        "peak_rss_mib": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
    }


def with_rates(result: dict[str, Any], real: int, padded: int) -> dict[str, Any]:
    """Add tokens per second of the median run."""
    result["real_tokens_per_s"] = round(real / result["median_s"], 1)
    result["padded_tokens_per_s"] = round(padded / result["median_s"], 1)
    return result


def compiled(function: Any, *args: Any) -> tuple[Any, float]:
    """Compile a jitted function for these arguments; return it and the seconds it took."""
    start = time.perf_counter()
    executable = function.lower(*args).compile()
    return executable, round(time.perf_counter() - start, 2)


def measure_sample(args, decoder, params, reference) -> dict[str, Any]:
    """Prefill and decode; tokens are new tokens (all real: no row ends early)."""
    tokens_AP, mask_AP = make_prompts(args, decoder.config.vocab_size)
    sample = make_sampler(decoder, max_new_tokens=args.new_tokens, eos_ids=(), pad_id=0)
    keys_B = jax.random.split(jax.random.key(args.seed), args.batch * args.samples)
    inputs = (params, tokens_AP, mask_AP, keys_B, jnp.float32(TEMPERATURE))
    run, compile_s = compiled(sample, *inputs)
    new = args.batch * args.samples * args.new_tokens
    ours = timed(lambda: jax.block_until_ready(run(*inputs)), args.repeats)
    results = {"jax": {**with_rates(ours, new, new), "compile_s": compile_s}}
    if reference is not None:
        call = reference.sampler(tokens_AP, mask_AP, args.samples, args.new_tokens)
        results["torch"] = with_rates(timed(call, args.repeats), new, new)
    return results


def measure_forward(args, decoder, params, reference) -> dict[str, Any]:
    """Hidden states of prompts and responses, as scoring computes them."""
    experience = make_experience(args, decoder.config.vocab_size)
    tokens_BT, mask_BT = experience.tokens_BT, experience.mask_BT
    forward = jit_step(functools.partial(decoder.apply, method="hidden"))
    inputs = ({"params": params}, tokens_BT, mask_BT)
    run, compile_s = compiled(forward, *inputs)
    ours = timed(lambda: jax.block_until_ready(run(*inputs)), args.repeats)
    counts = (int(mask_BT.sum()), mask_BT.size)
    results = {"jax": {**with_rates(ours, *counts), "compile_s": compile_s}}
    if reference is not None:
        call = reference.forward(tokens_BT, mask_BT)
        results["torch"] = with_rates(timed(call, args.repeats), *counts)
    return results


def policy_update(args, decoder: Decoder) -> tuple[Any, Callable[[Any], Network], int]:
    """Return the jitted policy step of the training loop, a function from the base parameters to
    the network that it updates, and the lowest trained layer."""
    config = Config()
    config.ppo.optim.learning_rate = LEARNING_RATE
    config.lora.rank = args.lora_rank
    config.model.train_embeddings = args.train_embeddings
    layers = decoder.config.num_layers
    first = layers - (args.trainable_layers or layers)
    spec = GeneratorSpec(
        config=decoder.config,
        first=first,
        temperature=TEMPERATURE,
        chunk=config.ppo.logprob_chunk,
        critic="reference",
        critic_hidden=0,
        unroll=layers_to_unroll(decoder.config, first, jax.default_backend()),
    )
    optimizer = make_optimizer(config.ppo.optim, lambda _: LEARNING_RATE)
    step = functools.partial(policy_step, spec=spec, config=config, optimizer=optimizer)

    def create(params: Any) -> Network:
        trained = start_policy(params, spec.first, config, jax.random.key(args.seed))
        return Network.create(trained, optimizer)

    return jit_step(step, donate=0), create, spec.first


def measure_policy_memory(args, decoder, params, reference) -> dict[str, Any]:
    """Memory that a policy update needs, as XLA plans it, in MiB. Nothing runs.

    `base` are the generator's starting weights, which are also the reference; `trained` is what the
    step updates, `moments` the optimiser's state, `temporaries` activations and gradients.
    """
    del reference
    step, create, _ = policy_update(args, decoder)
    shape_of = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
    experience = shape_of(make_experience(args, decoder.config.vocab_size))
    base, network = shape_of(params), jax.eval_shape(create, params)
    run, compile_s = compiled(step, network, base, experience, None)
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


def measure_policy_update(args, decoder, params, reference) -> dict[str, Any]:
    """Forward, backward and AdamW step of the PPO loss: the step of the training loop itself."""
    step, create, first = policy_update(args, decoder)
    network = create(params)
    experience = jax.device_put(make_experience(args, decoder.config.vocab_size))
    inputs = (params, experience, None)
    run, compile_s = compiled(step, network, *inputs)

    def update() -> None:
        nonlocal network
        network, metrics = run(network, *inputs)
        jax.block_until_ready((network, metrics))

    ours = timed(update, args.repeats)
    counts = (int(experience.mask_BT.sum()), experience.mask_BT.size)
    results = {"jax": {**with_rates(ours, *counts), "compile_s": compile_s}}
    if reference is not None:
        call = reference.policy_update(experience, first, args.train_embeddings, Config())
        results["torch"] = with_rates(timed(call, args.repeats), *counts)
    return results


def measure_round(args, decoder, params, reference) -> dict[str, Any]:
    """Rounds of the quickstart, GAPO beside PPO: what does the adversary cost?"""
    del decoder, params, reference  # a run loads its own
    settings = runpy.run_path(str(QUICKSTART))["get_config"]
    results: dict[str, Any] = {}
    for method in ("gapo", "ppo"):
        config = settings()
        config.method, config.rounds = method, args.repeats + 1
        config.data.bootstrap_responses, config.data.pairs = 96, 128
        config.data.pairs_heldout = 32
        if args.model:
            config.model.generator = args.model
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            results[method] = _play(finalize(config), Path(folder))
    results["gapo_over_ppo"] = round(results["gapo"]["total"] / results["ppo"]["total"], 3)
    return results


def _play(config: Config, workdir: Path) -> dict[str, float]:
    """Return the median seconds of each phase of a round, the first round left out."""
    run, state = open_run(config, workdir, StopRequest())
    rounds = []
    try:
        prime(
            state.discriminator, run.training.steps, run.players.disc_tokenizer,
            config.discriminator, state.key,
        )  # fmt: skip
        for index in range(config.rounds):
            before = dict(run.clock.seconds)
            state = one_round(run, state, index)
            rounds.append({k: v - before.get(k, 0.0) for k, v in run.clock.seconds.items()})
    finally:
        run.writer.close()
        run.checkpointer.close()
    phases = [k for k in rounds[-1] if rounds[-1][k] > 0]
    found = {k: round(statistics.median(r[k] for r in rounds[1:]), 2) for k in phases}
    return {**found, "total": round(sum(found.values()), 2)}


class TorchReference:
    """The same weights and the same work in transformers on torch."""

    def __init__(self, decoder: Decoder, params: Any, dtype: str):
        """Write the weights as an HF folder and load that."""
        import torch
        import transformers

        self.torch = torch
        with tempfile.TemporaryDirectory() as folder:
            save_hf(decoder, params, folder)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype)
            )

    def tensors(self, *arrays: Any) -> list[Any]:
        """Return int64 tensors of integer arrays."""
        return [self.torch.from_numpy(np.array(array)).long() for array in arrays]

    def sampler(self, tokens_AP, mask_AP, samples: int, new_tokens: int) -> Callable[[], Any]:
        """Return a call of `generate` at the same temperature, of exactly `new_tokens` tokens."""
        tokens, mask = self.tensors(tokens_AP, mask_AP)
        self.model.eval()
        return lambda: self.model.generate(
            tokens, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_k=0,
            top_p=1.0, num_return_sequences=samples, max_new_tokens=new_tokens,
            min_new_tokens=new_tokens, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip

    def hidden(self, tokens, mask) -> Any:
        """Return the final hidden states with our positions."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.model.model(tokens, attention_mask=mask, position_ids=positions, use_cache=False)
        return out.last_hidden_state

    def forward(self, tokens_BT, mask_BT) -> Callable[[], Any]:
        """Return a forward pass without gradients."""
        tokens, mask = self.tensors(tokens_BT, mask_BT)
        return self.torch.no_grad()(lambda: self.hidden(tokens, mask))

    def policy_update(self, experience, first: int, train_embeddings: bool, config: Config):
        """Return an update of the same parameters by the same clipped loss and AdamW."""
        torch, model = self.torch, self.model
        tokens, mask = self.tensors(experience.tokens_BT, experience.mask_BT)
        length = experience.response_mask_BR.shape[1]
        old, advantages = (
            torch.from_numpy(np.array(x))
            for x in (experience.old_logprobs_BR, experience.advantages_BR)
        )
        model.train().requires_grad_(False)
        trained = [model.model.layers[first:], model.model.norm]
        for part in trained + [model.model.embed_tokens] * train_embeddings:
            part.requires_grad_(True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

        def update() -> None:
            hidden = self.hidden(tokens, mask)[:, -length - 1 : -1]
            logprobs = (model.lm_head(hidden).float() / TEMPERATURE).log_softmax(-1)
            with torch.no_grad():
                -(logprobs.exp() * logprobs).sum(-1).mean()  # the entropy, a metric of ours too
            chosen = logprobs.gather(-1, tokens[:, -length:, None])[..., 0]
            ratio = (chosen - old).exp()
            clipped = ratio.clamp(1 - config.ppo.clip_low, 1 + config.ppo.clip_high)
            loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.ppo.optim.clip_norm)
            optimizer.step()

        return update


MEASUREMENTS = {
    "sample": measure_sample,
    "forward": measure_forward,
    "policy_update": measure_policy_update,
    "round": measure_round,
    "policy_memory": measure_policy_memory,
}


def main() -> int:
    """Measure what was asked for and print one JSON object."""
    args = parse()
    try:
        decoder, params, weights = load(args)
        reference = TorchReference(decoder, params, args.dtype) if args.compare else None
    except (FileNotFoundError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shapes = ("batch", "samples", "prompt_tokens", "new_tokens", "trainable_layers", "remat",
              "lora_rank")  # fmt: skip
    report = {
        "weights": weights,
        "device": str(jax.devices()[0].device_kind),
        "dtype": args.dtype,
        "repeats": args.repeats,
        **{name: getattr(args, name) for name in shapes},
    }
    for what in args.what:
        found = MEASUREMENTS[what](args, decoder, params, reference)
        if "torch" in found:
            found["speedup"] = round(found["torch"]["median_s"] / found["jax"]["median_s"], 2)
        report[what] = found
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
