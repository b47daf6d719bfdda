"""Preferential prompts out of anyone's data; look at data; make the product description set.

    gapo-jax build-data mine --source F [--responses R] --out DIR [--pairs N]
    gapo-jax build-data lint --source F [--model DIR] [--limit TOKENS]
    gapo-jax build-data products --out DIR [--products N]

A source is a JSONL, JSON, CSV or Parquet file (also .gz, .zst), a folder of `datasets`, or a
dataset of the hub; its schema is recognised (docs/data.md). `mine` writes pairs.jsonl and
pairs_test.jsonl, split by task, prompts_test.jsonl (prompts for `evaluate`), response_pairs.jsonl,
README.md (the data card) and card.json; with --tfds a TFDS folder as well. --beam mines on many
machines and writes all of these but response_pairs.jsonl. Rows that do not fit are named (`mine`
writes them into left_out.txt) and counted; `mine --strict` ends at the first one. --plugin adds
constraint types of your own (docs/rewards.md).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gapo_jax import constraints, io
from gapo_jax.cli import program
from gapo_jax.data import mining, schemas, selection, sources, tables
from gapo_jax.data.card import card, card_markdown
from gapo_jax.data.lint import LintReport, lint
from gapo_jax.data.mixture import Mixture
from gapo_jax.data.recipe import Recipe, TaskRow
from gapo_jax.records import JsonObject
from gapo_jax.types import PreferentialPair

_SHOWN = 5


def _source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, help="file, folder, or dataset of the hub")
    parser.add_argument("--name", default=None, help="configuration of a hub dataset")
    parser.add_argument("--split", default="train", help="split of a hub dataset")
    parser.add_argument("--streaming", action="store_true", help="read it row by row")
    parser.add_argument("--responses", default=None, help="file of {prompt, response} to join")
    parser.add_argument("--schema", choices=schemas.SCHEMAS, default=None)
    parser.add_argument(
        "--plugin", action="append", default=[], help="file of constraint types; repeatable"
    )
    parser.add_argument("--rows", type=int, default=None, help="read the first N rows only")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        program("build-data"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("lint", help="say what is in a source and what is wrong with it")
    _source_arguments(look)
    look.add_argument("--model", default=None, help="whose tokenizer: folder, hub id, .gguf, name")
    look.add_argument("--limit", type=int, default=None, help="longest row, in tokens or words")
    look.add_argument("--train-on", choices=("last", "all"), default="all", help="which answers")
    look.add_argument(
        "--chat-template-kwargs", default="{}", help="JSON: variables of the chat template"
    )
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
    mine.add_argument("--beam", action="store_true", help="mine by an Apache Beam pipeline")
    mine.add_argument("--beam-options", default="", help='such as "--runner=FlinkRunner ..."')
    make = commands.add_parser("products", help="make the product description set")
    make.add_argument("--out", type=Path, required=True)
    make.add_argument("--products", type=int, default=1000)
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--tfds", action="store_true", help="write a TFDS folder as well")
    return parser.parse_args(arguments)


def run_lint(options: argparse.Namespace) -> LintReport:
    """Look through the source and print the report."""
    tokenizer = None
    if options.model:
        from gapo_jax.config import DataConfig
        from gapo_jax.data.chat import set_template_variables
        from gapo_jax.data.tokenizer import load_tokenizer
        from gapo_jax.data.weights import WEIGHTS, locate

        name = options.model
        tokenizer = load_tokenizer(locate(name) if name in WEIGHTS else name)
        variables = DataConfig(chat_template_kwargs=options.chat_template_kwargs)
        set_template_variables(tokenizer, variables.template_variables())
    rows = tables.iter_rows(
        options.source, name=options.name, split=options.split, streaming=options.streaming
    )
    if options.responses:
        rows = tables.join_responses(rows, options.responses)
    report = lint(
        itertools.islice(rows, options.rows),
        schema=options.schema,
        tokenizer=tokenizer,
        limit=options.limit,
        train_on=options.train_on,
    )
    print("\n".join(report.lines()))
    return report


def make_recipe(options: argparse.Namespace) -> Recipe:
    """Return what the command line asks to mine."""
    settings = mining.Mining(
        type_ids=_type_ids(options.types),
        per_task=options.per_task,
        edited_fraction=options.edited_fraction,
        max_constraints=options.max_constraints,
        pairing=options.pairing,
        difficulty=tuple(options.difficulty),
        seed=options.seed,
        # Whole paths, because a worker may start in another folder.
        plugins=tuple(str(Path(path).expanduser().resolve()) for path in options.plugin),
    )
    return Recipe(
        sources=(options.source, *options.also),
        settings=settings,
        pairs=options.pairs,
        test_fraction=options.test_fraction,
        schema=options.schema,
        responses=options.responses,
        name=options.name,
        split=options.split,
        streaming=options.streaming,
        rows=options.rows,
        strict=options.strict,
    )


def task_rows(recipe: Recipe, source: str) -> tuple[list[TaskRow], list[str]]:
    """Return the (task, response) rows of a source, and what is wrong with the others.

    Raises:
        ValueError: no row fits; with --strict, the first row that does not.
    """
    rows: list[TaskRow] = []
    problems: list[str] = []
    for row in recipe.read(source):
        if isinstance(row, str):
            problems.append(row)
        else:
            rows.append(row)
    for problem in problems[:_SHOWN]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(problems) > _SHOWN:
        print(f"left out: {len(problems) - _SHOWN} more rows", file=sys.stderr)
    if not rows:
        raise ValueError(f"{source}: none of {len(problems)} rows has a task and a response")
    return rows, problems


def mixed_rows(
    recipe: Recipe, weights: Sequence[float] | None
) -> tuple[list[TaskRow], list[str], int]:
    """Return the rows of all sources, what is wrong with others, and how many were read.

    With weights a source gives as many of its rows as its weight in one epoch; without, all.
    """
    parts = [task_rows(recipe, source) for source in recipe.sources]
    problems = [problem for _, part in parts for problem in part]
    rows = [row for part, _ in parts for row in part]
    total = len(rows) + len(problems)
    if weights is None:
        return rows, problems, total
    mixture = Mixture([len(part) for part, _ in parts], weights, recipe.settings.seed)
    order = dict.fromkeys(map(tuple, mixture.rows(0, range(len(mixture))).tolist()))
    return [parts[source][0][row] for source, row in order], problems, total


def _type_ids(text: str) -> tuple[str, ...]:
    """Return the ids of --types, each of which has `sample` and `modify`."""
    type_ids = constraints.resolve([part.strip() for part in text.split(",") if part.strip()])
    return tuple(constraints.trainable(type_id).id for type_id in type_ids)


def _write_splits(out: Path, splits: Mapping[str, Sequence[PreferentialPair]]) -> None:
    sources.write_pairs(out / sources.MINED["train"], splits["train"])
    sources.write_pairs(out / sources.MINED["test"], splits["test"])
    prompts = sources.accepted_prompts(splits["test"], "test")
    sources.write_prompts(out / "prompts_test.jsonl", prompts)


def _write_left_out(out: Path, problems: Sequence[str]) -> None:
    path = out / "left_out.txt"
    path.unlink(missing_ok=True)  # of an earlier run
    if problems:
        io.write_text(path, "\n".join(problems) + "\n")


def _require_pairs(train: Sequence[PreferentialPair], made: int, options: Any) -> None:
    """Raise ValueError, which says what to change, where nothing is left for training."""
    if not train:
        raise ValueError(
            f"wanted pairs for training, got none of {made} mined ones: give more rows, more types "
            f"than --types {options.types}, a wider --difficulty, --pairing auto, a larger "
            "--per-task or --pairs, or a smaller --test-fraction"
        )


def _write_card(out: Path, splits: JsonObject, facts: JsonObject, seed: int) -> None:
    record = card(splits, facts, seed)
    io.write_json(out / "card.json", record)
    io.write_text(out / "README.md", card_markdown(record))


def run_mine(options: argparse.Namespace) -> JsonObject:
    """Read, mine, balance, split, write; return the facts of the card."""
    recipe = make_recipe(options)
    if options.beam:
        return run_beam(options, recipe)
    rows, problems, total = mixed_rows(recipe, options.weights)
    start = time.perf_counter()
    cycles = mining.mine(rows, recipe.settings, num_proc=options.num_proc)
    sides = selection.split_by_task(cycles, recipe.test_fraction, options.seed)
    train = selection.balance(sides[0], recipe.pairs, options.seed)
    test = selection.balance(sides[1], None, options.seed, "test")
    minutes = (time.perf_counter() - start) / 60
    splits = {
        name: [p for c in part for p in c] for name, part in (("train", train), ("test", test))
    }
    made = sum(map(len, cycles))
    _require_pairs(splits["train"], made, options)
    facts = {
        "source": ", ".join(recipe.sources),
        "rows": total, "rows left out": len(problems),
        "tasks": len({task for task, _ in rows}), "pairs mined": made,
        "pairs a minute": round(made / minutes), "processes": options.num_proc or 1,
        "types": len(recipe.settings.type_ids), "pairing": options.pairing, "seed": options.seed,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    _write_splits(options.out, splits)
    io.write_jsonl(options.out / "response_pairs.jsonl", mining.response_pairs(train))
    _write_left_out(options.out, problems)
    _write_card(options.out, splits, facts, options.seed)
    if options.tfds:
        from gapo_jax.data.tfds_builders import write_preferential

        write_preferential(splits, options.out / "tfds")
    return {**facts, "train": len(splits["train"]), "test": len(splits["test"])}


def run_beam(options: argparse.Namespace, recipe: Recipe) -> JsonObject:
    """Mine by a Beam pipeline; write the TFDS folder, the same pairs as JSONL, and the card."""
    from gapo_jax.data import tfds_builders

    if options.weights is not None or options.num_proc is not None:
        raise ValueError("--beam goes without --weights and --num-proc: Beam spreads the work")
    folder = options.out / "tfds"
    _, left_out = tfds_builders.write_on_beam(recipe, folder, options.beam_options.split())
    splits: dict[str, list[PreferentialPair]] = {"train": [], "test": []}
    for name in ("train", "test") if recipe.test_fraction else ("train",):
        rows = tfds_builders.data_source("preferential_prompts", folder, name)
        splits[name] = [tfds_builders.to_pair(rows[i]) for i in range(len(rows))]
    _require_pairs(splits["train"], sum(map(len, splits.values())), options)
    facts = {
        "source": ", ".join(recipe.sources), "rows left out": left_out,
        "types": len(recipe.settings.type_ids), "pairing": options.pairing, "seed": options.seed,
    }  # fmt: skip
    _write_splits(options.out, splits)
    named = [f"{left_out} rows did not fit; the logs of the workers name them"] if left_out else []
    _write_left_out(options.out, named)
    _write_card(options.out, splits, facts, options.seed)
    return {**facts, **{name: len(pairs) for name, pairs in splits.items()}}


def run_products(options: argparse.Namespace) -> JsonObject:
    """Make the product description set and write it."""
    from gapo_jax.data import products

    made = products.make_set(options.products, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    _write_splits(options.out, made)
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
        for path in getattr(options, "plugin", ()):
            constraints.load_plugin(path)
        if options.command == "lint":
            return 1 if run_lint(options).errors else 0
        result = run_mine(options) if options.command == "mine" else run_products(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"{name}: {value}" for name, value in result.items()))
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
