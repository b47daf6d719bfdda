"""A reward function in the convention of TRL: the share of a row's constraints that hold.

    from gapo_jax.constraints import reward
    GRPOTrainer(model=..., reward_funcs=[reward], train_dataset=ifeval_rows, ...)

It needs no JAX. `rows.py` lists the columns that say what to verify.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from gapo_jax.constraints import rows
from gapo_jax.constraints.verifiers import make_request, verify_response

log = logging.getLogger("gapo_jax")


def _text(value: object) -> str:
    """Return a prompt or a completion as text; of messages, the last one."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[-1] if value else ""
    return rows.message_text(value.get("content") if isinstance(value, Mapping) else value)


def reward(
    prompts: Sequence[object], completions: Sequence[object], **columns: object
) -> list[float | None]:
    """Return for each completion the share of its constraints that hold, strict, from 0 to 1.

    Args:
      prompts: texts, or lists of messages.
      completions: texts, or lists of messages, of which the last one counts.
      columns: the columns of the rows, a list each; other keywords of the trainer are ignored.

    Returns:
      One float per completion. None, which leaves this reward out in TRL, for a row that asks for
      no constraint or whose constraints are invalid (the first reason is logged).

    Raises:
      ValueError: numbers of prompts and completions differ, or there is no column to verify.
    """
    if len(prompts) != len(completions):
        raise ValueError(
            f"reward: expected one completion per prompt, got {len(prompts)} prompts and"
            f" {len(completions)} completions"
        )
    # TRL passes more than columns: the state of the trainer, functions to log with.
    lists = {
        name: column
        for name, column in columns.items()
        if isinstance(column, Sequence)
        and not isinstance(column, str)
        and len(column) == len(completions)
    }
    # A misnamed column is an error of the set-up. As None for each row it would train on nothing.
    if completions and not set(rows.COLUMNS) & set(lists):
        raise ValueError(
            f"reward: expected one of the columns {rows.COLUMNS}, which say what to verify, got"
            f" {sorted(columns)}; add one to the dataset"
        )
    rewards: list[float | None] = []
    problems: list[str] = []
    for index, completion in enumerate(completions):
        try:
            asked = rows.constraints_of({name: column[index] for name, column in lists.items()})
            request = make_request(_text(completion), asked, _text(prompts[index]))
            verdicts = verify_response(request)
            if verdicts.error is not None:
                raise verdicts.error
        # None and not 0: the row is at fault, and a punished completion would learn from that.
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"row {index} of the batch: {error}")
            rewards.append(None)
        else:
            rewards.append(sum(verdicts.strict) / len(asked) if asked else None)
    if problems:
        log.warning("reward: %d rows cannot be verified; %s", len(problems), problems[0])
    return rewards
