"""Prompts to measure on that the user gives (`config.eval.prompts`), beside the sets of the run.

They may ask for any constraint that can be verified, those of IFBench included, which no training
prompt may have. What is taken of the source is copied into the workdir, so that a continued run
does not need it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gapo_jax.config import Config, system_text
from gapo_jax.data.sources import read_prompts, scan_prompts, write_prompts
from gapo_jax.evaluate.console import GIVEN
from gapo_jax.rollout.generate import prompt_width
from gapo_jax.train.build import Models
from gapo_jax.train.datasets.rows import reads_rows
from gapo_jax.train.datasets.self_generated import (
    Prompts,
    load_plugins,
    name_left_out,
    split_by_length,
)
from gapo_jax.types import PromptRow

_FILE, _LEFT_OUT = "prompts_given.jsonl", "left_out_given.txt"


def read_given(config: Config, workdir: Path) -> tuple[list[PromptRow], list[str]]:
    """Return the rows of `config.eval.prompts`, or what the run took of them, and why others are
    left out; needs no model.

    Raises:
        FileNotFoundError, ValueError: the source cannot be read, no row of it can be verified, or
            the run verifies no responses.
    """
    load_plugins(config)
    if not config.eval.prompts:
        return [], []
    if reads_rows(config, workdir):
        raise ValueError(
            f"config.eval.prompts={config.eval.prompts} is measured by runs that verify responses, "
            f"but config.method={config.method!r} learns from the rows of config.data.source and "
            "measures held-out rows; leave it out, and evaluate the export: `python "
            "scripts/evaluate.py --prompts F --model DIR --out DIR`"
        )
    if (workdir / _FILE).exists():
        return read_prompts(workdir / _FILE), []
    rows, problems = scan_prompts(config.eval.prompts)
    if not rows:
        first = f"; the first of {len(problems)}: {problems[0]}" if problems else ""
        raise ValueError(
            f"config.eval.prompts={config.eval.prompts} has no prompt that can be verified; wanted "
            f"rows with prompt, instruction_id_list and kwargs{first}"
        )
    return rows, problems


def with_given(config: Config, models: Models, workdir: Path, prompts: Prompts) -> Prompts:
    """Return the prompts of a run with those of `config.eval.prompts` as its last held-out set.

    Rows that cannot be verified, or are longer than `config.data.max_prompt_tokens`, are named in
    `left_out_given.txt` of the workdir.

    Raises:
        FileNotFoundError, ValueError: as `read_given`; or every prompt is too long.
    """
    rows, problems = read_given(config, workdir)
    if not rows:
        return prompts
    limit = config.data.max_prompt_tokens
    if not (workdir / _FILE).exists():
        total = len(rows) + len(problems)
        rows, long = split_by_length(config, models, rows)
        problems += [
            f"{config.eval.prompts}, key {row.key}: {length} tokens" for row, length in long
        ]
        if not rows:
            raise ValueError(
                f"config.eval.prompts={config.eval.prompts} has no prompt of at most "
                f"config.data.max_prompt_tokens={limit} tokens: the shortest has "
                f"{min(length for _, length in long)}; raise the limit"
            )
        name_left_out(workdir / _LEFT_OUT, problems, total, "rows of config.eval.prompts")
        write_prompts(workdir / _FILE, rows)
    texts = [row.prompt for row in rows]
    width = prompt_width(models.tokenizer, texts, system_text(config), limit)
    return dataclasses.replace(
        prompts, heldout=prompts.heldout | {GIVEN: rows}, width=max(prompts.width, width)
    )
