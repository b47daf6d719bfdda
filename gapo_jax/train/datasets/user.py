"""The data of a run, from a folder of preferential pairs that scripts/build_data.py wrote.

What is taken of it is copied into the workdir, so that a continued run does not need the folder.
Pairs are taken and left in whole cycles (`data/cycles.py`): with a part of one, a prompt would
be more often accepted than rejected, and give its label away.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gapo_jax import constraints
from gapo_jax.config import Config
from gapo_jax.data.curriculum import cycles_of
from gapo_jax.data.discriminator_text import encode_texts
from gapo_jax.data.preferences import preferential_responses
from gapo_jax.data.selection import Cycle
from gapo_jax.data.sources import (
    MINED,
    accepted_prompts,
    read_pairs,
    read_prompts,
    write_pairs,
    write_prompts,
)
from gapo_jax.methods import asks_discriminator, batches_of, method_of
from gapo_jax.rng import Stream, stream
from gapo_jax.train.build import Models
from gapo_jax.train.datasets.rows import ROWS, check_rows, reads_rows
from gapo_jax.train.datasets.self_generated import (
    PAIRS,
    Prompts,
    compared_pairs,
    fitting,
    prompt_widths,
    training_types,
    visible_types,
)
from gapo_jax.train.offline.examples import make_examples
from gapo_jax.types import Constraint, PreferentialPair

log = logging.getLogger("gapo_jax")
HELDOUT = "heldout_tasks"
_PROMPTS = {"train": "prompts_train.jsonl", "test": "prompts_heldout.jsonl"}


def check_source(config: Config, workdir: Path) -> None:
    """Check `config.data.types`, and that the method can use what `config.data.source` holds.

    It needs no model. The source is not checked where a run has taken its part already. Rows that
    are no mined pairs are the matter of `rows.check_rows`.

    Raises:
        FileNotFoundError: the folder is not what build_data.py wrote, or a plug-in is missing.
        ValueError: a row cannot be read, or too few are of use to the method; names the key.
    """
    if reads_rows(config, workdir):
        if not (workdir / ROWS).exists():
            check_rows(config)
        return
    training_types(config)
    if not config.data.source or (workdir / _PROMPTS["test"]).exists():
        return
    mined = {side: _read(config, side) for side in MINED}
    wanted = set(_types_in(config, mined))
    pairs, method = mined["train"], method_of(config)
    pairs = [pair for pair in pairs if all(c.id in wanted for c in asked(pair))]
    if method.trains == "discriminator" or asks_discriminator(config):
        compared_pairs(config, pairs)
    if method.loop == "online" or batches_of(config) not in ("examples", "refinements"):
        return
    refines = batches_of(config) == "refinements"
    count = len(preferential_responses(pairs) if refines else make_examples(config, pairs))
    if count < config.offline.batch_size:
        raise ValueError(
            f"config.data.source={config.data.source} gives {method.name} {count} examples, fewer "
            f"than config.offline.batch_size={config.offline.batch_size}; lower that, or mine more"
        )


def own_prompts(config: Config, models: Models, workdir: Path) -> Prompts:
    """Return the accepted prompts of mined pairs, those of the test side held out; the pairs go
    into the workdir, where `self_generated.make_pairs` reads them.

    Raises:
        FileNotFoundError: `config.data.source` is not what build_data.py wrote.
        ValueError: too little of it can be used: other types, too long, invisible.
    """
    training_types(config)  # loads the plug-ins, which the rows may ask for
    if not (workdir / _PROMPTS["test"]).exists():
        _take(config, models, workdir)
    rows = {side: read_prompts(workdir / name) for side, name in _PROMPTS.items()}
    present = {c.id for part in rows.values() for row in part for c in row.constraints}
    type_ids = tuple(name for name in constraints.types("all") if name in present)
    width, train_width = prompt_widths(config, models, rows["train"], [rows["test"]])
    return Prompts(type_ids, rows["train"], {HELDOUT: rows["test"]}, [], width, train_width)


def _take(config: Config, models: Models, workdir: Path) -> None:
    """Choose pairs and prompts of the folder and write them; the last file says that all are."""
    data = config.data
    mined = {side: _read(config, side) for side in MINED}
    visible = set(visible_types(config, models, _types_in(config, mined)))
    counts = {
        "train": (data.pairs, data.prompts),
        "test": (data.pairs_heldout, config.eval.prompts_per_set),
    }
    limit = config.discriminator.max_tokens
    for side, pairs in mined.items():
        where = f"{data.source}/{MINED[side]}"
        reason = "constraints of types that are not in use (config.data.types)"
        cycles = usable(in_cycles(pairs), lambda part: _ask_only(part, visible), where, reason)
        reason = f"texts longer than config.discriminator.max_tokens={limit}"
        cycles = usable(cycles, lambda part: _seen_whole(config, models, part), where, reason)
        rng = stream(config.seed, Stream.USER_PAIRS, side)
        write_pairs(workdir / PAIRS[side], some_cycles(cycles, counts[side][0], rng))
        rows = accepted_prompts(_flat(cycles), side)
        rows = [rows[i] for i in rng.permutation(len(rows))]
        write_prompts(
            workdir / _PROMPTS[side], fitting(config, models, rows, counts[side][1], where)
        )


def _types_in(config: Config, mined: Mapping[str, Cycle]) -> list[str]:
    """Return those of `config.data.types` that the pairs have."""
    present = {c.id for pairs in mined.values() for pair in pairs for c in asked(pair)}
    types = [name for name in training_types(config) if name in present]
    if not types:
        raise ValueError(
            f"config.data.source={config.data.source} has pairs of other types only "
            f"({sorted(present)}) than config.data.types; name those, or a family such as 'ifeval'"
        )
    return types


def asked(pair: PreferentialPair) -> tuple[Constraint, ...]:
    """Return the constraints of both prompts of a pair."""
    return pair.accepted + pair.rejected


def _ask_only(pairs: Sequence[PreferentialPair], type_ids: set[str]) -> list[bool]:
    return [all(constraint.id in type_ids for constraint in asked(pair)) for pair in pairs]


def _read(config: Config, side: str) -> list[PreferentialPair]:
    source, path = config.data.source, Path(config.data.source) / MINED[side]
    if not path.is_file():
        raise FileNotFoundError(
            f"config.data.source={source} has no {path.name}: wanted a folder that "
            "`scripts/build_data.py mine --out DIR` wrote"
        )
    if side == "test" and not path.stat().st_size:
        raise ValueError(
            f"{path} is empty, and the held-out prompts come from it: mine again with a larger "
            "--test-fraction, or more tasks"
        )
    try:
        return read_pairs(path)
    except ValueError as error:
        raise ValueError(
            f"config.data.source={source}: {error}. config.method={config.method!r} needs an "
            "accepted and a rejected prompt in every row, as `scripts/build_data.py mine --source "
            "ROWS.jsonl --out DIR` makes them of tasks and responses"
        ) from error


def _seen_whole(config: Config, models: Models, pairs: Sequence[PreferentialPair]) -> list[bool]:
    """Return of each pair whether the discriminator sees both texts to their ends."""
    sides = [side for pair in pairs for side in pair.sides]
    encoded = encode_texts(
        models.disc_tokenizer,
        [prompt for prompt, _ in sides],
        [response for _, response in sides],
        config.discriminator.max_tokens,
    )
    cut_B = np.asarray(encoded.truncated_B)
    return [not (first or second) for first, second in zip(cut_B[::2], cut_B[1::2], strict=True)]


def in_cycles(pairs: Sequence[PreferentialPair]) -> list[Cycle]:
    """Return the pairs grouped by cycle, each in the order of its first pair."""
    cycles: dict[int, Cycle] = collections.defaultdict(list)
    for pair, cycle in zip(pairs, cycles_of(pairs).tolist(), strict=True):
        cycles[cycle].append(pair)
    return list(cycles.values())


def _flat(cycles: Sequence[Cycle]) -> Cycle:
    return [pair for cycle in cycles for pair in cycle]


def usable(
    cycles: Sequence[Cycle],
    test: Callable[[Sequence[PreferentialPair]], Sequence[bool]],
    where: str,
    reason: str,
) -> list[Cycle]:
    """Return the cycles all of whose pairs pass `test`, which says so of each of many pairs; say
    how many pairs are left out, and why.

    Raises:
        ValueError: none is left.
    """
    passed = iter(test(_flat(cycles)))
    whole = [cycle for cycle in cycles if all([next(passed) for _ in cycle])]
    total, kept = (sum(map(len, part)) for part in (cycles, whole))
    left_out = f"{total - kept} of {total} pairs of {where} are left out: {reason}"
    if not whole:
        raise ValueError(f"{left_out}; nothing remains to train on, so change that key")
    if kept < total:
        log.warning(left_out)
    return whole


def some_cycles(cycles: Sequence[Cycle], count: int, rng: np.random.Generator) -> Cycle:
    """Return at most `count` pairs, in whole cycles chosen at random; one cycle at least."""
    chosen: Cycle = []
    for index in rng.permutation(len(cycles)).tolist():
        if not chosen or len(chosen) + len(cycles[index]) <= count:
            chosen += cycles[index]
    return chosen
