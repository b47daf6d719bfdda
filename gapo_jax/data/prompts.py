"""Compose prompts of a task and one or more constraints, balanced over constraint types."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from gapo_jax import constraints
from gapo_jax.constraints.template import compose_prompt
from gapo_jax.data.groups import compatible, task_text
from gapo_jax.data.tasks import Task
from gapo_jax.types import Constraint, PromptRow

_ATTEMPTS = 8
_WORDS_A_SENTENCE = 6  # fewer than this many words a sentence is asking too much of a small model


def _bound(chosen: Sequence[Constraint], type_id: str, field: str, relation: str) -> int | None:
    for constraint in chosen:
        if constraint.id == type_id and constraint.kwargs.get("relation") == relation:
            return int(constraint.kwargs[field])
    return None


def feasible(chosen: Sequence[Constraint], max_words: int | None = None) -> bool:
    """Return whether constraints are compatible and their numbers leave room for an answer.

    "Less than 10 words" leaves none beside "at least 4 sentences" or 4 bullets, and "at least 60
    words" leaves none if answers are limited to fewer (`max_words`).
    """
    if not compatible(chosen):
        return False
    wanted = _bound(chosen, "length_constraints:number_words", "num_words", "at least")
    if max_words is not None and wanted is not None and wanted > max_words:
        return False
    most = _bound(chosen, "length_constraints:number_words", "num_words", "less than")
    least = _bound(chosen, "length_constraints:number_sentences", "num_sentences", "at least") or 1
    for constraint in chosen:
        if constraint.id == "detectable_format:number_bullet_lists":
            least = max(least, int(constraint.kwargs["num_bullets"]))
    return most is None or most >= _WORDS_A_SENTENCE * least


def _words(task: Task | str, words: Mapping[str, Sequence[str]]) -> list[str]:
    """Return keyword candidates for a task: what was given for it, else its topic's own words."""
    text = task_text(task)
    given = words.get(text, () if isinstance(task, str) else task.words)
    asked = text.lower()
    return [word for word in given if word.lower() not in asked]


def _choose(
    task: Task | str,
    names: Sequence[str],
    size: int,
    rng: np.random.Generator,
    words: Sequence[str],
    max_words: int | None,
) -> tuple[Constraint, ...]:
    """Draw `size` constraints of the types that come first in `names` and go together."""
    chosen: tuple[Constraint, ...] = ()
    for name in names:
        for _ in range(_ATTEMPTS):
            drawn = constraints.trainable(name).sample(rng, words=words, task=task_text(task))
            if drawn is not None and feasible((*chosen, drawn), max_words):
                chosen = (*chosen, drawn)
                break
        if len(chosen) == size:
            break
    return chosen


def make_prompts(
    tasks: Sequence[Task | str],
    type_ids: Sequence[str],
    n: int,
    rng: np.random.Generator,
    phrasing: str = "train",
    max_constraints: int = 2,
    words: Mapping[str, Sequence[str]] | None = None,
    max_words: int | None = None,
) -> list[PromptRow]:
    """Compose prompts of a task and 1 to `max_constraints` constraints that go together.

    Args:
        tasks: tasks to ask, each equally often.
        type_ids: constraint types, ids or short names, each as often as conflicts allow.
        n: number of prompts.
        rng: numpy generator.
        phrasing: "train" or "heldout" wordings of the constraints.
        max_constraints: the number of constraints is uniform in 1 to this.
        words: keyword candidates by the task's text; a Task has words of its own.
        max_words: no prompt asks for more words; give about 0.75 of the number of new tokens.

    Returns:
        n rows with keys that name the split and the position; ValueError without tasks or types.
    """
    type_ids = constraints.resolve(type_ids)
    if not tasks or not type_ids:
        raise ValueError(f"got {len(tasks)} tasks and {len(type_ids)} types: needs 1 of each")
    used: collections.Counter[str] = collections.Counter()
    order: list[int] = []
    rows: list[PromptRow] = []
    seen: set[str] = set()
    for index in range(n):
        if not order:
            order = rng.permutation(len(tasks)).tolist()
        task = tasks[order.pop()]
        size = int(rng.integers(1, max_constraints + 1))
        for _ in range(_ATTEMPTS):  # another draw where the very same prompt exists already
            names = [type_ids[i] for i in rng.permutation(len(type_ids))]
            names.sort(key=lambda name: used[name])
            chosen = _choose(task, names, size, rng, _words(task, words or {}), max_words)
            prompt = compose_prompt(task_text(task), chosen, rng, phrasing=phrasing)
            if prompt not in seen:
                break
        seen.add(prompt)
        used.update(constraint.id for constraint in chosen)
        rows.append(PromptRow(f"{_split(task)}-{index:04d}", prompt, task_text(task), chosen))
    return rows


def _split(task: Task | str) -> str:
    return "task" if isinstance(task, str) else task.split
