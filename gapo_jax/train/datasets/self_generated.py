"""The data of a run, made from the starting generator: responses, preferential pairs, prompts.

Nothing is downloaded: the generator answers our own tasks once, the verifiers say which constraints
each answer happens to satisfy (hindsight), and augmentation makes the prompts that it violates.
What was made lies in the workdir, so that a continued run reads it back. With
`config.data.source` all this comes from the user's own data instead (`user.py`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gapo_jax import constraints, io
from gapo_jax.config import Config, system_text
from gapo_jax.constraints.visibility import check_visibility, enforce
from gapo_jax.data.curriculum import easiest_first
from gapo_jax.data.discriminator_text import pair_ids
from gapo_jax.data.preferences import response_pairs
from gapo_jax.data.preferential import build_pairs
from gapo_jax.data.prompts import make_prompts
from gapo_jax.data.sources import is_mined, read_pairs, write_pairs
from gapo_jax.data.tasks import Split, Task, tasks
from gapo_jax.evaluate.exploits import trip_wires
from gapo_jax.io import read_jsonl, write_jsonl
from gapo_jax.methods import asks_discriminator, method_of, needs_pairs
from gapo_jax.rng import Stream, row_keys, stream
from gapo_jax.rollout.generate import ended_rows, generate, prompt_lengths, prompt_width
from gapo_jax.rollout.stops import stop_strings
from gapo_jax.train.build import Models
from gapo_jax.train.datasets.rows import reads_rows
from gapo_jax.types import Preference, PreferentialPair, PromptRow, Rollout

log = logging.getLogger("gapo_jax")
PAIRS = {"train": "pairs.jsonl", "test": "pairs_heldout.jsonl"}  # of a workdir
Answer = tuple[Task, str]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of a run.

    Attributes:
        type_ids: the constraint types in use.
        train: to learn on.
        heldout: to measure on, by the name of the set.
        bootstrap: whose answers become pairs; none where nothing learns from pairs.
        width: P of all of them, so that one sampler serves all.
        train_width: P of `train` alone.
        rewarded: held-out prompts without constraints, whose responses the reward sources measure.
    """

    type_ids: tuple[str, ...]
    train: list[PromptRow]
    heldout: dict[str, list[PromptRow]]
    bootstrap: list[PromptRow]
    width: int
    train_width: int
    rewarded: list[PromptRow] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Preferential pairs, the easy ones first if there is a curriculum.

    Attributes:
        train: to learn from.
        heldout: to measure the discriminator on.
        compared: `train` as the discriminator reads them (`data.preference`).
    """

    train: list[PreferentialPair]
    heldout: list[PreferentialPair]
    compared: Sequence[Preference]


# Of a run that has neither.
NO_PROMPTS = Prompts((), [], {}, [], 0, 0)
NO_PAIRS = Pairs([], [], [])


def takes_mined_pairs(config: Config, workdir: Path | None = None) -> bool:
    """Return whether the prompts of a run come from a folder of mined pairs, or have been taken
    from one into its workdir."""
    taken = workdir is not None and (workdir / PAIRS["train"]).exists()
    return bool(config.data.source) and (taken or is_mined(config.data.source))


def reads_discriminator(config: Config, workdir: Path | None = None) -> bool:
    """Return whether anything in a run asks its discriminator or that one's tokenizer."""
    if reads_rows(config, workdir):
        return method_of(config).trains == "discriminator"
    asked = needs_pairs(config) or asks_discriminator(config)
    return asked or takes_mined_pairs(config, workdir)


def load_plugins(config: Config) -> None:
    """Load the constraint types of one's own.

    Raises:
        ValueError, FileNotFoundError: one of the files cannot be loaded.
    """
    for path in config.data.plugins:
        constraints.load_plugin(path)


def training_types(config: Config) -> tuple[str, ...]:
    """Return the ids of `config.data.types`, with the plug-ins loaded; needs no model.

    Raises:
        ValueError, FileNotFoundError: an unknown type, types of IFBench, a plug-in that cannot be
            loaded; or, without `config.data.source`, a type that no prompt can be made with.
    """
    load_plugins(config)
    type_ids = constraints.resolve(config.data.types)
    if not config.data.source:
        for type_id in type_ids:
            constraints.trainable(type_id)
    return type_ids


def visible_types(config: Config, models: Models, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return those of the constraint types that the discriminator can see; all where none is
    asked.

    Raises:
        ValueError: with `data.on_invisible="refuse"`, naming the types that it cannot see.
    """
    if not reads_discriminator(config):
        return tuple(wanted)
    limit = config.discriminator.max_tokens

    def encode(prompt: str, response: str) -> list[int]:
        return pair_ids(models.disc_tokenizer, prompt, response, limit)[0]

    words = max_words(config)
    report = check_visibility(wanted, encode, max_length=limit, response_words=words)
    return tuple(enforce(report, on_invisible=config.data.on_invisible))


def max_words(config: Config) -> int:
    """Return how many words an answer can have: English takes 4/3 tokens a word."""
    return config.sampling.max_new_tokens * 3 // 4


def split_by_length(
    config: Config, models: Models, rows: Sequence[PromptRow]
) -> tuple[list[PromptRow], list[tuple[PromptRow, int]]]:
    """Return the prompts of at most `data.max_prompt_tokens` tokens, and the others with their
    lengths."""
    lengths = prompt_lengths(models.tokenizer, [row.asked for row in rows], system_text(config))
    limit, sized = config.data.max_prompt_tokens, list(zip(rows, lengths, strict=True))
    short = [row for row, length in sized if length <= limit]
    return short, [(row, length) for row, length in sized if length > limit]


def name_left_out(path: Path, problems: Sequence[str], total: int, what: str) -> None:
    """Write why rows are left out of `total` into a file, a line each, and say how many."""
    if problems:
        io.write_text(path, "\n".join(problems) + "\n")
        log.warning(
            "%d of %d %s are left out and named in %s; the first: %s",
            len(problems), total, what, path, problems[0],
        )  # fmt: skip


def fitting(
    config: Config, models: Models, rows: list[PromptRow], count: int, name: str
) -> list[PromptRow]:
    """Return the first `count` of the composed prompts that are short enough.

    Raises:
        ValueError: most are too long; gives the lengths and the key to change.
    """
    limit = config.data.max_prompt_tokens
    prompts = [row.prompt for row in rows]
    lengths = prompt_lengths(models.tokenizer, prompts, system_text(config))
    short = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if 2 * len(short) < len(rows):
        raise ValueError(
            f"{len(rows) - len(short)} of {len(rows)} composed prompts ({name}) are longer than "
            f"config.data.max_prompt_tokens={limit}: their median is "
            f"{sorted(lengths)[len(lengths) // 2]} tokens; raise the limit"
        )
    return short[:count]


def make_all_prompts(config: Config, models: Models) -> Prompts:
    """Compose training, held-out and bootstrap prompts; a function of the seed alone.

    Raises:
        ValueError: as `visible_types` and `fitting`.
    """
    type_ids = visible_types(config, models, training_types(config))
    data = config.data

    def make(split: Split, count: int, phrasing: str) -> list[PromptRow]:
        rows = make_prompts(
            tasks(split),
            type_ids,
            count * 3 // 2,
            stream(config.seed, Stream.PROMPTS, split),
            phrasing,
            data.max_constraints,
            max_words=max_words(config),
        )
        return fitting(config, models, rows, count, split)

    train = make("train", data.prompts, "train")
    count = config.eval.prompts_per_set
    heldout = {}
    if config.eval.development_prompts:
        heldout["development"] = make("development", config.eval.development_prompts, "train")
    heldout |= {
        "heldout_topics": make("heldout_topics", count, "train"),
        "heldout_phrasings": make("heldout_phrasings", count, "heldout"),
    }
    if config.eval.trip_wires:
        heldout["trip_wires"] = trip_wires()
    starts = bootstrap_prompts(config, models, type_ids)
    width, train_width = prompt_widths(config, models, train, [*heldout.values(), starts])
    starts = starts if needs_pairs(config) else []
    return Prompts(type_ids, train, heldout, starts, width, train_width)


def prompt_widths(
    config: Config,
    models: Models,
    train: list[PromptRow],
    others: Sequence[list[PromptRow]],
) -> tuple[int, int]:
    """Return (width, train_width) of `Prompts`.

    Raises:
        ValueError: as `prompt_width`.
    """
    limit, system = config.data.max_prompt_tokens, system_text(config)

    def width(rows: list[PromptRow]) -> int:
        return prompt_width(models.tokenizer, [row.asked for row in rows], system, limit)

    trained = width(train)
    return max([trained, *(width(rows) for rows in others if rows)]), trained


def bootstrap_prompts(config: Config, models: Models, type_ids: tuple[str, ...]) -> list[PromptRow]:
    """Return the prompts whose answers become pairs: several for each of some training tasks.

    Half of a task's prompts are bare, half ask for one constraint, so that answers differ in what
    they satisfy.
    """
    data, rng = config.data, stream(config.seed, Stream.BOOTSTRAP_PROMPTS)
    pool = tasks("train")
    count = -(-data.bootstrap_responses // data.responses_per_task)
    chosen = [pool[i] for i in rng.permutation(len(pool))[:count]]
    asked = data.responses_per_task // 2
    rows = make_prompts(
        chosen * asked, type_ids, len(chosen) * asked, rng, "train", 1, max_words=max_words(config)
    )
    rows = fitting(config, models, rows, len(rows), "bootstrap")
    for task in chosen:
        bare = PromptRow(f"bare-{task.text}", task.text, task.text, ())
        rows += [bare] * (data.responses_per_task - asked)
    return rows[: data.bootstrap_responses]


def ended_responses(config: Config, models: Models, rollout: Rollout) -> np.ndarray:
    """Return which responses hold their end-of-sequence token or a stop string, bool [B]."""
    stops = stop_strings(models.tokenizer, config.sampling.stop)
    return ended_rows(rollout, models.decoder.config.eos_ids, stops)


def bootstrap(
    config: Config,
    models: Models,
    prompts: Prompts,
    workdir: Path,
    on_batch: Callable[[int], object] = lambda done: None,
) -> list[tuple[Task, str]]:
    """Return (task, response) of the starting generator, sampled once and kept in the workdir."""
    if not prompts.bootstrap:
        return []
    path = workdir / "bootstrap.jsonl"
    by_text = {task.text: task for task in tasks("train")}
    if not path.exists():
        generated = generate(
            models.sample,
            models.for_sampling(models.ref_params),
            models.tokenizer,
            [row.prompt for row in prompts.bootstrap],
            row_keys(config.seed, Stream.BOOTSTRAP, count=len(prompts.bootstrap)),
            batch_size=config.sampling.batch_size,
            width=prompts.width,
            temperature=config.sampling.temperature,
            system=system_text(config),
            stop=config.sampling.stop,
            on_batch=on_batch,
        )
        ended_B = ended_responses(config, models, generated.rollout)
        records = [
            {"task": row.task, "prompt": row.prompt, "response": text, "ended": bool(ended)}
            for row, text, ended in zip(prompts.bootstrap, generated.texts, ended_B, strict=True)
        ]
        write_jsonl(path, records)
    return [(by_text[record["task"]], record["response"]) for record in read_jsonl(path)]


def split_rows(rows: list[Answer], seed: int) -> tuple[list[Answer], list[Answer]]:
    """Split responses by topic: a tenth of the topics for measuring, the rest for training."""
    topics = sorted({task.topic for task, _ in rows})
    order = stream(seed, Stream.TOPIC_SPLIT).permutation(len(topics))
    held = {topics[i] for i in order[: max(1, len(topics) // 10)]}
    return (
        [row for row in rows if row[0].topic not in held],
        [row for row in rows if row[0].topic in held],
    )


def make_pairs(
    config: Config, type_ids: tuple[str, ...], rows: list[tuple[Task, str]], workdir: Path
) -> Pairs:
    """Return preferential pairs, each proven by the verifiers; kept in the workdir.

    Raises:
        ValueError: no pair could be made of the responses.
    """
    paths = [workdir / name for name in PAIRS.values()]
    if not paths[1].exists():
        halves = split_rows(rows, config.seed)
        counts = config.data.pairs, config.data.pairs_heldout
        for path, half, count, side in zip(paths, halves, counts, PAIRS, strict=True):
            pairs = build_pairs(
                half,
                type_ids=type_ids,
                num_pairs=count,
                rng=stream(config.seed, Stream.PAIRS, side),
                edited_fraction=config.data.edited_fraction,
            )
            write_pairs(path, pairs)
    train, heldout = (read_pairs(path) for path in paths)
    if config.data.curriculum:
        train = easiest_first(train)
    return Pairs(train, heldout, compared_pairs(config, train))


def compared_pairs(config: Config, pairs: list[PreferentialPair]) -> Sequence[Preference]:
    """Return pairs as the discriminator reads them, by `data.preference`.

    Raises:
        ValueError: they cannot be read so.
    """
    if config.data.preference == "prompts":
        return pairs
    compared = response_pairs(pairs)
    if not compared:
        raise ValueError(
            f"none of the {len(pairs)} pairs has a prompt that occurs both accepted and "
            "rejected, as config.data.preference='responses' needs; set it to 'prompts'"
        )
    return compared
