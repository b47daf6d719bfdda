"""Build preferential prompts from (task, response) rows, each pair proven by the verifiers.

GAPO (arXiv 2503.20194, section 3.2) pairs one response with a prompt that it satisfies and one that
it violates, but does not say how the rejected prompts are chosen. A careless choice gives the label
away: "wrap it in quotes" is nearly always violated, "at least 5 words" nearly always satisfied, so
a discriminator that looks at the prompt alone scores well. Therefore pairs are made in closed
cycles over the responses to one task: the rejected prompt of each pair is the accepted prompt of
the next one. Every prompt and every response is then accepted exactly as often as it is rejected,
and neither alone says anything about the label.

Four kinds of edit lead from the accepted prompt to the rejected one: `modify` (one constraint
becomes another instance of its type), `polarity` (include these words becomes avoid them, or the
other way round), `insert` (a violated constraint is added), and `replace` (constraints give way to
one of another type), which closes the cycles and serves types without arguments.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gapo_jax import constraints
from gapo_jax.constraints.template import compose_prompt
from gapo_jax.data.cycles import Counts, Edge, next_cycle
from gapo_jax.data.groups import Group, make_group, task_text
from gapo_jax.data.tasks import Task
from gapo_jax.records import JsonObject
from gapo_jax.types import Constraint, PreferentialPair

_PATIENCE = 3  # rounds over all tasks without a single new pair before giving up


def write_cycle(
    group: Group, edges: Sequence[Edge], rng: np.random.Generator, phrasing: str
) -> list[PreferentialPair]:
    """Compose each prompt of a cycle once and prove every pair (paper Eq. 4)."""
    prompts: dict[tuple[int, ...], tuple[tuple[Constraint, ...], str]] = {}
    for node in dict.fromkeys(n for edge in edges for n in (edge.accepted, edge.rejected)):
        chosen = tuple(group.pool[node[i]] for i in rng.permutation(len(node)))
        prompts[node] = chosen, compose_prompt(group.task, chosen, rng, phrasing=phrasing)
    pairs = []
    for edge in edges:
        accepted, prompt_accepted = prompts[edge.accepted]
        rejected, prompt_rejected = prompts[edge.rejected]
        pair = PreferentialPair(
            task=group.task,
            response=group.responses[edge.response],
            accepted=accepted,
            rejected=rejected,
            prompt_accepted=prompt_accepted,
            prompt_rejected=prompt_rejected,
            edit=edge.kind,
            type=edge.type,
        )
        constraints.verify_pair(pair)
        pairs.append(pair)
    return pairs


def _by_task(rows: Iterable[tuple[Task | str, str]]) -> list[tuple[Task | str, list[str]]]:
    groups: dict[str, tuple[Task | str, list[str]]] = {}
    for task, response in rows:
        text = response.strip()
        if text:
            texts = groups.setdefault(task_text(task), (task, []))[1]
            if text not in texts:
                texts.append(text)
    return list(groups.values())


def build_pairs(
    rows: Iterable[tuple[Task | str, str]],
    *,
    type_ids: Sequence[str],
    num_pairs: int,
    rng: np.random.Generator,
    edited_fraction: float = 0.5,
    max_constraints: int = 2,
    phrasing: str = "train",
    progress: Callable[[int], None] | None = None,
) -> list[PreferentialPair]:
    """Build preferential pairs, balanced over types and kinds, without a cheap shortcut.

    Args:
        rows: (task, response); several responses to each task, since the rejected prompts of
            one are what its siblings satisfy. Empty responses are left out.
        type_ids: constraint types to use, full ids or short names.
        num_pairs: at most that many; one fewer where a lone pair cannot be closed into a cycle.
        rng: numpy generator; the result depends on it and the rows alone.
        edited_fraction: share of edited texts (`rule_edit`) among the responses of a task.
        max_constraints: 1 or more constraints in a prompt; insertion needs 2.
        phrasing: "train" or "heldout" wordings of the constraints.
        progress: called with the number of pairs so far.

    Returns:
        Pairs in random order, each proven by the verifiers, none twice; every prompt occurs as
        often accepted as rejected. `pair_statistics` counts them.

    Raises:
        ValueError: no rows, no types, or not a single pair. Fewer than wanted: a warning.
    """
    type_ids = constraints.resolve(type_ids)
    tasks = _by_task(rows)
    if not tasks or not type_ids or num_pairs < 2:
        raise ValueError(
            f"cannot build pairs from {len(tasks)} tasks with a response, {len(type_ids)} "
            f"constraint types, num_pairs={num_pairs}: needs 1, 1 and 2 at least"
        )
    pairs = _collect(
        tasks, type_ids, num_pairs, rng, edited_fraction, max_constraints, phrasing, progress
    )
    if not pairs:
        raise ValueError(
            f"no preferential pair could be made from {len(tasks)} tasks: give more responses to "
            "each task, more constraint types, or a larger edited_fraction"
        )
    if len(pairs) < num_pairs - 1:
        share = f"only {len(pairs)} of {num_pairs} preferential pairs could be made from"
        warnings.warn(f"{share} {len(tasks)} tasks: give more responses", stacklevel=2)
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _collect(
    tasks: Sequence[tuple[Task | str, Sequence[str]]],
    type_ids: Sequence[str],
    num_pairs: int,
    rng: np.random.Generator,
    edited_fraction: float,
    max_constraints: int,
    phrasing: str,
    progress: Callable[[int], None] | None,
) -> list[PreferentialPair]:
    counts = Counts(type_ids, rng, max_constraints)
    pairs: list[PreferentialPair] = []
    seen: set[tuple[str, str, str]] = set()
    per_visit = min(12, max(4, -(-num_pairs // len(tasks))))
    barren = 0
    while len(pairs) < num_pairs - 1 and barren < _PATIENCE:
        before = len(pairs)
        for index in rng.permutation(len(tasks)):
            task, originals = tasks[index]
            group = make_group(task, originals, type_ids, edited_fraction, rng)
            limit = min(num_pairs, len(pairs) + per_visit)
            while limit - len(pairs) >= 2:
                room = min(num_pairs - len(pairs), limit - len(pairs) + 1)
                edges = next_cycle(group, counts, rng, room, max_constraints)
                made = write_cycle(group, edges, rng, phrasing)
                keys = {(p.prompt_accepted, p.prompt_rejected, p.response) for p in made}
                if not made or keys & seen:
                    break
                seen |= keys
                counts.add(group, edges)
                pairs.extend(made)
            if progress is not None:
                progress(len(pairs))
            if len(pairs) >= num_pairs - 1:
                break
        barren = barren + 1 if len(pairs) == before else 0
    return pairs


def pair_statistics(pairs: Sequence[PreferentialPair]) -> JsonObject:
    """Count what a set of pairs consists of.

    Returns:
        "pairs"; "types" {violated type: {kind: count}}; "kinds" {kind: count};
        "constraints_accepted" and "constraints_rejected" {number of constraints: count};
        "type_accepted" and "type_rejected" {type: prompts it stands in}; "prompt_balance": the
        share of prompts that occur as often accepted as rejected; "tasks", "responses",
        "words_mean".
    """
    kinds: collections.Counter[str] = collections.Counter(pair.edit for pair in pairs)
    types: dict[str, collections.Counter[str]] = {}
    for pair in pairs:
        types.setdefault(pair.type, collections.Counter())[pair.edit] += 1
    sides: JsonObject = {}
    for side in ("accepted", "rejected"):
        chosen = [getattr(pair, side) for pair in pairs]
        sides[f"constraints_{side}"] = dict(collections.Counter(len(c) for c in chosen))
        sides[f"type_{side}"] = dict(collections.Counter(c.id for item in chosen for c in item))
    accepted = collections.Counter(pair.prompt_accepted for pair in pairs)
    rejected = collections.Counter(pair.prompt_rejected for pair in pairs)
    prompts = accepted.keys() | rejected.keys()
    return {
        "pairs": len(pairs),
        "kinds": dict(kinds),
        "types": {name: dict(count) for name, count in sorted(types.items())},
        **sides,
        "prompt_balance": float(np.mean([accepted[p] == rejected[p] for p in prompts])),
        "tasks": len({pair.task for pair in pairs}),
        "responses": len({pair.response for pair in pairs}),
        "words_mean": float(np.mean([len(pair.response.split()) for pair in pairs])),
    }
