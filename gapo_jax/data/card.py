"""Write the data card of mined pairs: counts by type and edit, lengths, balance, ten samples."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gapo_jax import constraints
from gapo_jax.data.preferential import pair_statistics
from gapo_jax.records import Json, JsonObject
from gapo_jax.rng import Stream, stream
from gapo_jax.types import PreferentialPair

_EDGES = (0, 10, 20, 40, 80, 160, 320, 640, 1280)
_SAMPLES = 10


def histogram(texts: Sequence[str]) -> dict[str, int]:
    """Count texts by their number of words, in bins that double."""
    counts = np.histogram([len(text.split()) for text in texts], [*_EDGES, np.inf])[0]
    names = [f"{low}-{high - 1}" for low, high in zip(_EDGES, _EDGES[1:])] + [f"{_EDGES[-1]}+"]
    return {name: int(count) for name, count in zip(names, counts)}


def card(
    splits: Mapping[str, Sequence[PreferentialPair]], facts: Json, seed: int = 0
) -> JsonObject:
    """Return the card as a JSON-ready dictionary.

    Args:
      splits: name -> pairs; the samples come from the first split.
      facts: what else to record: sources, options, rows left out.
      seed: draws the samples.
    """
    record: JsonObject = {"facts": dict(facts), "splits": {}}
    for name, pairs in splits.items():
        if not pairs:
            record["splits"][name] = {"pairs": 0}
            continue
        hard = [constraints.difficulty(pair) for pair in pairs]
        record["splits"][name] = {
            **pair_statistics(pairs),
            "difficulty": {"mean": float(np.mean(hard)), "zero": float(np.mean(np.equal(hard, 0)))},
            "response_words": histogram([pair.response for pair in pairs]),
            "prompt_words": histogram([pair.prompt_accepted for pair in pairs]),
        }
    first = next(iter(splits.values()), ())
    chosen = stream(seed, Stream.CARD).permutation(len(first))[:_SAMPLES]
    record["samples"] = [first[int(i)].to_json() for i in chosen]
    return record


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def _split_lines(name: str, split: Json) -> list[str]:
    lines = [f"## {name}: {split['pairs']} pairs", ""]
    if not split["pairs"]:
        return lines
    lines += [
        f"{split['tasks']} tasks, {split['responses']} responses, {split['words_mean']:.0f} words "
        f"on average. {100 * split['prompt_balance']:.1f}% of the prompts occur as often accepted "
        f"as rejected. Difficulty {split['difficulty']['mean']:.2f} on average (1 is the nearest "
        f"miss); {100 * split['difficulty']['zero']:.0f}% hold or fail as a whole.",
        "",
    ]
    kinds = sorted(split["kinds"])
    totals = collections.Counter({t: sum(counts.values()) for t, counts in split["types"].items()})
    rows = [[t, n, *(split["types"][t].get(k, 0) for k in kinds)] for t, n in totals.most_common()]
    rows.append(["all", split["pairs"], *(split["kinds"][kind] for kind in kinds)])
    lines += [*_table(["type", "pairs", *kinds], rows), ""]
    bins = list(split["response_words"])
    lines += _table(
        ["words", *bins],
        [[side, *split[f"{side}_words"].values()] for side in ("response", "prompt")],
    )
    return [*lines, ""]


def card_markdown(record: Json) -> str:
    """Return the card as Markdown."""
    lines = ["# Preferential prompts", ""]
    lines += [f"- {name}: {value}" for name, value in record["facts"].items()] + [""]
    for name, split in record["splits"].items():
        lines += _split_lines(name, split)
    lines += ["## Samples", ""]
    for number, sample in enumerate(record["samples"], 1):
        lines += [f"### {number}: {sample['type']}, {sample['edit']}", ""]
        for field in ("prompt_accepted", "prompt_rejected", "response"):
            text = str(sample[field]).replace("\n", "\n> ")
            lines += [f"{field.replace('_', ' ')}:", "", f"> {text}", ""]
    return "\n".join(lines)
