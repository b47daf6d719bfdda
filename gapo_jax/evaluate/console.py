"""What a finished run prints: accuracy before and after, sample texts, the paths of its files."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping

from gapo_jax.records import Json

# The held-out set of the prompts that the user gives (`config.eval.prompts`).
GIVEN = "given_prompts"
_LEVELS = {"instruction_strict": "per instruction", "prompt_strict": "per prompt"}
# Characters of these kinds are shown as escapes: control characters, which a terminal obeys, line
# and paragraph separators, and halves of surrogate pairs, which cannot be printed.
_ESCAPED = ("Cc", "Zl", "Zp", "Cs")
# Marks that change the direction of the text around them.
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Return a text that is safe to print: a terminal shows it and obeys nothing in it.

    Control characters other than a newline or a tab appear as escapes such as `\\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if (unicodedata.category(char) in _ESCAPED and char not in "\n\t") or char in _DIRECTION
        else char
        for char in text
    )


def _cell(entry: Mapping[str, float], sign: str = "") -> str:
    value, low, high = (100 * entry[name] for name in ("value", "low", "high"))
    return f"{value:{sign}5.1f} [{low:{sign}5.1f}, {high:{sign}5.1f}]"


def levels(set_name: str) -> dict[str, str]:
    """Return the accuracies to show of a held-out set, each with its label.

    Given prompts, which may be those of IFBench, have the loose one too, as IFBench reports it.
    """
    return _LEVELS | ({"prompt_loose": "per prompt, loose"} if set_name == GIVEN else {})


def accuracy_table(summary: Json) -> str:
    """Return the table of held-out accuracy, strict, in percent with 95% intervals."""
    head = f"{'held-out constraint accuracy (strict, %)':<42}"
    lines = [f"{head} {'before':<22} {'after':<22} change"]
    for name in summary["before"]:
        for level, label in levels(name).items():
            cells = [_cell(summary[side][name][level]) for side in ("before", "after")]
            change = _cell(summary["difference"][name][level], "+")
            title = f"{name.replace('_', ' ').replace('heldout', 'held-out')}, {label}"
            lines.append(f"{title:<42} {cells[0]:<22} {cells[1]:<22} {change}")
    return "\n".join(lines)


def reward_table(summary: Json) -> str:
    """Return the table of the mean held-out reward of each source, with 95% intervals."""

    def cell(entry: Mapping[str, float], sign: str = "") -> str:
        return "{value:{s}.3g} [{low:{s}.3g}, {high:{s}.3g}]".format(s=sign, **entry)

    lines = [f"{'held-out mean reward':<42} {'before':<22} {'after':<22} change"]
    for name, before in summary["before"].items():
        cells = cell(before), cell(summary["after"][name])
        change = cell(summary["difference"][name], "+")
        lines.append(f"{name:<42} {cells[0]:<22} {cells[1]:<22} {change}")
    return "\n".join(lines)


def _block(label: str, text: str) -> str:
    body = textwrap.indent(printable(text.strip()) or "(empty)", "    ")
    return f"  {label}:\n{body}"


def sample_texts(summary: Json) -> str:
    """Return the sample prompts, each with the texts before and after and their verdicts."""
    parts = []
    for sample in summary["samples"]:
        marks = {
            side: ", ".join(
                f"{name.split(':')[-1]} {'holds' if held else 'violated'}"
                for name, held in zip(
                    sample["constraints"], sample[f"verdicts_{side}"], strict=True
                )
            )
            for side in ("before", "after")
        }
        lines = [_block("prompt", sample["prompt"])]
        for side in ("before", "after"):
            label = f"{side} ({marks[side]})" if marks[side] else side
            lines.append(_block(label, sample[side]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def discriminator_line(on_pairs: Mapping[str, Mapping[str, float]]) -> str:
    """Return how well the discriminator separates the sides of held-out pairs, first and last."""
    parts = [
        f"{label} {100 * on_pairs['first'][name]:.0f}% -> {100 * on_pairs['last'][name]:.0f}%"
        for name, label in (("accuracy", "right"), ("pair_order", "accepted above rejected"))
    ]
    return f"discriminator on held-out pairs, first -> last: {', '.join(parts)}"


def heldout_table(summary: Json) -> str:
    """Return the table of what was measured on held-out rows, before and after."""
    before, after = (summary["heldout"][side] for side in ("before", "after"))
    rows = summary["rows"]
    head = f"held-out rows ({rows['heldout']} of {rows['source']})"
    width = max(42, len(head))
    lines = [f"{head:<{width}} {'before':>10} {'after':>10} {'change':>10}"]
    for name in (name for name in before if name in after):
        change = after[name] - before[name]
        lines.append(f"{name:<{width}} {before[name]:10.4g} {after[name]:10.4g} {change:+10.4g}")
    return "\n".join(lines)


def print_summary(summary: Json) -> None:
    """Print the outcome of a run: table, samples, relative change of the weights, paths."""
    if "heldout" in summary:
        print(f"\n{heldout_table(summary)}\n")
        left_out = summary["rows"]["left_out"]
        print(f"learned from {summary['rows']['train']} examples; {left_out} rows left out")
        print(f"the export is the network after {summary['exported_step']} updates")
    elif summary["method"] != "discriminator":  # which leaves the generator unchanged
        if summary["before"]:
            print(f"\n{accuracy_table(summary)}\n")
        if rewards := summary.get("rewards"):
            print(f"\n{reward_table(rewards)}\n")
        print(f"{sample_texts(summary)}\n")
    # Summaries of earlier versions call it "judge".
    if on_pairs := summary.get("discriminator", summary.get("judge")):
        print(discriminator_line(on_pairs))
    moved = ", ".join(f"{name} {value:.2e}" for name, value in summary["relative_change"].items())
    print(f"relative change of the weights: {moved}")
    total = sum(summary["time_s"].values())
    print(f"wall time: {total:.0f} s, peak memory {summary['peak_memory_gb']:.1f} GB")
    print(f"report: {summary['report']}")
    if "export" in summary:
        print(f"exported Hugging Face folder: {summary['export']}")
