"""Result files with exactly the fields and names of the IFEval release.

One JSON object per line: `follow_all_instructions`, `follow_instruction_list`,
`instruction_id_list`, `prompt`, `response`, so that tools for the release read them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gapo_jax import io
from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.records import JsonObject

# The names that the release writes, by which other tools find them.
FILES = {"strict": "eval_results_strict.jsonl", "loose": "eval_results_loose.jsonl"}


def result_record(verdict: Verdict, mode: Literal["strict", "loose"]) -> JsonObject:
    """Return one verdict in the fields of the IFEval release."""
    followed = list(verdict.strict if mode == "strict" else verdict.loose)
    return {
        "follow_all_instructions": all(followed),
        "follow_instruction_list": followed,
        "instruction_id_list": list(verdict.ids),
        "prompt": verdict.prompt,
        "response": verdict.response,
    }


def write_results(folder: str | Path, verdicts: Sequence[Verdict]) -> list[Path]:
    """Write the strict and the loose result file into `folder`, which is made if missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for mode, name in FILES.items():
        path = folder / name
        io.write_jsonl(path, (result_record(verdict, mode) for verdict in verdicts))  # type: ignore[arg-type]
        paths.append(path)
    return paths


_FIELDS = {
    "prompt": str,
    "response": str,
    "instruction_id_list": list,
    "follow_instruction_list": list,
}


def _read(path: Path) -> list[JsonObject]:
    rows = []
    for number, record in io.iter_jsonl(path):
        odd = [name for name, kind in _FIELDS.items() if not isinstance(record.get(name), kind)]
        if odd:
            raise ValueError(
                f"{path}, line {number}: expected the fields of the IFEval release, two texts and"
                f" two lists; missing or of another kind: {odd}. Give a folder of evaluate.py"
            )
        rows.append(record)
    return rows


def read_results(folder: str | Path) -> list[Verdict]:
    """Read the strict and the loose result file of a folder, written here or by the release.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line that is no result, or prompts and responses that differ between the two
            files.
    """
    sides = [_read(Path(folder) / name) for name in FILES.values()]
    # The files are written one after the other; a kill between them leaves two runs mixed.
    same = [[(r["prompt"], r["response"]) for r in side] for side in sides]
    if same[0] != same[1]:
        raise ValueError(
            f"{folder}: expected the same rows in {FILES['strict']} and {FILES['loose']}, which"
            " hold different rows; run evaluate.py again"
        )
    return [
        Verdict(
            # The files of the release have no key.
            key="",
            prompt=strict["prompt"],
            response=strict["response"],
            ids=tuple(strict["instruction_id_list"]),
            strict=tuple(strict["follow_instruction_list"]),
            loose=tuple(loose["follow_instruction_list"]),
        )
        for strict, loose in zip(*sides, strict=True)
    ]
