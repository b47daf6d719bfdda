"""Text from a model: an HF folder, a hub id, a .gguf file or the workdir of a run.

    python scripts/generate.py --model runs/quickstart --prompt "Name three rivers." [--greedy]

Several --prompt arguments are answered in one batch. SmolLM2's chat template writes its own system
turn; --system replaces it ("" leaves it empty).
"""

from __future__ import annotations

import argparse
import sys

import jax

from gapo_jax.checkpoint import CheckpointError
from gapo_jax.data.tokenizer import chat_prompt, decode_responses, encode_prompts
from gapo_jax.rollout.sampler import make_sampler
from gapo_jax.train.load import load_any


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="HF folder, hub id, .gguf or workdir")
    parser.add_argument("--prompt", required=True, action="append", help="repeat for a batch")
    parser.add_argument("--system", default=None, help="replaces the template's system turn")
    parser.add_argument("--step", type=int, default=None, help="checkpoint of a run")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--greedy", action="store_true", help="temperature 0")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Load, sample, print."""
    args = parse()
    try:
        loaded = load_any(args.model, step=args.step)
        config = loaded.module.config
        limit = config.max_positions - args.max_new_tokens
        texts = [chat_prompt(loaded.tokenizer, prompt, args.system) for prompt in args.prompt]
        tokens_BP, mask_BP = encode_prompts(loaded.tokenizer, texts, limit)
        sample = make_sampler(
            loaded.module,
            max_new_tokens=args.max_new_tokens,
            eos_ids=config.eos_ids,
            pad_id=config.pad_id,
            top_k=args.top_k,
            top_p=args.top_p,
        )
    except (FileNotFoundError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    keys_B = jax.random.split(jax.random.key(args.seed), len(texts))
    temperature = 0.0 if args.greedy else args.temperature
    rollout = sample(loaded.params, tokens_BP, mask_BP, keys_B, temperature)
    tokens_BR = rollout.tokens_BT[:, tokens_BP.shape[1] :]
    responses = decode_responses(loaded.tokenizer, tokens_BR, rollout.response_mask_BR)
    for prompt, response in zip(args.prompt, responses):
        if len(responses) > 1:
            print(f"### {prompt}")
        print(response.strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
