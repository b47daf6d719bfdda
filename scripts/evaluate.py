"""Verify responses by rule, or generate them first, and write the files of the IFEval release.

    python scripts/evaluate.py --prompts P.jsonl --model DIR --out DIR
    python scripts/evaluate.py --prompts P.jsonl --responses R.jsonl --out DIR

Prompts are IFEval rows or rows written by gapo_jax. Writes eval_results_strict.jsonl,
eval_results_loose.jsonl and summary.json into --out (with --model also responses.jsonl).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gapo_jax.data import sources
from gapo_jax.evaluate import accuracy
from gapo_jax.evaluate.ifeval_files import write_results
from gapo_jax.types import PromptRow

_SHOWN = 5  # rows that do not fit named on the screen; summary.json names all


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help="prompts, JSONL")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--responses", type=Path, help="responses to verify, JSONL")
    source.add_argument("--model", help="model to ask: HF folder, hub id, .gguf or cached name")
    parser.add_argument("--limit", type=int, default=None, help="use the first N prompts only")
    parser.add_argument(
        "--strict", action="store_true", help="end at the first row that does not fit"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the bootstrap")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples")
    group = parser.add_argument_group("with --model")
    group.add_argument("--batch-size", type=int, default=32)
    group.add_argument("--max-new-tokens", type=int, default=256)
    group.add_argument("--max-prompt-tokens", type=int, default=1024)
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--top-k", type=int, default=0)
    group.add_argument("--system", default=None, help="system prompt")
    options = parser.parse_args(arguments)
    for name in ("batch_size", "max_new_tokens", "max_prompt_tokens", "resamples", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.temperature < 0:
        parser.error(f"--temperature must not be negative, got {options.temperature}")
    return options


def load_model(options: argparse.Namespace) -> tuple[Any, Any, Callable[..., Any], int]:
    """Return the parameters, the tokenizer, the sampler and the longest prompt in tokens."""
    from gapo_jax.models import Decoder
    from gapo_jax.rollout.sampler import make_sampler
    from gapo_jax.train.load import load_any

    loaded = load_any(str(options.model))
    decoder = loaded.module
    if not isinstance(decoder, Decoder):
        raise ValueError(f"--model {options.model} is an encoder; it cannot generate text")
    config = decoder.config
    limit = min(options.max_prompt_tokens, config.max_positions - options.max_new_tokens)
    if limit < 1:
        raise ValueError(
            f"--max-new-tokens {options.max_new_tokens} leaves no room for a prompt: the model "
            f"has {config.max_positions} positions"
        )
    sample = make_sampler(
        decoder,
        max_new_tokens=options.max_new_tokens,
        eos_ids=config.eos_ids,
        pad_id=config.pad_id,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    return loaded.params, loaded.tokenizer, sample, limit


def generate_responses(rows: Sequence[PromptRow], options: argparse.Namespace) -> list[str]:
    """Ask the model; responses in the order of the prompts."""
    import jax
    from tqdm import tqdm

    from gapo_jax.rollout.generate import generate, prompt_width, row_keys

    params, tokenizer, sample, limit = load_model(options)
    keys_B = row_keys(jax.random.key(options.seed), count=len(rows))
    # Prompts of like length share a batch: each batch is as wide as its longest prompt needs.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
    responses = [""] * len(rows)
    with tqdm(total=len(rows), desc="generate", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(order), options.batch_size):
            part = order[start : start + options.batch_size]
            prompts = [rows[index].prompt for index in part]
            width = prompt_width(tokenizer, prompts, options.system, limit)
            width = min(limit, -(-width // 64) * 64)  # few shapes to compile
            made = generate(
                sample,
                params,
                tokenizer,
                prompts,
                keys_B[jax.numpy.array(part)],
                batch_size=options.batch_size,
                width=width,
                temperature=options.temperature,
                system=options.system,
            )
            for index, text in zip(part, made.texts, strict=True):
                responses[index] = text
            bar.update(len(part))
            if bar.disable:
                print(f"generate {start + len(part)}/{len(rows)}", flush=True)
    return responses


def read_rows(options: argparse.Namespace) -> list[PromptRow]:
    """Read the prompts; rows that do not fit are reported and left out, or end it (--strict)."""
    rows, options.skipped = sources.scan_prompts(options.prompts)
    if options.skipped and options.strict:
        raise ValueError(options.skipped[0])
    for problem in options.skipped[:_SHOWN]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(options.skipped) > _SHOWN:
        print(f"left out: {len(options.skipped) - _SHOWN} more rows", file=sys.stderr)
    if not rows:
        raise ValueError(f"{options.prompts} has no prompts that can be verified")
    return rows[: options.limit]


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Read, generate if asked to, verify, write; return the summary."""
    rows = read_rows(options)
    if options.responses is not None:
        prompts = [row.prompt for row in rows]
        # Responses to prompts that were left out on purpose are no sign of a mix-up.
        partial = bool(options.limit or options.skipped)
        responses = sources.read_responses(options.responses, prompts, partial=partial)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        responses = generate_responses(rows, options)
        sources.write_jsonl(
            options.out / "responses.jsonl",
            (
                {"key": row.key, "prompt": row.prompt, "response": text}
                for row, text in zip(rows, responses, strict=True)
            ),
        )
    verdicts = accuracy.verify(rows, responses)
    summary = accuracy.summarise(verdicts, seed=options.seed, resamples=options.resamples)
    summary["health"] = accuracy.text_health([row.task for row in rows], responses)
    summary["skipped_rows"] = list(options.skipped)
    summary["source"] = {
        "prompts": str(options.prompts),
        "responses": str(options.responses) if options.responses else None,
        "model": options.model,
    }
    write_results(options.out, verdicts)
    text = json.dumps(summary, indent=2)
    (options.out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 on success, 1 with one line on bad input."""
    options = parse_arguments(arguments)
    start = time.perf_counter()
    try:
        summary = evaluate(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(accuracy.format_table(summary))
    if options.skipped:
        print(f"{len(options.skipped)} rows of {options.prompts} did not fit and were left out")
    print(
        f"{summary['responses']} responses to {summary['prompts']} prompts in "
        f"{time.perf_counter() - start:.1f} s; results in {options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
