"""Rows in and out of JSONL: IFEval prompts, responses, prompt rows and preferential pairs.

Every error names the file and the line. IFEval rows are those of the public release: `key`,
`prompt`, `instruction_id_list`, `kwargs` (one dictionary for each instruction, nulls ignored).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gapo_jax import constraints, io
from gapo_jax.constraints.ifbench_official import require
from gapo_jax.constraints.official import clean_kwargs
from gapo_jax.data import tables
from gapo_jax.data.turns import encodable
from gapo_jax.types import Constraint, PreferentialPair, PromptRow

# The files of preferential pairs that scripts/build_data.py writes into a folder.
MINED = {"train": "pairs.jsonl", "test": "pairs_test.jsonl"}


def _string(record: Mapping[str, Any], name: str) -> str:
    text = record.get(name)
    if not isinstance(text, str):
        raise ValueError(f"wanted a string under {name!r}, got {text!r}")
    return encodable(text, name)


def _ifeval_constraints(record: Mapping[str, Any]) -> tuple[Constraint, ...]:
    ids = record.get("instruction_id_list")
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise ValueError(f"wanted a list of ids under 'instruction_id_list', got {ids!r}")
    kwargs = record.get("kwargs") or [{} for _ in ids]
    if not isinstance(kwargs, list) or len(kwargs) != len(ids):
        raise ValueError(f"wanted {len(ids)} dictionaries under 'kwargs', got {kwargs!r}")
    made = []
    for name, arguments in zip(ids, kwargs, strict=True):
        if not isinstance(arguments or {}, Mapping):
            raise ValueError(f"wanted a dictionary of arguments for {name}, got {arguments!r}")
        full = constraints.get(name).id  # raises, naming the nearest id that exists
        require(full)
        made.append(Constraint(full, clean_kwargs(full, arguments)))
    return tuple(made)


def prompt_row(record: Mapping[str, Any], default_key: str = "") -> PromptRow:
    """Turn an IFEval row or a row written by `write_prompts` into a PromptRow.

    An IFEval row states task and constraints in one text, so its task is the whole prompt.

    Raises:
        ValueError: for a missing field, an unknown instruction id, kwargs that do not fit.
    """
    prompt = _string(record, "prompt")
    key = str(default_key if record.get("key") is None else record["key"])
    # A table whose other rows are ours has the column, with a null, for an IFEval row too.
    if record.get("constraints") is None:
        return PromptRow(key, prompt, prompt, _ifeval_constraints(record))
    if not isinstance(record["constraints"], list):
        raise ValueError(f"wanted a list under 'constraints', got {record['constraints']!r}")
    made = tuple(Constraint.from_json(item) for item in record["constraints"])
    for constraint in made:
        clean_kwargs(constraints.get(constraint.id).id, constraint.kwargs)
        require(constraint.id)
    return PromptRow(key, prompt, _string(record, "task"), made)


def scan_prompts(
    source: str | Path, *, name: str | None = None, split: str = "train"
) -> tuple[list[PromptRow], list[str]]:
    """Read prompt rows (IFEval rows or our own) from any source that `tables.iter_rows` reads.

    Returns:
        The good rows, and one line for each bad row: its number and the reason.

    Raises:
        FileNotFoundError, ValueError: the source as a whole cannot be read.
    """
    rows, problems = [], []
    for number, record in tables.iter_rows(source, name=name, split=split):
        try:
            if isinstance(record, str):
                raise ValueError(record)
            rows.append(prompt_row(record, default_key=str(number)))
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"{source}, {tables.unit(source)} {number}: {_reason(error)}")
    return rows, problems


def read_prompts(path: str | Path) -> list[PromptRow]:
    """Read prompt rows (IFEval rows or our own) from JSONL; errors name the line."""
    rows, problems = scan_prompts(path)
    if problems:
        more = f" (and {len(problems) - 1} more such rows)" if len(problems) > 1 else ""
        raise ValueError(problems[0] + more)
    if not rows:
        raise ValueError(f"{path} has no prompts: wanted one JSON object a line")
    return rows


def _reason(error: Exception) -> str:
    return f"field {error} is missing" if isinstance(error, KeyError) else str(error)


def write_prompts(path: str | Path, rows: Iterable[PromptRow]) -> int:
    """Write prompt rows as JSONL; return their number."""
    return io.write_jsonl(path, (row.to_json() for row in rows))


def to_ifeval(row: PromptRow) -> dict[str, Any]:
    """Return a prompt row in the fields of the IFEval release."""
    return {
        "key": row.key,
        "prompt": row.prompt,
        "instruction_id_list": [constraint.id for constraint in row.constraints],
        "kwargs": [dict(constraint.kwargs) for constraint in row.constraints],
    }


def scan_responses(
    path: str | Path, prompts: Sequence[str], partial: bool = False
) -> tuple[list[list[str]], list[str]]:
    """Read the responses to `prompts` from {"prompt", "response"} rows of any file.

    They are matched by the prompt's text, as in the IFEval release. Several responses to one prompt
    are samples of it; a prompt that stands in several rows has its responses shared out in file
    order, equally many to each.

    Args:
        path: file of the responses.
        prompts: what was asked.
        partial: leave responses to other prompts aside.

    Returns:
        The responses to each prompt, none where there is none, and one line for each row of the
        file that does not fit and each prompt without a response.

    Raises:
        ValueError: responses that no prompt asked for, a sign of files that do not belong together,
            or that cannot be shared out.
    """
    found, odd = tables.scan_responses(path)
    unit, times = tables.unit(path), collections.Counter(prompts)
    problems = [f"{path}, {unit} {number}: {problem}" for number, problem in odd]
    unused = [number for prompt, made in found.items() if not times[prompt] for number, _ in made]
    if unused and not partial:
        raise ValueError(
            f"{path}: {len(unused)} responses answer no prompt (first: {unit} {min(unused)}); "
            "give the prompts file that they were made for"
        )
    taken: collections.Counter[str] = collections.Counter()
    shared = []
    for index, prompt in enumerate(prompts):
        made = [response for _, response in found.get(prompt, ())]
        each, rest = divmod(len(made), times[prompt])
        if each and rest:
            raise ValueError(
                f"{path}: {len(made)} responses cannot be shared out among the {times[prompt]} "
                f"rows of the prompt {prompt[:80]!r}: give equally many to each"
            )
        start = taken[prompt] * each if each else taken[prompt]
        shared.append(made[start : start + max(each, 1)])
        taken[prompt] += 1
        if not shared[-1]:
            problems.append(f"{path}: no response for prompt {index + 1}: {prompt[:80]!r}")
    return shared, problems


def read_pairs(path: str | Path) -> list[PreferentialPair]:
    """Read preferential pairs from JSONL; errors name the line."""
    pairs = []
    for number, record in io.iter_jsonl(path):
        try:
            pairs.append(PreferentialPair.from_json(record))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {_reason(error)}") from error
    if not pairs:
        raise ValueError(f"{path} has no preferential pairs: wanted one JSON object a line")
    return pairs


def accepted_prompts(pairs: Iterable[PreferentialPair], prefix: str) -> list[PromptRow]:
    """Return the accepted prompts of pairs, each once, as rows to answer; keys are numbered."""
    found = {pair.prompt_accepted: pair for pair in pairs}
    return [
        PromptRow(f"{prefix}-{number}", prompt, pair.task, pair.accepted)
        for number, (prompt, pair) in enumerate(found.items(), 1)
    ]


def write_pairs(path: str | Path, pairs: Iterable[PreferentialPair]) -> int:
    """Write preferential pairs as JSONL; return their number."""
    return io.write_jsonl(path, (pair.to_json() for pair in pairs))
