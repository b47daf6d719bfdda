"""Prompt text: a task and its constraints as one natural request.

The form is drawn once (`draw_style`) and applied any number of times (`render`), so that the two
prompts of a preferential pair share order, phrasing, layout and connectives except for the edited
constraint: nothing else may distinguish them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gapo_jax.constraints.base import pick
from gapo_jax.constraints.registry import get
from gapo_jax.records import Constraint

PHRASINGS = ("train", "heldout")

# Separators: between task and constraints, and between constraints.
_LAYOUTS = ((" ", " "), ("\n", "\n"), ("\n", " "), ("\n\n", " "))
# Openings of the second and later constraints; no opening is twice as likely as any other.
_CONNECTIVES = {
    "train": ("", "", "Also, ", "In addition, "),
    "heldout": ("", "", "Besides, ", "On top of that, "),
}


@dataclasses.dataclass(frozen=True)
class PromptStyle:
    """The form of one prompt: style and opening of each constraint, their order, the separators."""

    styles: tuple[int, ...]
    order: tuple[int, ...]
    layout: tuple[str, str]
    connectives: tuple[str, ...]

    def with_style(self, index: int, style: int) -> PromptStyle:
        """Return the form with another style for constraint `index`."""
        styles = self.styles[:index] + (style,) + self.styles[index + 1 :]
        return dataclasses.replace(self, styles=styles)

    def without(self, index: int) -> PromptStyle:
        """Return the form with constraint `index` left out and the others as they are."""
        return dataclasses.replace(
            self,
            styles=self.styles[:index] + self.styles[index + 1 :],
            connectives=self.connectives[:index] + self.connectives[index + 1 :],
            # Places behind the gap move up by one.
            order=tuple(i - (i > index) for i in self.order if i != index),
        )


def styles_of(type_id: str, phrasing: str) -> tuple[int, ...]:
    """Return the style numbers of a type for "train" or "heldout".

    Raises:
      ValueError: another phrasing.
    """
    if phrasing not in PHRASINGS:
        raise ValueError(f"phrasing: expected one of {PHRASINGS}, got {phrasing!r}")
    kind = get(type_id)
    return kind.train_styles if phrasing == "train" else kind.heldout_styles


def draw_style(
    constraints: Sequence[Constraint], rng: np.random.Generator, phrasing: str = "train"
) -> PromptStyle:
    """Draw a form for these constraints."""
    size = len(constraints)
    return PromptStyle(
        styles=tuple(pick(rng, styles_of(item.id, phrasing)) for item in constraints),
        order=tuple(int(i) for i in rng.permutation(size)),
        layout=pick(rng, _LAYOUTS),
        connectives=tuple(pick(rng, _CONNECTIVES[phrasing]) for _ in range(size)),
    )


def _joined(connective: str, sentence: str) -> str:
    if not connective:
        return sentence
    # "I" keeps its capital wherever it stands.
    first = sentence.split(" ", 1)[0]
    return connective + (sentence if first == "I" else sentence[0].lower() + sentence[1:])


def render(task: str, constraints: Sequence[Constraint], style: PromptStyle) -> str:
    """Return the prompt of a task and its constraints, in a form drawn for that number of them."""
    task = task.strip()
    if not constraints:
        return task
    # A task without a full stop would run into the first constraint on the same line.
    if task and task[-1] not in ".!?:;\"'”)" and style.layout[0] == " ":
        task += "."
    sentences = []
    for i in style.order:
        sentence = get(constraints[i].id).describe(constraints[i], style.styles[i])
        sentences.append(_joined(style.connectives[i] if sentences else "", sentence))
    return (task + style.layout[0] + style.layout[1].join(sentences)).strip()


def compose_prompt(
    task: str,
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
    phrasing: str = "train",
) -> str:
    """Return task and constraints as natural text: order, wording and layout drawn by `rng`.

    Args:
      task: the task's text T.
      constraints: C, in any order; none gives the task alone.
      rng: numpy Generator.
      phrasing: "train", or "heldout" for the wordings and connectives kept for evaluation.

    Raises:
      ValueError: another phrasing, an unknown type, or invalid arguments.
    """
    return render(task, constraints, draw_style(constraints, rng, phrasing))
