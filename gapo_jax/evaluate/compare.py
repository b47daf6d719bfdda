"""Two runs on the same prompts: paired differences with intervals, and McNemar's exact test.

The interval comes from a bootstrap over prompts with the same draws on both sides
(`accuracy.paired_difference`). McNemar's test (Psychometrika 1947, exact form) takes the prompts on
which exactly one of the two runs succeeds; under its null hypothesis either run is equally likely
to be the one.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from scipy import stats

from gapo_jax.evaluate.accuracy import METRICS, Verdict, paired_difference
from gapo_jax.records import JsonObject


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the two-sided exact p value of McNemar's test; 1 where nothing differs.

    Args:
      first_only, second_only: pairs on which only that side succeeds.
    """
    total = first_only + second_only
    # The smaller count, so that the result is exactly symmetric.
    return float(stats.binomtest(min(first_only, second_only), total).pvalue) if total else 1.0


def _prompts_passed(verdicts: Sequence[Verdict], mode: str) -> dict[str, bool]:
    """Return whether the response to each prompt that has only one follows everything."""
    # The test needs independent pairs; samples of one prompt are not independent of each other.
    times = collections.Counter(verdict.prompt for verdict in verdicts)
    return {v.prompt: all(getattr(v, mode)) for v in verdicts if times[v.prompt] == 1}


def compare(
    before: Sequence[Verdict], after: Sequence[Verdict], seed: int = 0, resamples: int = 2000
) -> JsonObject:
    """Compare two runs; prompts of only one of them are left out and counted.

    Returns:
      The result of `paired_difference` (after - before), and "mcnemar": {"strict", "loose"} with
      "before_only", "after_only" and "p" at the prompt level, over the prompts with one response on
      both sides; "left_out" is the number of other prompts, and a mode is absent if it is all of
      them. "prompts" and "unpaired" count the shared and the other prompts.

    Raises:
      ValueError: no prompt in common.
    """
    # Result files of the release have no key: prompts are matched by their text.
    sides = [[dataclasses.replace(v, key="") for v in side] for side in (before, after)]
    common = {v.prompt for v in sides[0]} & {v.prompt for v in sides[1]}
    if not common:
        raise ValueError(
            "compare: expected two runs on the same prompts, got no prompt in common; evaluate both"
            " on one prompts file"
        )
    # Counted, so that a comparison over a small part of the prompts is not taken for the whole.
    unpaired = len({v.prompt for side in sides for v in side} - common)
    sides = [[v for v in side if v.prompt in common] for side in sides]
    result = paired_difference(*sides, seed=seed, resamples=resamples)
    result["mcnemar"] = {}
    for mode in ("strict", "loose"):
        first, second = (_prompts_passed(side, mode) for side in sides)
        once = first.keys() & second.keys()
        if not once:
            continue
        lost = sum(first[prompt] and not second[prompt] for prompt in once)
        won = sum(second[prompt] and not first[prompt] for prompt in once)
        result["mcnemar"][mode] = {
            "before_only": lost,
            "after_only": won,
            "p": mcnemar(lost, won),
            "left_out": len(common) - len(once),
        }
    return {**result, "prompts": len(common), "unpaired": unpaired}


def format_comparison(result: JsonObject) -> str:
    """Return a comparison as a plain text table, in points."""
    lines = [f"{'after - before, points':<47} {'':>6}  95% interval"]
    entries = [(name, result[name]) for name in METRICS]
    for family in ("categories", "types"):
        entries += [(f"  {name}", entry["strict"]) for name, entry in result[family].items()]
    for name, entry in entries:
        value, low, high = (100 * entry[part] for part in ("value", "low", "high"))
        lines.append(f"{name:<47} {value:+6.1f}  [{low:+6.1f}, {high:+6.1f}]")
    for mode, test in result["mcnemar"].items():
        left_out = f"; {test['left_out']} prompts with several responses left out"
        lines.append(
            f"McNemar, prompts, {mode}: only before {test['before_only']}, only after "
            f"{test['after_only']}, p = {test['p']:.4g}{left_out if test['left_out'] else ''}"
        )
    if result["unpaired"]:
        lines.append(f"{result['unpaired']} prompts are in one of the runs only")
    return "\n".join(lines)
