"""Cycles of pairs: the rejected prompt of each pair is the accepted prompt of the next one.

Over the texts of one task (`groups.Group`) two texts can exchange their prompts, or three can be
lined up round an insertion. Every prompt of a cycle occurs once accepted and once rejected.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from gapo_jax.data.groups import EXISTENCE, FORBIDDEN, Group, compatible, identity, opposite_of

KINDS = ("modify", "polarity", "insert", "replace")


@dataclasses.dataclass(frozen=True)
class Edge:
    """One pair to be: indices into the group's pool and responses."""

    accepted: tuple[int, ...]
    rejected: tuple[int, ...]
    response: int
    kind: str
    type: str


class Counts:
    """How many pairs there are of each type and kind: what is rare is made next."""

    def __init__(self, type_ids: Sequence[str], rng: np.random.Generator) -> None:
        self.types = list(type_ids)
        self.pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        self.by_type: collections.Counter[str] = collections.Counter()
        self._rng = rng

    def add(self, edges: Iterable[Edge]) -> None:
        for edge in edges:
            self.pairs[edge.type, edge.kind] += 1
            self.by_type[edge.type] += 1

    def rarest_types(self) -> list[str]:
        order = [self.types[i] for i in self._rng.permutation(len(self.types))]
        return sorted(order, key=lambda name: self.by_type[name])

    def rarest_kinds(self, type_id: str, kinds: Sequence[str]) -> list[str]:
        order = [kinds[i] for i in self._rng.permutation(len(kinds))]
        return sorted(order, key=lambda kind: self.pairs[type_id, kind])


def _related(group: Group, first: int, second: int, kind: str) -> bool:
    """Return whether `kind` leads from one constraint of the pool to the other."""
    one, two = group.pool[first], group.pool[second]
    opposite = opposite_of(one)
    if kind == "polarity":
        return opposite is not None and identity(opposite) == identity(two)
    if kind == "modify":
        return one.id == two.id
    return one.id != two.id and {one.id, two.id} != {EXISTENCE, FORBIDDEN}


def _some(mask: np.ndarray, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(mask)))


def _exchange(
    group: Group, type_id: str, kind: str, counts: Counts, rng: np.random.Generator, most: int
) -> list[Edge]:
    """Find two pairs that exchange their prompts, or nothing.

    Response i satisfies c and violates d, response j the other way round: (c, d, i), (d, c, j).
    Half of the time both prompts carry one more constraint that both responses satisfy.
    """
    order = rng.permutation(len(group.pool))
    firsts = [int(c) for c in order if group.pool[c].id == type_id]
    for c in firsts:
        seconds = [int(d) for d in order if d != c and _related(group, c, int(d), kind)]
        seconds.sort(key=lambda d: counts.by_type[group.pool[d].id])
        for d in seconds:
            only_c = group.table[c] & ~group.table[d]
            only_d = group.table[d] & ~group.table[c]
            if not (only_c.any() and only_d.any()):
                continue
            i, j = _some(only_c, rng), _some(only_d, rng)
            rest = _shared(group, (c, d), (i, j), rng) if most > 1 and rng.random() < 0.5 else ()
            one, two = (c, *rest), (d, *rest)
            return [
                Edge(one, two, i, kind, group.pool[d].id),
                Edge(two, one, j, kind, group.pool[c].id),
            ]
    return []


def _shared(
    group: Group, edited: tuple[int, int], responses: tuple[int, int], rng: np.random.Generator
) -> tuple[int, ...]:
    """Find one constraint to stand beside either edited one, satisfied by both responses."""
    for index in rng.permutation(len(group.pool)):
        if not group.table[index, list(responses)].all():
            continue
        beside = group.pool[index]
        if all(compatible((group.pool[e], beside)) for e in edited):
            return (int(index),)
    return ()


def _insertion(group: Group, type_id: str, counts: Counts, rng: np.random.Generator) -> list[Edge]:
    """Find three pairs round an insertion, or nothing: {a} -> {a, c} -> {b} -> {a}.

    Response i satisfies a and violates c; j satisfies both and violates b; k satisfies b and
    violates a. No two pairs can do it: who satisfies {a, c} never violates {a}.
    """
    order = [int(index) for index in rng.permutation(len(group.pool))]
    table = group.table
    for c in (index for index in order if group.pool[index].id == type_id):
        for a in order:
            if not (table[a] & ~table[c]).any() or not (table[a] & table[c]).any():
                continue
            if not compatible((group.pool[a], group.pool[c])):
                continue
            seconds = [b for b in order if b not in (a, c) and group.pool[b].id != type_id]
            seconds.sort(key=lambda b: counts.by_type[group.pool[b].id])
            for b in seconds:
                both = table[a] & table[c] & ~table[b]
                other = table[b] & ~table[a]
                if both.any() and other.any():
                    ids = [group.pool[index].id for index in (a, b)]
                    back = "modify" if ids[0] == ids[1] else "replace"
                    only = table[a] & ~table[c]
                    return [
                        Edge((a,), (a, c), _some(only, rng), "insert", type_id),
                        Edge((a, c), (b,), _some(both, rng), "replace", ids[1]),
                        Edge((b,), (a,), _some(other, rng), back, ids[0]),
                    ]
    return []


def next_cycle(
    group: Group, counts: Counts, rng: np.random.Generator, room: int, most: int
) -> list[Edge]:
    """Find a cycle for the rarest type and kind that the group allows, of at most `room` pairs."""
    for type_id in counts.rarest_types():
        kinds = ["modify", "replace"]
        if type_id in (EXISTENCE, FORBIDDEN):
            kinds.append("polarity")
        if most > 1 and room >= 3:
            kinds.append("insert")
        for kind in counts.rarest_kinds(type_id, kinds):
            if kind == "insert":
                edges = _insertion(group, type_id, counts, rng)
            else:
                edges = _exchange(group, type_id, kind, counts, rng, most)
            if edges:
                return edges
    return []
