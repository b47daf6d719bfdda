"""Verify responses by rule, or generate them first, and write the files of the IFEval release.

    gapo-jax evaluate --prompts P.jsonl --model DIR --out DIR
    gapo-jax evaluate --prompts P.jsonl --responses R.jsonl --out DIR
    gapo-jax evaluate --prompts P.jsonl --model DIR --out AFTER --compare BEFORE

Prompts are IFEval or IFBench rows (JSONL, CSV, Parquet, or a dataset of the hub such as
google/IFEval), RLVR rows of AI2, or rows written by gapo_jax; --plugin adds your own constraint
types. Text inside <think>...</think> is not verified. Writes eval_results_strict.jsonl,
eval_results_loose.jsonl and summary.json into --out (with --model also responses.jsonl). A killed
evaluation goes on where it stopped when the same command is given again. --compare takes the --out
of another run on the same prompts: differences with intervals and McNemar's test. --scorer takes
the workdir of a run on other data, whose discriminator scores the responses beside the verifiers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gapo_jax import constraints, io, rng
from gapo_jax.cli import program
from gapo_jax.data import sources
from gapo_jax.evaluate import accuracy
from gapo_jax.evaluate.compare import compare, format_comparison
from gapo_jax.evaluate.ifeval_files import read_results, write_results
from gapo_jax.evaluate.response_store import ResponseStore, model_mark, prompts_mark
from gapo_jax.evaluate.responses import all_prompts, match_responses
from gapo_jax.evaluate.second_opinion import second_opinion
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream
from gapo_jax.types import PromptRow

_SCORED_TOKENS = 1024  # longest text for a --scorer that is no run, which would say its own limit
_SHOWN = 5  # rows that do not fit named on the screen; summary.json names all


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        program("evaluate"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", required=True, help="prompts: file, or dataset of the hub")
    parser.add_argument("--name", default=None, help="configuration of a hub dataset")
    parser.add_argument("--split", default="train", help="split of a hub dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--responses", type=Path, help="responses to verify: {prompt, response}")
    source.add_argument("--model", help="model to ask: HF folder, hub id, .gguf or cached name")
    parser.add_argument(
        "--scorer", type=Path, default=None, help="run, or exported discriminator: a second opinion"
    )
    parser.add_argument("--compare", type=Path, default=None, help="--out of the run before")
    parser.add_argument("--limit", type=int, default=None, help="use the first N prompts only")
    parser.add_argument(
        "--plugin", action="append", default=[], help="file of constraint types; repeatable"
    )
    parser.add_argument(
        "--strict", action="store_true", help="end at the first row that does not fit"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the bootstrap")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples")
    _model_arguments(parser.add_argument_group("with --model"))
    options = parser.parse_args(arguments)
    _check(options, parser)
    return options


def _model_arguments(group: Any) -> None:
    group.add_argument("--batch-size", type=int, default=32, help="rows decoded at once")
    group.add_argument(
        "--whole-batches",
        action="store_true",
        help="let a batch end with its longest row, not refill the place of a row that has ended",
    )
    group.add_argument("--max-new-tokens", type=int, default=256)
    group.add_argument("--max-prompt-tokens", type=int, default=1024)
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    group.add_argument("--samples", type=int, default=1, help="responses to each prompt")
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--top-k", type=int, default=0)
    group.add_argument("--min-p", type=float, default=0.0)
    group.add_argument("--stop", action="append", default=[], help="cut before this; repeatable")
    group.add_argument("--system", help="default: that of the run, or of the chat template")


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with an error of `parser` where an option has no valid value."""
    whole = ("batch_size", "max_new_tokens", "max_prompt_tokens", "resamples", "limit", "samples")
    for name in whole:
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.temperature < 0:
        parser.error(f"--temperature must not be negative, got {options.temperature}")
    if options.samples > 1 and (options.responses or options.temperature == 0):
        parser.error("--samples above 1 needs --model and a --temperature above 0")
    if options.samples > options.batch_size:
        parser.error(f"--samples {options.samples} must fit into --batch-size {options.batch_size}")


def load_model(options: argparse.Namespace) -> tuple[Any, Any, Callable[..., Any], int]:
    """Return the parameters, the tokenizer, the sampler and the longest prompt in tokens."""
    from gapo_jax.data.chat import stop_ids
    from gapo_jax.models import Decoder
    from gapo_jax.rollout.sampler import make_sampler
    from gapo_jax.train.restore import load_any, trained_system

    loaded = load_any(str(options.model))
    if options.system is None:
        options.system = trained_system(options.model)
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
        eos_ids=stop_ids(loaded.tokenizer, config.eos_ids),
        pad_id=config.pad_id,
        slots=0 if options.whole_batches else options.batch_size,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
    )
    return loaded.params, loaded.tokenizer, sample, limit


_SETTINGS = (
    "model seed samples batch_size whole_batches max_new_tokens max_prompt_tokens temperature "
    "top_p top_k min_p stop system"
).split()
_REFILLS = 8  # batches' worth of rows that are kept at once where places are refilled


def fitting_rows(
    rows: Sequence[PromptRow], tokenizer: Any, limit: int, options: argparse.Namespace
) -> list[PromptRow]:
    """Return the prompts that the model can take; the others are reported and left out.

    Raises:
        ValueError: none can be taken; with --strict, the first that cannot.
    """
    from gapo_jax.rollout.generate import prompt_lengths

    sizes = prompt_lengths(tokenizer, [row.prompt for row in rows], options.system)
    odd = [
        f"{options.prompts}, key {row.key!r}: wanted a prompt of 1 to {limit} tokens, got {size} "
        f"(--max-prompt-tokens {options.max_prompt_tokens}, or what --max-new-tokens leaves of the "
        "model's positions)"
        for row, size in zip(rows, sizes, strict=True)
        if not 0 < size <= limit
    ]
    report_problems(options, odd)
    if len(odd) == len(rows):
        raise ValueError(odd[0])
    return [row for row, size in zip(rows, sizes, strict=True) if 0 < size <= limit]


def ask_model(
    rows: Sequence[PromptRow], options: argparse.Namespace
) -> tuple[list[PromptRow], list[str]]:
    """Load the model and ask it; return the prompts it can take, each once a response, and the
    responses, which are written as well."""
    params, tokenizer, sample, limit = load_model(options)
    # Before the first batch: batches go from short to long, so a misfit would end hours of work.
    rows = fitting_rows(rows, tokenizer, limit, options)
    asker = make_asker(rows, options, params, tokenizer, sample, limit)
    responses = generate_responses(rows, options, asker)
    rows = [row for row in rows for _ in range(options.samples)]
    io.write_jsonl(
        options.out / "responses.jsonl",
        (
            {"key": row.key, "prompt": row.prompt, "response": text}
            for row, text in zip(rows, responses, strict=True)
        ),
    )
    return rows, responses


def generate_responses(
    rows: Sequence[PromptRow], options: argparse.Namespace, ask: Callable[[list[int]], list[str]]
) -> list[str]:
    """Ask the model; `samples` responses to each prompt in turn, in the order of the prompts."""
    from tqdm import tqdm

    settings = {name: getattr(options, name) for name in _SETTINGS}
    settings["model_mark"] = model_mark(str(options.model))
    settings["prompts"] = prompts_mark([row.prompt for row in rows])
    store = ResponseStore(options.out, settings)
    samples, each = options.samples, options.batch_size // options.samples
    each *= 1 if options.whole_batches else _REFILLS
    # Prompts of like length share a batch: each batch is as wide as its longest prompt needs.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
    parts = [order[start : start + each] for start in range(0, len(order), each)]
    if store.batches:
        print(f"going on: {len(store.batches)} of {len(parts)} batches are there", flush=True)
    with tqdm(total=len(rows), desc="generate", disable=not sys.stderr.isatty()) as bar:
        for number, part in enumerate(parts):
            if number not in store.batches:
                store.add(number, ask(part))
            bar.update(len(part))
            if bar.disable:
                print(f"generate {sum(map(len, parts[: number + 1]))}/{len(rows)}", flush=True)
    responses = [""] * (len(rows) * samples)
    for number, part in enumerate(parts):
        for place, text in enumerate(store.batches[number]):
            responses[part[place // samples] * samples + place % samples] = text
    return responses


def make_asker(
    rows: Sequence[PromptRow],
    options: argparse.Namespace,
    params: Any,
    tokenizer: Any,
    sample: Callable[..., Any],
    limit: int,
) -> Callable[[list[int]], list[str]]:
    """Return a function from row indices to their responses, samples in turn; all prompts have at
    most `limit` tokens."""
    import numpy as np

    from gapo_jax.rollout.generate import generate, prompt_width

    samples = options.samples
    keys_B = rng.row_keys(options.seed, Stream.EVALUATE_COMMAND, count=len(rows) * samples)

    def ask(part: list[int]) -> list[str]:
        prompts = [rows[index].prompt for index in part]
        width = prompt_width(tokenizer, prompts, options.system, limit)
        width = min(limit, -(-width // 64) * 64)  # few shapes to compile
        rows_B = (np.array(part)[:, None] * samples + np.arange(samples)).reshape(-1)
        made = generate(
            sample,
            params,
            tokenizer,
            prompts,
            keys_B[rows_B],
            batch_size=options.batch_size // samples * samples,
            width=width,
            temperature=options.temperature,
            system=options.system,
            stop=options.stop,
        )
        return made.texts

    return ask


def report_problems(options: argparse.Namespace, problems: Sequence[str]) -> None:
    """Name what does not fit and leave it out; end at the first problem with --strict.

    Raises:
        ValueError: with --strict, the first problem.
    """
    if problems and options.strict:
        raise ValueError(problems[0])
    for problem in problems[:_SHOWN]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(problems) > _SHOWN:
        print(f"left out: {len(problems) - _SHOWN} more rows", file=sys.stderr)
    options.skipped += problems


def read_rows(options: argparse.Namespace) -> list[PromptRow]:
    """Read the prompts; rows that do not fit are reported and left out, or end it (--strict)."""
    rows, problems = sources.scan_prompts(options.prompts, name=options.name, split=options.split)
    for row in rows:
        if not row.constraints:
            problems.append(f"{options.prompts}, key {row.key!r}: no constraint to verify")
    rows = [row for row in rows if row.constraints]
    report_problems(options, problems)
    if not rows:
        raise ValueError(f"{options.prompts} has no prompts that can be verified")
    return rows[: options.limit]


def read_answers(
    options: argparse.Namespace, rows: list[PromptRow]
) -> tuple[list[PromptRow], list[str]]:
    """Return the prompts that have a response, each once a response, and the responses."""

    def left_out() -> set[str]:  # on purpose: responses to these prompts are no mix-up
        return all_prompts(options.prompts, name=options.name, split=options.split)

    prompts = [row.prompt for row in rows]
    answers, problems = match_responses(options.responses, prompts, left_out)
    report_problems(options, problems)
    answered = [(row, text) for row, texts in zip(rows, answers, strict=True) for text in texts]
    if not answered:
        raise ValueError(f"{options.responses} answers none of the {len(rows)} prompts")
    return [row for row, _ in answered], [text for _, text in answered]


def load_scorer(workdir: Path, batch_size: int) -> Callable[..., Any]:
    """Return the discriminator of a run, or of an exported folder with its head, as a function from
    prompts and responses to logits."""
    from gapo_jax.evaluate.second_opinion import make_scorer
    from gapo_jax.train.restore import is_run, load_any

    loaded = load_any(workdir, network="discriminator")
    limit = min(loaded.module.config.max_positions, _SCORED_TOKENS)
    if is_run(workdir):
        record = io.read_json(workdir / "config.json")
        limit = int(record["discriminator"]["max_tokens"])
    return make_scorer(
        loaded.module, loaded.params, loaded.tokenizer, max_tokens=limit, batch_size=batch_size
    )


def warn_of_own_scorer(options: argparse.Namespace) -> None:
    """Warn where the scorer seems to be the discriminator that the model was trained against."""
    if not options.scorer or not options.model or not Path(options.model).exists():
        return
    scorer, model = options.scorer.resolve(), Path(options.model).resolve()
    if model.is_relative_to(scorer) or scorer.is_relative_to(model):
        print(
            f"warning: --model {options.model} and --scorer {options.scorer} are of one run: the "
            "scorer is the discriminator that the model was trained to please; give the "
            "workdir of a run on other data",
            file=sys.stderr,
        )


def evaluate(options: argparse.Namespace) -> JsonObject:
    """Read, generate if asked to, verify, write; return the summary."""
    for path in options.plugin:
        constraints.load_plugin(path)
    before = read_results(options.compare) if options.compare is not None else None
    options.comparison, options.skipped = None, []
    warn_of_own_scorer(options)
    scorer = load_scorer(options.scorer, options.batch_size) if options.scorer else None
    rows = read_rows(options)
    if before and not {row.prompt for row in rows} & {verdict.prompt for verdict in before}:
        raise ValueError(
            f"--compare {options.compare}: it has no prompt in common with {options.prompts}; "
            "compare runs on the same prompts"
        )
    if options.responses is not None:
        rows, responses = read_answers(options, rows)
    else:
        rows, responses = ask_model(rows, options)
    verdicts = accuracy.verify(rows, responses)
    summary = accuracy.summarise(verdicts, seed=options.seed, resamples=options.resamples)
    summary["health"] = accuracy.text_health([row.task for row in rows], responses)
    summary["satisfied"] = accuracy.satisfied(verdicts)
    summary["skipped_rows"] = list(options.skipped)
    summary["source"] = {
        "prompts": str(options.prompts),
        "responses": str(options.responses) if options.responses else None,
        "model": options.model,
    }
    if scorer is not None:
        summary["second_opinion"] = {
            "scorer": str(options.scorer),
            **second_opinion(scorer, verdicts, options.seed, options.resamples),
        }
    if before is not None:
        options.comparison = summary["comparison"] = compare(
            before, verdicts, seed=options.seed, resamples=options.resamples
        )
    write_results(options.out, verdicts)
    io.write_json(options.out / "summary.json", summary)
    if options.model:  # not before: a kill while verifying must not cost the responses
        (options.out / ResponseStore.NAME).unlink(missing_ok=True)
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
    for size, counts in summary["satisfied"].items():
        listed = ", ".join(f"{held}: {count}" for held, count in enumerate(counts))
        print(f"responses to {size} constraint{'s' * (size > 1)}, by how many hold: {listed}")
    if "second_opinion" in summary:
        opinion = summary["second_opinion"]
        print(
            f"second opinion of {opinion['scorer']}: accepts "
            f"{100 * opinion['accepted']['value']:.1f}%, agrees with the rules on "
            f"{100 * opinion['agreement']:.1f}%"
        )
    if options.comparison is not None:
        print(format_comparison(options.comparison))
    if options.skipped:
        print(f"{len(options.skipped)} rows did not fit and were left out: summary.json names them")
    print(
        f"{summary['responses']} responses to {summary['prompts']} prompts in "
        f"{time.perf_counter() - start:.1f} s; results in {options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
