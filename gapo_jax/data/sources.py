"""Read and write prompt rows and preferential pairs; every error names the file and the line.

Rows of the IFEval release have `key`, `prompt`, `instruction_id_list` and `kwargs` (one dictionary
per instruction, nulls ignored).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gapo_jax import io
from gapo_jax.constraints.rows import constraints_of, prompt_text
from gapo_jax.data import tables
from gapo_jax.data.turns import encodable
from gapo_jax.records import Json, JsonObject
from gapo_jax.types import PreferentialPair, PromptRow

# The files of preferential pairs that scripts/build_data.py writes into a folder.
MINED = {"train": "pairs.jsonl", "test": "pairs_test.jsonl"}


def is_mined(source: str | Path) -> bool:
    """Return whether a source is a folder of preferential pairs."""
    return any((Path(source) / name).is_file() for name in MINED.values())


def _string(record: Json, name: str) -> str:
    text = record.get(name)
    if not isinstance(text, str):
        raise ValueError(f"wanted a string under {name!r}, got {text!r}")
    return encodable(text, name)


def prompt_row(record: Json, default_key: str = "") -> PromptRow:
    """Turn a row that asks for constraints, in any form of `constraints/rows.py`, into a PromptRow.

    An IFEval row has task and constraints in one text, so its task is the whole prompt.

    Raises:
        ValueError: for a missing field, an unknown instruction id, invalid arguments.
    """
    prompt = encodable(prompt_text(record), "prompt")
    key = str(default_key if record.get("key") is None else record["key"])
    made = constraints_of(record)
    # A table whose other rows are ours has the column, with a null, for an IFEval row too.
    task = prompt if record.get("constraints") is None else _string(record, "task")
    return PromptRow(key, prompt, task, made)


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


def to_ifeval(row: PromptRow) -> JsonObject:
    """Return a prompt row in the fields of the IFEval release."""
    return {
        "key": row.key,
        "prompt": row.prompt,
        "instruction_id_list": [constraint.id for constraint in row.constraints],
        "kwargs": [dict(constraint.kwargs) for constraint in row.constraints],
    }


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
    by_prompt = {pair.prompt_accepted: pair for pair in pairs}
    return [
        PromptRow(f"{prefix}-{number}", prompt, pair.task, pair.accepted)
        for number, (prompt, pair) in enumerate(by_prompt.items(), 1)
    ]


def write_pairs(path: str | Path, pairs: Iterable[PreferentialPair]) -> int:
    """Write preferential pairs as JSONL; return their number."""
    return io.write_jsonl(path, (pair.to_json() for pair in pairs))
