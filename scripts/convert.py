"""Models in and out, and the proof that they are the same.

    python scripts/convert.py import SRC DST     HF folder, hub id or .gguf file -> Orbax
    python scripts/convert.py export SRC DST     run, checkpoint or import -> HF folder
    python scripts/convert.py export RUN DST --adapter    a LoRA run's adapter -> PEFT folder
    python scripts/convert.py verify SRC         against transformers (needs torch)

`import` and `export` also take a PEFT adapter (folder or hub id) and merge it into its base, the
one that it names or --base. `export` takes the workdir of a run (its newest checkpoint, or --step),
WORKDIR/checkpoints/STEP, a folder made by `import`, or whatever `import` takes. `verify` prints the
largest difference of the logits and compares greedy tokens; its exit status is 1 when they differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gapo_jax import hub, models
from gapo_jax.checkpoint import CheckpointError
from gapo_jax.data.tokenizer import chat_prompt, encode_prompts, load_tokenizer
from gapo_jax.data.weights import WEIGHTS, locate
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.load import load_any, load_trained_adapters, save_imported

PROMPTS = (
    "Name three rivers and one mountain.",
    "Write a short note to a neighbour about a lost cat.",
    "What is 17 + 25? Explain in one sentence.",
    "Write a Python function that reverses a list.",
)
# Float32 logits of one network on two libraries: rounding grows with the size of the logits.
RELATIVE_TOLERANCE = 1e-5


def import_model(args: argparse.Namespace) -> int:
    """`import SRC DST`."""
    loaded = load_any(args.src, base=args.base)
    folder = Path(args.dst)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"Wanted a new or empty folder, got {folder}. Choose another.")
    save_imported(loaded.module, loaded.params, loaded.tokenizer, folder, loaded.base)
    print(folder)
    return 0


def export_model(args: argparse.Namespace) -> int:
    """`export SRC DST`."""
    if args.adapter:
        decoder, adapters, base, method = load_trained_adapters(args.src, args.step)
        print(models.save_adapter(decoder, adapters, args.dst, base=base, method=method))
        return 0
    loaded = load_any(args.src, network=args.network, step=args.step, base=args.base)
    models.save_hf(
        loaded.module,
        loaded.params,
        args.dst,
        loaded.tokenizer,
        dtype=args.dtype,
        method=loaded.method,
        base=loaded.base,
    )
    print(args.dst)
    return 0


def _torch_model(path: Path) -> Any:
    """Return transformers' own model of an HF folder or GGUF file, float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if path.is_dir():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    record = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    left = model.load_state_dict(record["tensors"], strict=False)
    if left.unexpected_keys or set(left.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"transformers could not fill its own model from {path}: {left}")
    model.tie_weights()
    return model


def verify_model(args: argparse.Namespace) -> int:
    """`verify SRC`."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "Wanted torch for the comparison, got an environment without it. "
            "Install it: pip install torch"
        ) from error
    path = locate(args.src) if args.src in WEIGHTS else hub.resolve(args.src)
    decoder, params = models.load_decoder(path)
    tokenizer = load_tokenizer(path)
    theirs = _torch_model(path)
    texts = [chat_prompt(tokenizer, prompt) for prompt in PROMPTS[: args.prompts]]
    tokens_BP, mask_BP = encode_prompts(tokenizer, texts, decoder.config.max_positions)
    ids, mask = torch.tensor(tokens_BP).long(), torch.tensor(mask_BP).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = theirs(ids, attention_mask=mask, position_ids=positions).logits.numpy()
    got = np.asarray(jax.jit(decoder.apply)({"params": params}, tokens_BP, mask_BP))
    real = mask_BP > 0
    difference, largest = np.abs(got - want)[real].max(), np.abs(want)[real].max()
    print(f"largest logit difference {difference:.3g} (logits up to {largest:.3g})")
    equal = _greedy_equal(decoder, params, theirs, (tokens_BP, mask_BP), args.tokens)
    print(f"greedy tokens equal on {equal} of {len(texts)} prompts over {args.tokens} tokens")
    tolerance = max(1e-4, RELATIVE_TOLERANCE * float(largest))
    return int(difference > tolerance or equal < len(texts))


def _greedy_equal(
    decoder: models.Decoder, params: Any, theirs: Any, prompts: tuple[Any, Any], count: int
) -> int:
    """Return on how many prompts both libraries write the same `count` greedy tokens."""
    import torch

    tokens_BP, mask_BP = prompts
    config = decoder.config
    sample = make_sampler(
        decoder, max_new_tokens=count, eos_ids=config.eos_ids, pad_id=config.pad_id
    )
    keys_B = jax.random.split(jax.random.key(0), len(tokens_BP))
    rollout = sample(params, tokens_BP, mask_BP, keys_B, 0.0)
    equal = 0
    for row, mask, tokens, kept in zip(
        tokens_BP, mask_BP, np.asarray(rollout.tokens_BT), np.asarray(rollout.response_mask_BR)
    ):
        prompt = torch.tensor(row[mask > 0])[None].long()
        out = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=list(config.eos_ids),
            pad_token_id=config.pad_id,
        )
        want = out[0, prompt.shape[1] :].tolist()
        equal += want == tokens[len(row) :][kept > 0].tolist()
    return equal


def main() -> int:
    """Run one of the three commands; errors go to standard error, with exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="import | export | verify")
    command = commands.add_parser("import", help="HF folder, hub id or GGUF file to Orbax")
    command.add_argument("src")
    command.add_argument("dst")
    command.add_argument("--base", help="the base of a PEFT adapter, if not the one it names")
    command.set_defaults(run=import_model)
    command = commands.add_parser("export", help="run, checkpoint or import to an HF folder")
    command.add_argument("src")
    command.add_argument("dst")
    command.add_argument("--step", type=int, default=None)
    command.add_argument("--network", choices=("generator", "discriminator"), default="generator")
    command.add_argument("--base", help="the base of a PEFT adapter, if not the one it names")
    command.add_argument("--adapter", action="store_true", help="a LoRA run's adapter, for PEFT")
    command.add_argument("--dtype", choices=sorted(models.DTYPES), default="float32")
    command.set_defaults(run=export_model)
    command = commands.add_parser("verify", help="compare with transformers (needs torch)")
    command.add_argument("src")
    command.add_argument("--prompts", type=int, default=len(PROMPTS))
    command.add_argument("--tokens", type=int, default=64)
    command.set_defaults(run=verify_model)
    args = parser.parse_args()
    try:
        return args.run(args)
    except (FileNotFoundError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
