"""Responses from a file, matched to the prompts that they answer."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from gapo_jax.constraints.rows import prompt_text
from gapo_jax.data import tables


def _scan(path: str | Path) -> tuple[list[tuple[int, str, str]], list[str]]:
    """Return (number, prompt, response) of each row, and one line for each row that is neither."""
    answers, problems = [], []
    for number, record in tables.iter_rows(path):
        try:
            if isinstance(record, str):
                raise ValueError(record)
            if not isinstance(record.get("response"), str):
                raise ValueError(
                    f"expected the texts 'prompt' and 'response', got the fields {sorted(record)}"
                )
            answers.append((number, prompt_text(record), record["response"]))
        except ValueError as error:
            problems.append(f"{path}, {tables.unit(path)} {number}: {error}")
    return answers, problems


def match_responses(
    path: str | Path,
    prompts: Sequence[str],
    left_out: Callable[[], Collection[str]] = tuple,
) -> tuple[list[list[str]], list[str]]:
    """Read the responses to `prompts` from the {"prompt", "response"} rows of a file.

    They are matched by the prompt's text, without regard to white space around it. Several
    responses to one prompt are samples of it; if a prompt occurs in several rows, its responses are
    shared out in file order, an equal number to each.

    Args:
        path: file of the responses.
        prompts: the prompts that were asked.
        left_out: returns further prompts, whose responses are passed over in silence; called only
            where a response answers none of `prompts`.

    Returns:
        The responses to each prompt (possibly none), and one line for each row of the file that
        cannot be used (malformed, or it answers no prompt) and for each prompt without a response.

    Raises:
        ValueError: the responses to a prompt cannot be shared out.
    """
    rows, problems = _scan(path)
    # Exact texts take precedence, so that prompts that differ in white space alone stay apart; of
    # several that look alike without it, the first one counts.
    asked = {prompt.strip(): prompt for prompt in reversed(prompts)} | {p: p for p in prompts}
    made: dict[str, list[str]] = collections.defaultdict(list)
    strangers: list[tuple[int, str]] = []
    for number, prompt, response in rows:
        key = asked.get(prompt, asked.get(prompt.strip()))
        if key is None:
            strangers.append((number, prompt))
        else:
            made[key].append(response)
    # Reading all prompts again takes time, which nearly no evaluation needs.
    known = {prompt.strip() for prompt in left_out()} if strangers else set()
    problems += [
        f"{path}, {tables.unit(path)} {number}: it answers none of the prompts: {prompt[:80]!r}"
        for number, prompt in strangers
        if prompt.strip() not in known
    ]
    shared, missing = _share(path, prompts, made)
    return shared, problems + missing


def _share(
    path: str | Path, prompts: Sequence[str], made: dict[str, list[str]]
) -> tuple[list[list[str]], list[str]]:
    """Share out the responses among the rows of their prompts; name the prompts without any."""
    times = collections.Counter(prompts)
    taken: collections.Counter[str] = collections.Counter()
    shared, missing = [], []
    for index, prompt in enumerate(prompts):
        responses = made.get(prompt, [])
        each, rest = divmod(len(responses), times[prompt])
        # Any way to share them out would pair some response with the wrong row's key.
        if each and rest:
            raise ValueError(
                f"{path}: expected the same number of responses to each of the {times[prompt]} "
                f"rows of the prompt {prompt[:80]!r}, got {len(responses)} in all; add or remove "
                "responses to it"
            )
        # Fewer responses than rows: one each until they run out.
        start = taken[prompt] * each if each else taken[prompt]
        shared.append(responses[start : start + max(each, 1)])
        taken[prompt] += 1
        if not shared[-1]:
            missing.append(f"{path}: no response for prompt {index + 1}: {prompt[:80]!r}")
    return shared, missing


def all_prompts(source: str | Path, *, name: str | None = None, split: str = "train") -> set[str]:
    """Return the prompts of all rows of a source, those that cannot be verified included."""
    prompts = set()
    for _, record in tables.iter_rows(source, name=name, split=split):
        if not isinstance(record, str):
            try:
                prompts.add(prompt_text(record))
            except ValueError:
                continue
    return prompts
