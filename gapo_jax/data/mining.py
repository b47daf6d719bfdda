"""Mine preferential prompts from anyone's (task, response) data.

Each task is mined by itself, so the work maps over tasks with `datasets` on any number of
processes, and the result depends on the seed and the task's text alone. If two texts answer one
task, pairs come in closed cycles (`cycles.py`): every prompt is accepted exactly as often as it is
rejected. A single response is joined by rule edits of itself. `pairing="open"` leaves responses
unchanged and makes single pairs by modifying, inverting or inserting a constraint (GAPO, arXiv
2503.20194, section 3.2); then the prompts alone may give some of the label away.

Every pair is proven by `constraints.verify_pair`. A cycle also gives preferential responses from
the same material, for comparison: a prompt, a response that satisfies it, and one that violates it
(`response_pairs`).

Measured on one core, in CPU time, over 40 answers of 230 words to IFEval-like prompts and all 25
types: 5,700 pairs a minute closed, 20,700 open.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gapo_jax import constraints
from gapo_jax.constraints.text import MAX_TEXT
from gapo_jax.data.cycles import Counts, next_cycle
from gapo_jax.data.groups import asked_for, compatible, hindsight, make_group
from gapo_jax.data.preferential import write_cycle
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream, stream
from gapo_jax.types import PreferentialPair

PAIRINGS = ("auto", "closed", "open")
Cycle = list[PreferentialPair]
_MOST_RESPONSES = 8  # of one task; more add time and hardly any pair
_TEXTS = 4  # texts of a task, edits among them, that closed cycles want


@dataclasses.dataclass(frozen=True)
class Mining:
    """The options of mining.

    Attributes:
      type_ids: full ids of the constraint types to use.
      per_task: greatest number of pairs of one task.
      edited_fraction: share of rule edits among the texts of a task, more if a task has fewer than
          four responses; 0 edits nothing.
      max_constraints: greatest number of constraints of a prompt.
      phrasing: "train" or "heldout" wordings.
      pairing: "closed", "open", or "auto": closed, and open if that gives nothing.
      difficulty: (low, high) range of `constraints.difficulty`; a cycle with a pair outside is left
          out.
      seed: of all random draws.
      plugins: files of constraint types of one's own, which each process loads before it mines.
    """

    type_ids: tuple[str, ...]
    per_task: int = 12
    edited_fraction: float = 0.5
    max_constraints: int = 2
    phrasing: str = "train"
    pairing: str = "auto"
    difficulty: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pairing not in PAIRINGS:
            raise ValueError(f"pairing: wanted one of {PAIRINGS}, got {self.pairing!r}")
        if not self.type_ids or self.per_task < 1 or self.max_constraints < 1:
            raise ValueError(
                f"mining needs 1 type, 1 pair a task and 1 constraint at least, got "
                f"{len(self.type_ids)}, {self.per_task} and {self.max_constraints}"
            )
        if not 0 <= self.difficulty[0] <= self.difficulty[1] <= 1:
            raise ValueError(f"difficulty: wanted 0 <= low <= high <= 1, got {self.difficulty}")


def _closed(task: str, responses: Sequence[str], options: Mining, rng) -> list[Cycle]:
    edited = options.edited_fraction
    if edited > 0 and len(responses) < _TEXTS:  # fewer than that give cycles of one shape only
        edited = max(edited, 1 - len(responses) / _TEXTS)
    group = make_group(task, responses, options.type_ids, edited, rng)
    counts = Counts(options.type_ids, rng, options.max_constraints)
    cycles: list[Cycle] = []
    made = 0
    while options.per_task - made >= 2:
        room = options.per_task - made
        edges = next_cycle(group, counts, rng, room, options.max_constraints)
        if not edges:
            break
        counts.add(group, edges)
        cycles.append(write_cycle(group, edges, rng, options.phrasing))
        made += len(edges)
    return cycles


def _open(task: str, responses: Sequence[str], options: Mining, rng) -> list[Cycle]:
    cycles: dict[str, Cycle] = {}
    for index in range(options.per_task):
        response = responses[index % len(responses)]
        order = [options.type_ids[i] for i in rng.permutation(len(options.type_ids))]
        size = int(rng.integers(1, options.max_constraints + 1))
        words = [w for other in responses for w in constraints.content_words(other)]
        chosen: list[Any] = []
        for type_id in order:
            if not any(constraints.conflict(type_id, item.id) for item in chosen):
                for held in hindsight(response, [type_id], rng, words):
                    if asked_for(held, task) and compatible([*chosen, held]):
                        chosen.append(held)
            if len(chosen) == size:
                break
        pair = constraints.make_pair(
            task, chosen, response, rng,
            words=words, phrasing=options.phrasing, type_ids=options.type_ids,
        )  # fmt: skip
        if pair is not None:
            cycles.setdefault(f"{pair.prompt_accepted}\0{pair.prompt_rejected}", [pair])
    return list(cycles.values())


def mine_task(task: str, responses: Sequence[str], options: Mining) -> list[Cycle]:
    """Return the cycles of proven pairs from the responses to one task; an open pair is a cycle of
    one. The result depends on the arguments alone."""
    for path in options.plugins:
        constraints.load_plugin(path)
    # No constraint holds for a text beyond the limit, so mining it would only cost time.
    stripped = (text.strip() for text in responses)
    texts = list(dict.fromkeys(text for text in stripped if 0 < len(text) <= MAX_TEXT))
    if not task.strip() or not texts:
        return []
    rng = stream(options.seed, Stream.MINING, task)
    texts = texts[:_MOST_RESPONSES]
    cycles = _closed(task, texts, options, rng) if options.pairing != "open" else []
    if not cycles and options.pairing != "closed":
        cycles = _open(task, texts, options, rng)
    low, high = options.difficulty
    if (low, high) != (0.0, 1.0):
        cycles = [c for c in cycles if all(low <= constraints.difficulty(p) <= high for p in c)]
    return cycles


def _mine_batch(batch: Mapping[str, list[Any]], *, options: Mining) -> dict[str, list[str]]:
    cycles = [
        json.dumps([pair.to_json() for pair in cycle])
        for task, responses in zip(batch["task"], batch["responses"], strict=True)
        for cycle in mine_task(task, responses, options)
    ]
    return {"cycle": cycles}


def mine(
    rows: Iterable[tuple[str, str]], options: Mining, *, num_proc: int | None = None
) -> list[Cycle]:
    """Mine all tasks of (task, response) rows, on `num_proc` processes through `datasets.map`.

    Returns:
      All cycles, in the order of the tasks; the same whatever `num_proc` is.

    Raises:
      ValueError: no task with a response.
    """
    import datasets

    groups: dict[str, list[str]] = {}
    for task, response in rows:
        groups.setdefault(task, []).append(response)
    if not groups:
        raise ValueError("nothing to mine: got no (task, response) row")
    table = datasets.Dataset.from_dict({"task": list(groups), "responses": list(groups.values())})
    mined = table.map(
        functools.partial(_mine_batch, options=options),
        batched=True,
        batch_size=16,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        remove_columns=["task", "responses"],
        features=datasets.Features({"cycle": datasets.Value("string")}),
        load_from_cache_file=False,
        new_fingerprint=f"{zlib.crc32(repr((options, sorted(groups))).encode()):08x}",
        desc="mine",
    )
    return [
        [PreferentialPair.from_json(record) for record in json.loads(cycle)]
        for cycle in mined["cycle"]
    ]


def response_pairs(cycles: Iterable[Cycle]) -> list[JsonObject]:
    """Return preferential responses of closed cycles: one prompt, two responses.

    Each row has "prompt", "chosen" (satisfies all constraints), "rejected" (violates one),
    "task" and "constraints". Open pairs give none: they have one response.
    """
    rows = []
    for cycle in cycles:
        by_rejected = {pair.prompt_rejected: pair for pair in cycle}
        for pair in cycle:
            other = by_rejected.get(pair.prompt_accepted)
            if other is not None:
                rows.append(
                    {
                        "task": pair.task,
                        "prompt": pair.prompt_accepted,
                        "chosen": pair.response,
                        "rejected": other.response,
                        "constraints": [item.to_json() for item in pair.accepted],
                    }
                )
    return rows
