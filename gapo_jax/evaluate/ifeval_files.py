"""Result files with exactly the fields and names of the IFEval release.

One JSON object a line: `follow_all_instructions`, `follow_instruction_list`,
`instruction_id_list`, `prompt`, `response`, so that tools made for the release read ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from gapo_jax.evaluate.accuracy import Verdict

FILES = {"strict": "eval_results_strict.jsonl", "loose": "eval_results_loose.jsonl"}


def result_record(verdict: Verdict, mode: Literal["strict", "loose"]) -> dict[str, Any]:
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
    """Write the strict and the loose result file into `folder` (made if need be)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for mode, name in FILES.items():
        lines = [json.dumps(result_record(verdict, mode)) + "\n" for verdict in verdicts]  # type: ignore[arg-type]
        path = folder / name
        path.write_text("".join(lines), encoding="utf-8")
        paths.append(path)
    return paths
