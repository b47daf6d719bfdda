"""Prompts of a user's own, for the online methods: any rows that ask something.

| rows | verified |
|---|---|
| a prompt (a text or a dialogue) with any further columns | no |
| IFEval rows, our own prompt rows, the RLVR sets of AI2 | against their constraints |

The columns of a row go to the reward functions. What is taken of the source is copied into the
workdir, so that a continued run does not need it; what is left out is named in `left_out.txt`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from gapo_jax import constraints, io, rng
from gapo_jax.config import Config
from gapo_jax.constraints.rows import COLUMNS, constraints_of
from gapo_jax.data import tables
from gapo_jax.data.schemas import DIALOGUES, prompt_segments
from gapo_jax.data.turns import Segment
from gapo_jax.methods import method_of, needs_pairs
from gapo_jax.records import Json
from gapo_jax.rewards.functions import RESERVED
from gapo_jax.rng import Stream
from gapo_jax.train.build import Models
from gapo_jax.train.datasets.rows import LEFT_OUT
from gapo_jax.train.datasets.self_generated import (
    Prompts,
    load_plugins,
    name_left_out,
    prompt_widths,
    split_by_length,
    takes_mined_pairs,
)
from gapo_jax.types import Constraint, PromptRow

HELDOUT = "heldout_prompts"
_TRAIN, _HELDOUT = "prompts_train.jsonl", "prompts_heldout.jsonl"
# What a row has beside its prompt and goes to no function, as in TRL.
_NO_COLUMNS = ("prompt", "completion", "completion_ids")


@dataclasses.dataclass(frozen=True)
class UserPrompts:
    """Rows of a source as they were read: to learn on, to measure on, and why others are left
    out."""

    train: list[PromptRow]
    heldout: list[PromptRow]
    problems: list[str]

    @property
    def columns(self) -> list[str]:
        """The columns that functions get."""
        return sorted({name for row in self.train + self.heldout for name in row.columns})


def takes_prompts(config: Config, workdir: Path | None = None) -> bool:
    """Return whether a run answers the prompts of `config.data.source`, and learns from no pairs
    beside them."""
    asking = method_of(config).loop == "online" and bool(config.data.source)
    return asking and not needs_pairs(config) and not takes_mined_pairs(config, workdir)


def read_user_prompts(config: Config, workdir: Path) -> UserPrompts:
    """Return the rows of `config.data.source`, or what an earlier start of the run took of them;
    needs no model.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read, or none of its rows can be used.
    """
    load_plugins(config)
    files = workdir / _TRAIN, workdir / _HELDOUT
    if files[1].exists():
        train, heldout = ([*map(PromptRow.from_json, io.read_jsonl(path))] for path in files)
        return UserPrompts(train, heldout, [])
    data = config.data
    rows, problems = scan_rows(config, data.source)
    if data.heldout_source:
        heldout, more = scan_rows(config, data.heldout_source, heldout=True)
        problems += more
        asked = {_identity(row) for row in heldout}
        train = [row for row in rows if _identity(row) not in asked]
        problems += [
            f"{data.source}, key {row.key}: its prompt is a held-out one"
            for row in rows
            if _identity(row) in asked
        ]
    else:
        train, heldout = split_by_prompt(config, rows)
    return UserPrompts(train, heldout, problems)


def scan_rows(
    config: Config, source: str, heldout: bool = False
) -> tuple[list[PromptRow], list[str]]:
    """Return the rows of a source that can be used, and a line for each of the others.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read, or has no such row.
    """
    data, rows, problems = config.data, [], []
    where = {"name": data.subset or None, "split": data.split} if not heldout else {}
    for number, record in tables.iter_rows(source, **where):
        try:
            if isinstance(record, str):
                raise ValueError(record)
            rows.append(read_row(config, record, str(number), heldout))
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"{source}, {tables.unit(source)} {number}: {error}")
    key = "heldout_source" if heldout else "source"
    if not rows:
        first = f"; the first of {len(problems)}: {problems[0]}" if problems else ""
        raise ValueError(f"config.data.{key}={source} has no prompt to answer{first}")
    return rows, problems


def read_row(config: Config, record: Json, number: str, heldout: bool = False) -> PromptRow:
    """Return a row as a prompt with its constraints and columns.

    Raises:
        ValueError: it asks nothing, or nothing that the reward sources could score.
    """
    turns = prompt_segments(record)
    if taken := sorted(set(RESERVED) & set(record)):
        raise ValueError(
            f"the column {taken[0]!r} has the name of an argument of reward functions; rename it"
        )
    asked = _constraints(config, record)
    if not heldout and (tests := sorted({c.id for c in asked} & set(constraints.types("ifbench")))):
        raise ValueError(
            f"{tests[0]} belongs to IFBench, which measures constraints that training has not seen"
        )
    if not asked and config.reward.asked == ("verifier",):
        raise ValueError(
            f"no constraints (wanted one of the columns {COLUMNS}), and config.reward asks the "
            "verifier only"
        )
    value = record.get("prompt")
    messages = any(record.get(name) is not None for name in DIALOGUES)
    is_dialogue = len(turns) > 1 or (messages if value is None else not isinstance(value, str))
    text = turns[0].text if len(turns) == 1 else _joined(turns)
    own = ({"role": turn.role, "content": turn.text} for turn in turns if is_dialogue)
    columns = {name: value for name, value in record.items() if name not in _NO_COLUMNS}
    return PromptRow(
        key=str(number if record.get("key") is None else record["key"]),
        prompt=text,
        task=text,
        constraints=asked,
        turns=tuple(own),
        # As they will be read back from the workdir.
        columns=json.loads(json.dumps(columns, default=str)),
    )


def _constraints(config: Config, record: Json) -> tuple[Constraint, ...]:
    """Return the constraints of a row, () where it has none."""
    present = [name for name in COLUMNS if record.get(name) is not None]
    # Other sets have an answer there.
    if present == ["ground_truth"] and "instruction_id" not in str(record["ground_truth"]):
        return ()
    try:
        return constraints_of(record) if present else ()
    except ValueError:
        if "verifier" in config.reward.asked:
            raise
        return ()  # whatever the column holds, it is for a function


def _joined(turns: Sequence[Segment]) -> str:
    """Return a dialogue as one text, as verifiers, the discriminator and people read it."""
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in turns)


def _identity(row: PromptRow) -> str:
    return json.dumps([row.prompt, [dict(turn) for turn in row.turns]])


def split_by_prompt(
    config: Config, rows: Sequence[PromptRow]
) -> tuple[list[PromptRow], list[PromptRow]]:
    """Return (to learn on, to measure on): a share of the prompts with all their rows is held out.

    Raises:
        ValueError: there is one prompt only.
    """
    data = config.data
    known = list(dict.fromkeys(map(_identity, rows)))
    if len(known) < 2:
        raise ValueError(
            f"config.data.source={data.source} has one prompt only, and some must be held out: "
            "give config.data.heldout_source"
        )
    count = min(data.heldout_rows, max(1, round(data.heldout_fraction * len(known))))
    order = rng.stream(config.seed, Stream.PROMPTS, HELDOUT).permutation(len(known))
    held = {known[i] for i in order[:count]}
    return (
        [row for row in rows if _identity(row) not in held],
        [row for row in rows if _identity(row) in held],
    )


def user_prompts(config: Config, models: Models, workdir: Path, given: UserPrompts) -> Prompts:
    """Return the rows that are short enough as the prompts of a run; they go into the workdir.

    Raises:
        ValueError: none is.
    """
    train, heldout, problems = given.train, given.heldout, list(given.problems)
    path = workdir / _HELDOUT
    if not path.exists():
        train, long = _short(config, models, train)
        heldout, more = _short(config, models, heldout)
        problems += long + more
        for name, rows in (("prompts", train), ("held-out prompts", heldout)):
            if not rows:
                raise ValueError(
                    f"config.data.source={config.data.source} has no {name} of at most "
                    f"config.data.max_prompt_tokens={config.data.max_prompt_tokens} tokens (the "
                    f"last that is longer: {problems[-1]}); raise it"
                )
        heldout = heldout[: config.data.heldout_rows]
        io.write_jsonl(workdir / _TRAIN, (row.to_json() for row in train))
        io.write_jsonl(path, (row.to_json() for row in heldout))
        total = len(problems) + len(train) + len(heldout)
        name_left_out(workdir / LEFT_OUT, problems, total, "rows")
    type_ids = {constraint.id for row in train for constraint in row.constraints}
    width, train_width = prompt_widths(config, models, train, [heldout])
    verified = [row for row in heldout if row.constraints]
    return Prompts(
        type_ids=tuple(sorted(type_ids)),
        train=train,
        heldout={HELDOUT: verified} if verified else {},
        bootstrap=[],
        width=width,
        train_width=train_width,
        rewarded=[row for row in heldout if not row.constraints],
    )


def _short(
    config: Config, models: Models, rows: Sequence[PromptRow]
) -> tuple[list[PromptRow], list[str]]:
    limit = config.data.max_prompt_tokens
    short, long = split_by_length(config, models, rows)
    return short, [
        f"key {row.key}: {length} tokens, above config.data.max_prompt_tokens={limit}"
        for row, length in long
    ]
