"""Preferential prompts out of anyone's data; look at data; make the product description set.

    python scripts/build_data.py mine --source F [--responses R] --out DIR [--pairs N]
    python scripts/build_data.py lint --source F [--model DIR] [--limit TOKENS]
    python scripts/build_data.py products --out DIR [--products N]

A source is a JSONL, JSON, CSV or Parquet file, a folder of `datasets`, or a dataset of the hub; its
schema is recognised (README, "Your own data"). `mine` writes pairs.jsonl and pairs_test.jsonl,
split by task, response_pairs.jsonl, README.md (the data card) and card.json; with --tfds a TFDS
folder as well. Rows that do not fit are named and counted; --strict ends at the first one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gapo_jax import constraints
from gapo_jax.data import mining, schemas, sources, tables
from gapo_jax.data.card import card, card_markdown
from gapo_jax.data.lint import LintReport, lint
from gapo_jax.data.mixture import Mixture

Row = tuple[str, str]  # task, response
_SHOWN = 5


def _source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, help="file, folder, or dataset of the hub")
    parser.add_argument("--name", default=None, help="configuration of a hub dataset")
    parser.add_argument("--split", default="train", help="split of a hub dataset")
    parser.add_argument("--streaming", action="store_true", help="read it row by row")
    parser.add_argument("--responses", default=None, help="file of {prompt, response} to join")
    parser.add_argument("--schema", choices=schemas.SCHEMAS, default=None)
    parser.add_argument("--rows", type=int, default=None, help="read the first N rows only")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("lint", help="say what is in a source and what is wrong with it")
    _source_arguments(look)
    look.add_argument("--model", default=None, help="whose tokenizer: folder, hub id, .gguf, name")
    look.add_argument("--limit", type=int, default=None, help="longest row, in tokens or words")
    mine = commands.add_parser("mine", help="make preferential prompts")
    _source_arguments(mine)
    mine.add_argument("--also", action="append", default=[], help="a further source; repeatable")
    mine.add_argument("--weights", type=float, nargs="+", default=None, help="one a source")
    mine.add_argument("--out", type=Path, required=True)
    mine.add_argument("--pairs", type=int, default=None, help="at most so many for training")
    mine.add_argument("--types", default="ifeval", help="a family, or names with commas between")
    mine.add_argument("--per-task", type=int, default=12)
    mine.add_argument("--pairing", choices=mining.PAIRINGS, default="auto")
    mine.add_argument("--edited-fraction", type=float, default=0.5)
    mine.add_argument("--max-constraints", type=int, default=2)
    mine.add_argument("--difficulty", type=float, nargs=2, default=(0.0, 1.0))
    mine.add_argument("--test-fraction", type=float, default=0.1)
    mine.add_argument("--num-proc", type=int, default=None, help="processes of datasets.map")
    mine.add_argument("--strict", action="store_true", help="end at the first row that fits not")
    mine.add_argument("--seed", type=int, default=0)
    mine.add_argument("--tfds", action="store_true", help="write a TFDS folder as well")
    make = commands.add_parser("products", help="make the product description set")
    make.add_argument("--out", type=Path, required=True)
    make.add_argument("--products", type=int, default=1000)
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--tfds", action="store_true", help="write a TFDS folder as well")
    return parser.parse_args(arguments)


def read_source(options: argparse.Namespace, source: str):
    """Yield (number, row or problem) of one source, its responses joined."""
    rows = tables.iter_rows(
        source, name=options.name, split=options.split, streaming=options.streaming
    )
    if options.responses:
        rows = tables.join_responses(rows, options.responses)
    yield from itertools.islice(rows, options.rows)


def run_lint(options: argparse.Namespace) -> LintReport:
    """Look through the source and print the report."""
    tokenizer = None
    if options.model:
        from gapo_jax.data.tokenizer import load_tokenizer
        from gapo_jax.data.weights import WEIGHTS, locate

        name = options.model
        tokenizer = load_tokenizer(locate(name) if name in WEIGHTS else name)
    report = lint(
        read_source(options, options.source),
        schema=options.schema,
        tokenizer=tokenizer,
        limit=options.limit,
    )
    print("\n".join(report.lines()))
    return report


def task_rows(options: argparse.Namespace, source: str) -> tuple[list[Row], list[str], int]:
    """Return the (task, response) rows of a source, what is wrong with others, and of how many.

    Raises:
        ValueError: no row fits; with --strict, the first row that does not.
    """
    rows, problems, total = [], [], 0
    for number, record in read_source(options, source):
        total += 1
        try:
            if isinstance(record, str):
                raise ValueError(record)
            schema = options.schema or schemas.recognise(record)
            rows.append(schemas.prompt_and_response(record, schema))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{source}, row {number}: {error}")
            if options.strict:
                raise ValueError(problems[0]) from error
    for problem in problems[:_SHOWN]:
        print(f"left out: {problem}", file=sys.stderr)
    if not rows:
        raise ValueError(f"{source}: none of {total} rows has a task and a response")
    return rows, problems, total


def mixed_rows(options: argparse.Namespace) -> tuple[list[Row], list[str], int]:
    """Return the rows of all sources, as many of each as its weight gives in one epoch.

    Without weights every row comes once.
    """
    found = [task_rows(options, source) for source in (options.source, *options.also)]
    problems, total = [p for part in found for p in part[1]], sum(part[2] for part in found)
    if options.weights is None:
        return [row for part in found for row in part[0]], problems, total
    mixture = Mixture([len(part[0]) for part in found], options.weights, options.seed)
    order = dict.fromkeys(map(tuple, mixture.rows(0, range(len(mixture))).tolist()))
    return [found[source][0][row] for source, row in order], problems, total


def _type_ids(text: str) -> tuple[str, ...]:
    if text in ("ifeval", "ifbench", "product", "all"):
        from gapo_jax.constraints.ifbench_official import missing_data

        return tuple(name for name in constraints.types(text) if missing_data(name) is None)
    return constraints.resolve([part.strip() for part in text.split(",") if part.strip()])


def _write_card(out: Path, splits: dict[str, Any], facts: dict[str, Any], seed: int) -> None:
    record = card(splits, facts, seed)
    (out / "card.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card_markdown(record), encoding="utf-8")


def run_mine(options: argparse.Namespace) -> dict[str, Any]:
    """Read, mine, balance, split, write; return the facts of the card."""
    settings = mining.Mining(
        type_ids=_type_ids(options.types),
        per_task=options.per_task,
        edited_fraction=options.edited_fraction,
        max_constraints=options.max_constraints,
        pairing=options.pairing,
        difficulty=tuple(options.difficulty),
        seed=options.seed,
    )
    rows, problems, total = mixed_rows(options)
    start = time.perf_counter()
    cycles = mining.mine(rows, settings, num_proc=options.num_proc)
    train, test = mining.split_by_task(cycles, options.test_fraction, options.seed)
    train = mining.balance(train, options.pairs, options.seed)
    test = mining.balance(test, None, options.seed)
    minutes = (time.perf_counter() - start) / 60
    splits = {
        name: [p for c in part for p in c] for name, part in (("train", train), ("test", test))
    }
    made = sum(map(len, cycles))
    facts = {
        "source": ", ".join((options.source, *options.also)),
        "rows": total, "rows left out": len(problems),
        "tasks": len({task for task, _ in rows}), "pairs mined": made,
        "pairs a minute": round(made / minutes), "processes": options.num_proc or 1,
        "types": len(settings.type_ids), "pairing": settings.pairing, "seed": settings.seed,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    sources.write_pairs(options.out / "pairs.jsonl", splits["train"])
    sources.write_pairs(options.out / "pairs_test.jsonl", splits["test"])
    sources.write_jsonl(options.out / "response_pairs.jsonl", mining.response_pairs(train))
    if problems:
        (options.out / "left_out.txt").write_text("\n".join(problems) + "\n", encoding="utf-8")
    _write_card(options.out, splits, facts, options.seed)
    if options.tfds:
        from gapo_jax.data.tfds_builders import write_preferential

        write_preferential(splits, options.out / "tfds")
    return {**facts, "train": len(splits["train"]), "test": len(splits["test"])}


def run_products(options: argparse.Namespace) -> dict[str, Any]:
    """Make the product description set and write it."""
    from gapo_jax.data import products

    made = products.make_set(options.products, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, pairs in made.items():
        sources.write_pairs(options.out / f"{name}.jsonl", pairs)
    facts = {"products": options.products, **products.catalogue_counts(), "seed": options.seed}
    _write_card(options.out, made, facts, options.seed)
    if options.tfds:
        from gapo_jax.data.tfds_builders import write_products

        write_products(options.out / "tfds", options.products, options.seed)
    return {**facts, **{name: len(pairs) for name, pairs in made.items()}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 on success, 1 with one line on bad input or for data that lint refuses."""
    options = parse_arguments(arguments)
    try:
        if options.command == "lint":
            return 1 if run_lint(options).errors else 0
        result = run_mine(options) if options.command == "mine" else run_products(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"{name}: {value}" for name, value in result.items()))
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
