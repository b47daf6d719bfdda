"""Choose which mined cycles are kept, and split them: balance, duplicates, leaks.

The choice looks at all cycles at once but needs little of each, its `Summary`, so it is one small
step even if the cycles themselves are spread over many machines (`beam_mining.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import heapq
from collections.abc import Sequence

from gapo_jax.rng import Stream, stream
from gapo_jax.types import PreferentialPair

Cycle = list[PreferentialPair]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the choice needs of a cycle: its task, the type and kind of edit of each pair, and
    digests of its pairs and of its responses."""

    task: str
    slots: tuple[tuple[str, str], ...]
    pairs: frozenset[bytes]
    responses: frozenset[bytes]


def _digest(*texts: str) -> bytes:
    joined = "\0".join(texts).encode("utf-8", "replace")
    return hashlib.blake2b(joined, digest_size=16).digest()


def summarise(cycle: Cycle) -> Summary:
    """Return the summary of a cycle."""
    return Summary(
        cycle[0].task,
        tuple((pair.type, pair.edit) for pair in cycle),
        frozenset(_digest(p.prompt_accepted, p.prompt_rejected, p.response) for p in cycle),
        frozenset(_digest(pair.response) for pair in cycle),
    )


def _split(summaries: Sequence[Summary], test_fraction: float, seed: int) -> tuple[list[int], ...]:
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction: wanted 0 <= fraction < 1, got {test_fraction}")
    sides: tuple[list[int], list[int]] = ([], [])
    marks: dict[str, float] = {}
    for index, summary in enumerate(summaries):
        task = " ".join(summary.task.casefold().split())  # one task, however written
        if task not in marks:
            marks[task] = float(stream(seed, Stream.TASK_SPLIT, task).random())
        sides[marks[task] < test_fraction].append(index)
    known = {response for index in sides[0] for response in summaries[index].responses}
    return sides[0], [index for index in sides[1] if not summaries[index].responses & known]


def _balance(
    summaries: Sequence[Summary], num_pairs: int | None, seed: int, side: str
) -> list[int]:
    rng = stream(seed, Stream.SELECTION, side)
    slots: dict[tuple[str, str], list[int]] = {}
    for index in rng.permutation(len(summaries)).tolist():
        slots.setdefault(summaries[index].slots[0], []).append(index)
    types: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[tuple[str, str]] = collections.Counter()
    heap = [(0, 0, slot) for slot in sorted(slots)]
    seen: set[bytes] = set()
    chosen: list[int] = []
    room = num_pairs if num_pairs is not None else sum(len(summary.slots) for summary in summaries)
    while heap and room > 0:
        of_type, of_kind, slot = heapq.heappop(heap)
        now = (types[slot[0]], kinds[slot], slot)
        if (of_type, of_kind, slot) != now:  # its counts have grown since it was pushed
            heapq.heappush(heap, now)
            continue
        index = slots[slot].pop()
        if slots[slot]:
            heapq.heappush(heap, now)
        summary = summaries[index]
        if summary.pairs & seen or len(summary.slots) > room:
            continue
        seen |= summary.pairs
        room -= len(summary.slots)
        chosen.append(index)
        types.update(type_id for type_id, _ in summary.slots)
        kinds.update(summary.slots)
    return chosen


def balance(
    cycles: Sequence[Cycle], num_pairs: int | None, seed: int = 0, side: str = "train"
) -> list[Cycle]:
    """Choose cycles so that types and kinds of edit are as even as the material allows.

    The type with the fewest pairs so far comes next, and of that type the kind of edit with the
    fewest. A cycle is left out if one of its pairs has been chosen already.

    Args:
      cycles: of `mining.mine`.
      num_pairs: greatest number of pairs; None takes every cycle once.
      seed: orders equals.
      side: name of the side that is chosen; each side has its own order.
    """
    return [cycles[i] for i in _balance(list(map(summarise, cycles)), num_pairs, seed, side)]


def split_by_task(
    cycles: Sequence[Cycle], test_fraction: float, seed: int = 0
) -> tuple[list[Cycle], list[Cycle]]:
    """Split into (train, test) so that no task and no response is on both sides.

    The side of a task depends on the seed and its text (ignoring case and white space), so it stays
    the same when rows are added. Test cycles that share a response with the training side are left
    out.
    """
    train, test = _split(list(map(summarise, cycles)), test_fraction, seed)
    return [cycles[i] for i in train], [cycles[i] for i in test]


def choose(
    summaries: Sequence[Summary], num_pairs: int | None, test_fraction: float, seed: int = 0
) -> dict[str, list[int]]:
    """Return {"train", "test"}: indices of the cycles to keep, in the order chosen.

    Splits by task, then balances each side, with at most `num_pairs` pairs on the training side.
    """
    sides = _split(summaries, test_fraction, seed)
    made = {}
    for name, side, most in zip(("train", "test"), sides, (num_pairs, None), strict=True):
        made[name] = [side[i] for i in _balance([summaries[i] for i in side], most, seed, name)]
    return made
