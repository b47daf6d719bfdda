"""Responses to one task, constraints over them, and the verdicts of each on each.

The raw material of preferential pairs: what the model wrote and rule edits of it, instances of
every constraint type that some of the texts satisfy and others violate, and a table of verdicts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from gapo_jax import constraints
from gapo_jax.constraints.ifeval_edges import END_PHRASES
from gapo_jax.constraints.ifeval_keywords import polarity_twin
from gapo_jax.constraints.ifeval_whole_text import REQUESTS
from gapo_jax.constraints.words import content_words
from gapo_jax.data.edits import EDITABLE, rule_edit
from gapo_jax.data.tasks import Task
from gapo_jax.types import Constraint

POLAR = ("keywords:existence", "keywords:forbidden_words", "keywords:frequency")
_MAX_ORIGINALS = 6  # responses to one task that enter a group
_DRAWS = 3  # satisfied and violated instances drawn of each type and group, and as many free ones
# Hardly ever in a small model's own text: edited in first.
_RARE = (
    "detectable_format:title",
    "detectable_content:postscript",
    "startend:quotation",
    "startend:end_checker",
    "detectable_format:number_bullet_lists",
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Responses to one task and constraints with their verdicts: table[constraint, response]."""

    task: str
    responses: tuple[str, ...]
    pool: tuple[Constraint, ...]
    table: np.ndarray

    @functools.cached_property
    def beats(self) -> np.ndarray:
        """bool [c, d]: some response satisfies constraint c and violates d."""
        held = self.table.astype(np.float32)
        return held @ (1 - held).T > 0

    @functools.cached_property
    def meets(self) -> np.ndarray:
        """bool [c, d]: some response satisfies both constraints."""
        held = self.table.astype(np.float32)
        return held @ held.T > 0

    @functools.cached_property
    def opposites(self) -> np.ndarray:
        """bool [c, d]: the same words under the opposite demand."""
        twins = [opposite_of(constraint) for constraint in self.pool]
        keys = [identity(constraint) for constraint in self.pool]
        other = [None if twin is None else identity(twin) for twin in twins]
        return np.array([[o is not None and o == k for k in keys] for o in other], dtype=bool)


def task_text(task: Task | str) -> str:
    """Return the text of a task given as a Task or as a string."""
    return task if isinstance(task, str) else task.text


def hindsight(
    response: str, type_ids: Sequence[str], rng: np.random.Generator, words: Sequence[str] = ()
) -> list[Constraint]:
    """Return constraints that the response happens to satisfy, at most one of each type.

    Numbers are drawn near the response's own, keywords from the response and, for words to avoid,
    from `words`. Each constraint is proven by its verifier.
    """
    satisfied = []
    for type_id in type_ids:
        kind = constraints.trainable(type_id)
        constraint = kind.sample(rng, response=response, satisfied=True, words=words)
        if constraint is not None and kind.check(constraint, response):
            satisfied.append(constraint)
    return satisfied


def _variants(
    originals: Sequence[str],
    type_ids: Sequence[str],
    edited_fraction: float,
    rng: np.random.Generator,
) -> list[str]:
    """Return some of the originals and edits of them, each text once."""
    kept = [originals[int(i)] for i in rng.permutation(len(originals))[:_MAX_ORIGINALS]]
    editable = [name for name in type_ids if name in EDITABLE]
    texts = dict.fromkeys(kept)
    if not editable or edited_fraction <= 0:
        return list(texts)
    wanted = round(len(kept) * edited_fraction / max(1 - edited_fraction, 0.1))
    shuffled = [editable[int(i)] for i in rng.permutation(len(editable))]
    order = sorted(shuffled, key=lambda name: name not in _RARE)
    for index in range(wanted):
        # Mostly edits of what the model wrote; sometimes a second edit on top of a first one.
        bases = list(texts) if rng.random() < 0.25 else kept
        base = bases[int(rng.integers(len(bases)))]
        edited = rule_edit(base, order[index % len(order)], rng)
        if edited is not None:
            texts.setdefault(edited)
    return list(texts)


def opposite_of(constraint: Constraint) -> Constraint | None:
    """Return the constraint with the same words and the other polarity, or None."""
    twin = polarity_twin(constraint.id, dict(constraint.kwargs))
    return None if twin is None else Constraint(*twin)


def identity(constraint: Constraint) -> str:
    """Return a string that two constraints share when they are the same."""
    return f"{constraint.id}{sorted(constraint.kwargs.items())}"


def asked_for(constraint: Constraint, task: str = "") -> bool:
    """Return whether a prompt would ask for this: no ending and no request to repeat made of a
    response's own words, which often break off in the middle of a sentence, and no first word that
    is a mark of layout."""
    kwargs = constraint.kwargs
    request = kwargs.get("prompt_to_repeat")
    if request is not None and request not in (*REQUESTS, task):
        return False
    if not str(kwargs.get("first_word", "word")).isalpha():
        return False
    phrase = kwargs.get("end_phrase")
    return phrase is None or phrase in END_PHRASES


def _pool(
    responses: Sequence[str],
    type_ids: Sequence[str],
    rng: np.random.Generator,
    words: Sequence[str],
) -> list[Constraint]:
    """Draw instances of every type that some of the responses satisfy and others violate."""
    instances: dict[str, Constraint] = {}

    def add(constraint: Constraint | None) -> None:
        if constraint is not None and constraint.id in type_ids and asked_for(constraint):
            instances.setdefault(identity(constraint), constraint)

    for type_id in type_ids:
        kind = constraints.trainable(type_id)
        for _ in range(_DRAWS):  # as prompts ask when there is no response yet
            add(kind.sample(rng, words=words))
        for satisfied in (True, False):
            # Until enough are found, over all texts: a rare property sits in one of them only.
            wanted = _DRAWS
            for index in rng.permutation(len(responses)):
                made = kind.sample(
                    rng, response=responses[int(index)], satisfied=satisfied, words=words
                )
                if made is None:
                    continue
                add(made)
                add(opposite_of(made))
                if satisfied:
                    add(constraints.modify(made, responses[int(index)], rng, words))
                wanted -= 1
                if not wanted:
                    break
    return list(instances.values())


def make_group(
    task: Task | str,
    originals: Sequence[str],
    type_ids: Sequence[str],
    edited_fraction: float,
    rng: np.random.Generator,
) -> Group:
    """Edit the responses to a task, draw constraints over them and check each on each."""
    text = task_text(task)
    responses = _variants(originals, type_ids, edited_fraction, rng)
    asked = set(content_words(text))
    # Keywords come from answers to this very task, so being on topic does not give them away.
    words = [w for w in dict.fromkeys(w for r in responses for w in content_words(r))]
    words = [word for word in words if word not in asked]
    pool = _pool(responses, type_ids, rng, words)
    table = np.array(
        [[constraints.get(c.id).check(c, r, text) for r in responses] for c in pool], dtype=bool
    ).reshape(len(pool), len(responses))
    return Group(text, tuple(responses), tuple(pool), table)


def compatible(chosen: Sequence[Constraint]) -> bool:
    """Return whether constraints can stand in one prompt.

    Their types do not conflict (the release's table), no type occurs twice, and no word is both
    asked for and forbidden.
    """
    ids = [constraint.id for constraint in chosen]
    if len(set(ids)) < len(ids):
        return False
    for name in ids:
        if constraints.get(name).conflicts & (set(ids) - {name}):
            return False
    asked = {str(w).lower() for c in chosen for w in c.kwargs.get("keywords", ())}
    asked |= {str(c.kwargs["keyword"]).lower() for c in chosen if "keyword" in c.kwargs}
    banned = {str(w).lower() for c in chosen for w in c.kwargs.get("forbidden_words", ())}
    return not any(word in other or other in word for word in asked for other in banned)
