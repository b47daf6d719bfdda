"""The rows of a run that learns from `config.data.source` directly: found, encoded, split.

A row is read once; what it gives lies encoded in a table (`data/row_table.py`) of the workdir or of
`config.data.cache`, named after all that decides what is in it, so that a second run finds it and a
continued one needs the source no more. Which rows are held out depends on seed and prompts alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gapo_jax import io
from gapo_jax.config import Config
from gapo_jax.data import tables
from gapo_jax.data.chat import rendering_key
from gapo_jax.data.row_stream import RowStream
from gapo_jax.data.row_table import (
    Facts,
    Reading,
    RowTable,
    text_encoder,
    token_encoder,
    write_table,
)
from gapo_jax.data.schemas import recognise, unused_text
from gapo_jax.data.sources import MINED
from gapo_jax.data.training_rows import Want, kind_of
from gapo_jax.methods import METHODS, Method, batches_of, method_of, sides_of
from gapo_jax.rng import Stream, stream
from gapo_jax.section import nearest
from gapo_jax.train.build import Models

log = logging.getLogger("gapo_jax")
ROWS, LEFT_OUT, FOLDER = "row_tables.jsonl", "left_out.txt", "rows"
_VERSION = 1  # of what a table holds
_PEEKED = 100  # rows that are looked at before a model is loaded
_BLOCK = 2048  # examples of a stream that are encoded, and put into another order, at once


_LIKELIHOOD = ("nll_loss", "perplexity", "mean_token_accuracy")
_ORDER = ("preference_accuracy", "preference_margin")
_SIDES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
# What `row_evaluation` measures on held-out rows.
MEASURES: dict[Want, tuple[str, ...]] = {
    "demonstrations": _LIKELIHOOD,
    "pairs": (*_ORDER, "rewards/accuracies", *_SIDES, *_LIKELIHOOD),
    "scored": (*_ORDER, "rewards/accuracies", *_SIDES, *_LIKELIHOOD),
    "labelled": (*_ORDER, *_SIDES, *_LIKELIHOOD),
    "comparisons": (*_ORDER, "accuracy"),
}


@dataclasses.dataclass(frozen=True)
class OwnRows:
    """The rows of a run.

    Attributes:
        want: what the method learns from.
        table: of the source; `train`, `development`: its rows that are learned from, and those that
            choose the best policy (int64 places).
        heldout_table, heldout: the rows that are reported.
        max_tokens: of a side.
        stream: the blocks of the source, where they are read while it is trained on; `table` is
            then the first of them.
    """

    want: Want
    table: RowTable
    train: np.ndarray
    development: np.ndarray
    heldout_table: RowTable
    heldout: np.ndarray
    max_tokens: int = 0
    stream: RowStream | None = None

    @property
    def set_aside(self) -> np.ndarray:
        """The hashes of the prompts of the rows that are not learned from."""
        parts = [self.table.prompts[self.development], self.heldout_table.prompts[self.heldout]]
        return np.concatenate(parts)


def reads_rows(config: Config, workdir: Path | None = None) -> bool:
    """Return whether a run learns from the rows of `config.data.source` directly: an offline method
    with a source that is no folder of mined pairs."""
    source = config.data.source
    if not source or method_of(config).loop != "offline":
        return False
    if workdir is not None and (workdir / ROWS).exists():
        return True
    return not (Path(source) / MINED["train"]).exists()


def wanted(config: Config) -> Want:
    """Return what the method learns from.

    Raises:
        ValueError: it cannot learn from rows; says what it reads instead.
    """
    method = method_of(config)
    if method.trains == "discriminator":
        return "comparisons"
    if batches_of(config) != "examples" or method.layout == "conditions":
        raise ValueError(
            f"config.method={method.name!r} learns from preferential prompts: mine them by "
            f"`scripts/build_data.py mine --source {config.data.source} --out DIR` and set "
            "config.data.source=DIR, or take one of the methods "
            f"{[m.name for m in METHODS.values() if m.batches in ('examples', 'texts')]}"
        )
    if method.layout == "accepted":
        return "demonstrations"
    if method.layout == "halves":
        return "labelled"
    return "scored" if "scored" in method.rows else "pairs"


def check_rows(config: Config) -> None:
    """Look at the first rows of the sources: can the method learn from them? Needs no model.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: it cannot be read, or its rows are of other kinds than the method needs.
    """
    want, data = wanted(config), config.data
    best, measures = config.checkpoint.best, MEASURES[want]
    if best and best.removeprefix("eval/") not in measures:
        raise ValueError(
            f"config.checkpoint.best cannot be {best!r}"
            + nearest(best, [f"eval/{name}" for name in measures])
        )
    if want == "scored" and getattr(config.rpo, "reward", "") == "discriminator":
        raise ValueError(
            "config.rpo.reward='discriminator' warms up on preferential pairs, which "
            f"config.data.source={data.source} does not have; leave it at 'verifiers', and the "
            "scores of the rows are the rewards"
        )
    for key in ("source", "heldout_source"):
        if source := getattr(data, key):
            _check_kinds(config, key, source)


def _check_kinds(config: Config, key: str, source: str) -> None:
    method, kinds, problem = method_of(config), set(), ""
    for number, record in itertools.islice(_rows(config, source, streaming=True), _PEEKED):
        try:
            if isinstance(record, str):
                raise ValueError(record)
            kinds.add(kind_of(record, recognise(record)))
        except ValueError as error:
            problem = problem or f"{tables.unit(source)} {number}: {error}"
    if not kinds:
        raise ValueError(f"config.data.{key}={source} has no row that can be read; {problem}")
    usable = kinds & set(method.rows)
    if not usable:
        raise ValueError(
            f"config.method={method.name!r} learns from {_listed(method.rows)}, but "
            f"config.data.{key}={source} has {_listed(sorted(kinds))}. {_way_out(method, kinds)}"
        )
    if config.discriminator.loss == "bradley_terry" and usable == {"labelled"}:
        if method.trains == "discriminator":
            raise ValueError(
                "config.discriminator.loss='bradley_terry' compares two texts, but "
                f"config.data.{key}={source} has labelled rows; set it to 'bce'"
            )


def _listed(kinds: Sequence[str]) -> str:
    return " or ".join(kinds)


def _way_out(method: Method, kinds: set[Any]) -> str:
    """Return which fields the method reads, and which methods could use these rows."""
    fields = {
        "demonstrations": "prompt and completion, or messages",
        "pairs": "chosen and rejected",
        "labelled": "a response and a label",
        "scored": "responses and scores",
        "preferential prompts": "prompt_accepted, prompt_rejected and response",
    }
    need = "; ".join(fields[kind] for kind in method.rows if kind in fields)
    others = [m.name for m in METHODS.values() if m.loop == "offline" and kinds & set(m.rows)]
    usable = [name for name in others if METHODS[name].batches in ("examples", "texts")]
    return f"It needs the fields {need}" + (f"; these rows suit {', '.join(usable)}" * bool(usable))


def _rows(config: Config, source: str, *, streaming: bool = False) -> Iterator[tables.NumberedRow]:
    """Yield the rows of a source with their numbers."""
    data = config.data
    name = data.subset or None
    return tables.iter_rows(source, name=name, split=data.split, streaming=streaming)


def reading_of(config: Config, models: Models) -> Reading:
    """Return how the rows of a run are read."""
    want = wanted(config)
    return Reading(
        want=want,
        train_on=config.data.train_on,
        sides=sides_of(config) if want == "scored" else 2,
        max_tokens=min(config.data.max_tokens, models.decoder.config.max_positions),
    )


def open_rows(config: Config, models: Models, workdir: Path) -> OwnRows:
    """Encode the rows of a run, or find them encoded; split them and say what is left out.

    Raises:
        FileNotFoundError, ValueError: a source cannot be read, has changed since the run began, or
            gives too few rows.
    """
    reading = reading_of(config, models)
    known = io.read_jsonl(workdir / ROWS)[0]["tables"] if (workdir / ROWS).exists() else {}
    opened: dict[str, RowTable] = {}
    blocks = None
    if config.data.streaming:
        blocks = _stream(config, models, workdir, reading)
        opened["source"] = blocks.block(0)
    for key in ("source", "heldout_source"):
        if key not in opened and (source := getattr(config.data, key)):
            opened[key] = _table(config, models, workdir, reading, source, known.get(source))
    rows = _split(config, reading.want, opened["source"], opened.get("heldout_source"))
    rows = dataclasses.replace(rows, max_tokens=reading.max_tokens, stream=blocks)
    _check_size(config, rows)
    names = {getattr(config.data, key): table.path.name for key, table in opened.items()}
    if blocks is not None:  # which are found by their numbers
        del names[config.data.source]
    record = {
        "method": config.method,
        "want": reading.want,
        "tables": names,
        "facts": {key: dataclasses.asdict(table.facts) for key, table in opened.items()},
        "rows": {
            "train": len(rows.train),
            "development": len(rows.development),
            "heldout": len(rows.heldout),
        },
        "chat_template_kwargs": config.data.template_variables(),
    }
    io.write_jsonl(workdir / ROWS, [record])
    _name_left_out(workdir, list(opened.values()))
    return rows


def _stream(config: Config, models: Models, workdir: Path, reading: Reading) -> RowStream:
    """Return the source of a run as a stream of blocks in the workdir."""
    source, folder = config.data.source, workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    unit, texts = tables.unit(source), reading.want == "comparisons"
    return RowStream(
        functools.partial(_rows, config, source, streaming=True),
        reading,
        text_encoder if texts else token_encoder(models.tokenizer, reading),
        lambda n: f"{source}, {unit} {n}",
        folder,
        max(_BLOCK, config.offline.steps_per_round * config.offline.batch_size),
    )


def _table(
    config: Config,
    models: Models,
    workdir: Path,
    reading: Reading,
    source: str,
    known: str | None,
) -> RowTable:
    """Return the table of a source, made where it is not there; `known` is its name in a run that
    is continued."""
    folder = Path(config.data.cache) if config.data.cache else workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    texts = reading.want == "comparisons"
    try:
        content = tables.content_key(
            source, name=config.data.subset or None, split=config.data.split
        )
    except FileNotFoundError:
        if known is None or not (folder / f"{known}.json").exists():
            raise
        return RowTable(folder / known)
    parts = [_VERSION, content, reading, "" if texts else rendering_key(models.tokenizer)]
    name = hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
    if known is not None and name != known:
        raise ValueError(
            f"config.data.source={source}, or the tokenizer, is not what this run began with; "
            "restore it, or start afresh with another --workdir"
        )
    path = folder / name
    if not path.with_suffix(".json").exists():
        log.info("encoding the rows of %s", source)
        encoder = text_encoder if texts else token_encoder(models.tokenizer, reading)
        unit = tables.unit(source)
        rows = _rows(config, source)
        write_table(path, rows, reading, encoder, lambda n: f"{source}, {unit} {n}")
    return RowTable(path)


def split_by_prompt(
    prompts: np.ndarray, counts: Sequence[int], rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the places of the rows of each part, and those of all others last.

    Rows of one prompt stay together. A part has at most its count of rows; where there is a count
    and no prompt has so few rows, it gets those of the prompt with the fewest, unless they are half
    of all.

    Args:
        prompts: int64 [n], the hash of the prompt of each row.
        counts: rows wanted of each part.
        rng: draws which prompts they are.
    """
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    order, part_of = rng.permutation(len(sizes)), np.full(len(sizes), len(counts))
    for part, count in enumerate(counts):
        free = order[part_of[order] == len(counts)]
        taken = free[np.cumsum(sizes[free]) <= count]
        if count and not len(taken) and len(free):
            least = free[np.argmin(sizes[free])]
            taken = np.array([least] if 2 * sizes[least] < len(prompts) else [], int)
        part_of[taken] = part
    return [np.flatnonzero(part_of[group] == part) for part in range(len(counts) + 1)]


def _split(config: Config, want: Want, table: RowTable, heldout_table: RowTable | None) -> OwnRows:
    data, rng = config.data, stream(config.seed, Stream.HELDOUT_ROWS)
    count = min(data.heldout_rows, max(1, round(data.heldout_fraction * len(table))))
    count *= bool(data.heldout_fraction)
    counts = [0 if heldout_table else count, count if config.checkpoint.best else 0]
    heldout, development, train = split_by_prompt(table.prompts, counts, rng)
    if heldout_table is not None:
        limit = [data.heldout_rows]
        heldout, rest = split_by_prompt(heldout_table.prompts, limit, rng)
        heldout = heldout if len(heldout) else rest[: data.heldout_rows]
        train = train[~np.isin(table.prompts[train], heldout_table.prompts[heldout])]
    return OwnRows(want, table, train, development, heldout_table or table, heldout)


def _check_size(config: Config, rows: OwnRows) -> None:
    """Raise ValueError where too little is left to learn from."""
    facts, size = rows.table.facts, config.offline.batch_size
    # KTO puts a prompt beside the response of another row.
    if len(rows.train) < (2 if rows.want == "labelled" else 1):
        why = f" (such as {facts.reasons[0]})" if facts.reasons else ""
        raise ValueError(
            f"config.data.source={config.data.source} gives config.method={config.method!r} "
            f"{len(rows.train)} examples: of {facts.rows} rows {facts.left_out} are left out{why} "
            f"and {len(rows.heldout)} held out; give others, or more rows"
        )
    if len(rows.train) < size and method_of(config).trains == "policy":
        log.warning(
            "a batch of config.offline.batch_size=%d holds each of %d examples more than once",
            size, len(rows.train),
        )  # fmt: skip
    if rows.want == "labelled" and len(facts.labels) == 1:
        raise ValueError(
            f"every label of config.data.source={config.data.source} is {next(iter(facts.labels))},"
            f" and config.method={config.method!r} needs both"
        )
    if rows.want == "labelled":
        _warn_of_imbalance(config, facts.labels)
    if config.checkpoint.best and not len(rows.development):
        raise ValueError(
            f"config.checkpoint.best={config.checkpoint.best!r} needs development rows, and there "
            "are none; raise config.data.heldout_fraction, or give more rows"
        )


def _warn_of_imbalance(config: Config, labels: Mapping[str, int]) -> None:
    """Say so where good and bad rows do not weigh about the same (arXiv 2402.01306, section 4)."""
    kto = config.kto
    good, bad = kto.desirable_weight * labels["true"], kto.undesirable_weight * labels["false"]
    if not 1 <= good / bad <= 4 / 3:
        log.warning(
            "%d good rows stand against %d bad ones: with config.kto.desirable_weight=%.3g their "
            "weights would be alike",
            labels["true"], labels["false"], bad / labels["true"],
        )  # fmt: skip


def name_streamed(workdir: Path, rows: OwnRows) -> None:
    """Write the rows that a stream has left out so far into the workdir."""
    if rows.stream is not None and (text := rows.stream.left_out()):
        io.write_text(workdir / LEFT_OUT, text)


def _name_left_out(workdir: Path, opened: Sequence[RowTable]) -> None:
    """Write the rows that are left out into the workdir; say how many, and what is not read."""
    texts = [table.path.with_suffix(".txt").read_text(encoding="utf-8") for table in opened]
    if any(texts):
        io.write_text(workdir / LEFT_OUT, "".join(texts))
    for table in opened:
        facts: Facts = table.facts
        if facts.left_out:
            log.warning(
                "%d of %d rows are left out, such as %s; all are named in %s",
                facts.left_out, facts.rows, facts.reasons[0], workdir / LEFT_OUT,
            )  # fmt: skip
        if facts.last_only:
            log.warning(
                "of %d dialogues the last answer alone is trained on: the chat template rewrites "
                "earlier turns (config.data.train_on='last' does that everywhere)",
                facts.last_only,
            )
        if facts.unused:
            log.warning("%s", unused_text(facts.unused))
