"""Find cycles of pairs: the rejected prompt of each pair is the accepted prompt of the next one.

Two texts that answer one task (`groups.Group`) can exchange their prompts, or three can form a
cycle with an insertion. Every prompt of a cycle occurs once accepted and once rejected.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from gapo_jax import constraints
from gapo_jax.data.groups import POLAR, Group, compatible
from gapo_jax.types import Constraint

KINDS = ("modify", "polarity", "insert", "replace")
# Shares of the kinds for types without near misses, with near misses, and with an opposite.
_SHARES = {
    "bare": {"insert": 1.0, "replace": 3.0},
    "near": {"modify": 3.0, "insert": 1.0, "replace": 2.0},
    "polar": {"modify": 2.0, "polarity": 3.0, "insert": 1.0, "replace": 1.0},
}


def _has_near_misses(type_id: str) -> bool:
    # A postscript has two markers to choose from; P.P.S for P.S. is no near miss worth having.
    return constraints.get(type_id).has_arguments and type_id != "detectable_content:postscript"


@dataclasses.dataclass(frozen=True)
class Edge:
    """A pair that has not been composed yet: indices into the group's pool and responses."""

    accepted: tuple[int, ...]
    rejected: tuple[int, ...]
    response: int
    kind: str
    type: str


class Counts:
    """Counts pairs by type and kind, and says which are needed next.

    Every type gets the same share of the pairs. Within a type, near misses and opposite polarity
    get more than insertions and exchanges, because they teach what a constraint says.
    """

    def __init__(self, type_ids: Sequence[str], rng: np.random.Generator, most: int) -> None:
        self.pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        self.by_type: collections.Counter[str] = collections.Counter()
        self.beside: collections.Counter[str] = collections.Counter()
        self._rng = rng
        self.quota: dict[tuple[str, str], float] = {}
        for name in type_ids:
            group = "polar" if name in POLAR else "near" if _has_near_misses(name) else "bare"
            kinds = dict(_SHARES[group])
            if most < 2:
                kinds.pop("insert")
            total = sum(kinds.values())
            self.quota |= {(name, kind): share / total for kind, share in kinds.items()}

    def add(self, group: Group, edges: Iterable[Edge]) -> None:
        """Count the pairs of a cycle."""
        for edge in edges:
            self.pairs[edge.type, edge.kind] += 1
            self.by_type[edge.type] += 1
            for index in set(edge.accepted) & set(edge.rejected):
                self.beside[group.pool[index].id] += 1

    def wanted(self) -> list[tuple[str, str]]:
        """Return all (type, kind), the one furthest below its quota first, ties in random order."""
        slots = list(self.quota)
        order = [slots[i] for i in self._rng.permutation(len(slots))]
        return sorted(order, key=self._filled)

    def as_partner(self, constraint: Constraint) -> float:
        """Return how well a constraint's exchange quota is filled; low means that it is needed."""
        return self._filled((constraint.id, "replace"))

    def _filled(self, slot: tuple[str, str]) -> float:
        # The type as a whole counts beside the slot: where near misses are rare (two bulleted
        # texts in one group), the type's other kinds make up for them.
        return self.pairs[slot] / self.quota[slot] + self.by_type[slot[0]]


def _related(group: Group, first: int, second: int, kind: str) -> bool:
    """Return whether `kind` leads from one constraint of the pool to the other."""
    polar = bool(group.opposites[first, second])
    if kind == "polarity" or polar:
        return polar and kind == "polarity"
    return (group.pool[first].id == group.pool[second].id) == (kind == "modify")


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
        able = group.beats[c] & group.beats[:, c]
        seconds = [int(d) for d in order if able[d] and _related(group, c, int(d), kind)]
        seconds.sort(key=lambda d: counts.as_partner(group.pool[d]))
        for d in seconds:
            only_c = group.table[c] & ~group.table[d]
            only_d = group.table[d] & ~group.table[c]
            i, j = _some(only_c, rng), _some(only_d, rng)
            rest: tuple[int, ...] = ()
            if most > 1 and rng.random() < 0.5:
                rest = _shared(group, (c, d), (i, j), counts, rng)
            one, two = (c, *rest), (d, *rest)
            return [
                Edge(one, two, i, kind, group.pool[d].id),
                Edge(two, one, j, kind, group.pool[c].id),
            ]
    return []


def _shared(
    group: Group,
    edited: tuple[int, int],
    responses: tuple[int, int],
    counts: Counts,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """Find one constraint that both responses satisfy and that fits beside either edited one."""
    order = rng.permutation(len(group.pool)).tolist()
    for index in sorted(order, key=lambda index: counts.beside[group.pool[index].id]):
        if not group.table[index, list(responses)].all():
            continue
        beside = group.pool[index]
        if all(compatible((group.pool[e], beside)) for e in edited):
            return (index,)
    return ()


def _insertion(group: Group, type_id: str, counts: Counts, rng: np.random.Generator) -> list[Edge]:
    """Find three pairs in a cycle with an insertion, or nothing: {a} -> {a, c} -> {b} -> {a}.

    Response i satisfies a and violates c; j satisfies both and violates b; k satisfies b and
    violates a. Two pairs cannot do it: a response that satisfies {a, c} never violates {a}.
    """
    order = [int(index) for index in rng.permutation(len(group.pool))]
    table = group.table
    for c in (index for index in order if group.pool[index].id == type_id):
        firsts = [a for a in order if group.beats[a, c] and group.meets[a, c]]
        for a in sorted(firsts, key=lambda a: counts.as_partner(group.pool[a])):
            if not compatible((group.pool[a], group.pool[c])):
                continue
            both = table[a] & table[c]
            able = (both & ~table).any(axis=1) & group.beats[:, a]
            seconds = [b for b in order if able[b] and group.pool[b].id != type_id]
            if not seconds:
                continue
            b = min(seconds, key=lambda b: counts.as_partner(group.pool[b]))
            ids = [group.pool[index].id for index in (a, b)]
            back = "modify" if ids[0] == ids[1] else "replace"
            return [
                Edge((a,), (a, c), _some(table[a] & ~table[c], rng), "insert", type_id),
                Edge((a, c), (b,), _some(both & ~table[b], rng), "replace", ids[1]),
                Edge((b,), (a,), _some(table[b] & ~table[a], rng), back, ids[0]),
            ]
    return []


def next_cycle(
    group: Group, counts: Counts, rng: np.random.Generator, room: int, most: int
) -> list[Edge]:
    """Find a cycle of at most `room` pairs for the type and kind that are needed most.

    Returns an empty list if the group allows none.
    """
    for type_id, kind in counts.wanted():
        if kind == "insert":
            edges = _insertion(group, type_id, counts, rng) if room >= 3 else []
        else:
            edges = _exchange(group, type_id, kind, counts, rng, most)
        if edges:
            return edges
    return []
