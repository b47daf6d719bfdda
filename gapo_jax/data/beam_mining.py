"""Mine on many machines: the steps of `build_data.py mine` as an Apache Beam pipeline.

Each source is read by one worker and each task is mined by one. Only summaries of the cycles
(`selection.Summary`) meet in one place, where the same cycles are chosen as on a single machine.
The result depends on the recipe alone, not on the number of machines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from gapo_jax.data.mining import mine_task
from gapo_jax.data.recipe import Recipe
from gapo_jax.data.selection import Summary, choose, summarise
from gapo_jax.records import JsonObject
from gapo_jax.types import PreferentialPair

LEFT_OUT = ("gapo_jax", "rows_left_out")  # namespace and name of the counter
Place = tuple[int, int, int]  # source, row of the task's first response, cycle
_Answer = tuple[int, int, str]  # source, row, response


def import_beam() -> Any:
    """Return the module `apache_beam`; ModuleNotFoundError with the command that installs it."""
    try:
        import apache_beam  # pyright: ignore
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "mining on many machines needs Apache Beam, which is not installed: run "
            "`pip install 'gapo-jax[beam]'` in an environment of its own, or leave --beam out"
        ) from error
    return apache_beam


def this_process() -> Any:
    """Return a Beam runner that works in this process; the DirectRunner, Beam's choice for one
    machine, would download a program (Prism) first."""
    import_beam()
    from apache_beam.runners.portability import fn_api_runner  # pyright: ignore

    return fn_api_runner.FnApiRunner()


def _read(numbered: tuple[int, str], recipe: Recipe) -> Iterator[tuple[str, _Answer]]:
    beam = import_beam()
    place, source = numbered
    for row, answer in enumerate(recipe.read(source)):
        if isinstance(answer, str):
            beam.metrics.Metrics.counter(*LEFT_OUT).inc()
            logging.getLogger(__name__).warning("left out: %s", answer)
        else:
            yield answer[0], (place, row, answer[1])


def _mine(
    answered: tuple[str, Iterable[_Answer]], recipe: Recipe
) -> Iterator[tuple[Place, list[PreferentialPair]]]:
    task, answers = answered[0], sorted(answered[1])
    cycles = mine_task(task, [response for _, _, response in answers], recipe.settings)
    for index, cycle in enumerate(cycles):
        yield (answers[0][0], answers[0][1], index), cycle


def _choose(placed: list[tuple[Place, Summary]], recipe: Recipe) -> dict[Place, str]:
    placed = sorted(placed, key=lambda item: item[0])  # the order of one machine
    summaries = [summary for _, summary in placed]
    kept = choose(summaries, recipe.pairs, recipe.test_fraction, recipe.settings.seed)
    return {placed[index][0]: name for name, indices in kept.items() for index in indices}


def _kept(
    cycle: tuple[Place, list[PreferentialPair]], side: str, chosen: dict[Place, str]
) -> Iterator[PreferentialPair]:
    if chosen.get(cycle[0]) == side:
        yield from cycle[1]


def mined_pairs(pipeline: Any, recipe: Recipe) -> JsonObject:
    """Return the pairs of each split, "train" and (with a test fraction) "test": `PCollection`s."""
    beam = import_beam()
    cycles = (
        pipeline
        | "Sources" >> beam.Create(list(enumerate(recipe.sources)))
        | "SpreadSources" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(_read, recipe)
        | "ByTask" >> beam.GroupByKey()
        | "Mine" >> beam.FlatMap(_mine, recipe)
    )
    chosen = beam.pvalue.AsSingleton(
        cycles
        | "Summarise" >> beam.Map(lambda item: (item[0], summarise(item[1])))
        | "Gather" >> beam.combiners.ToList()
        | "Choose" >> beam.Map(_choose, recipe)
    )
    sides = ("train", "test") if recipe.test_fraction else ("train",)
    return {side: cycles | f"Keep_{side}" >> beam.FlatMap(_kept, side, chosen) for side in sides}
