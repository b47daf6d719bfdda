"""What a constraint type is: it describes itself, checks a response, and may make prompts.

`ConstraintType` is enough to verify and to reward. A `TrainableType` makes training prompts too: it
has phrasings, and `propose`, which suggests arguments near a response. Whether a response satisfies
an instance is decided by `check` alone, never by the proposal. Random choices take a numpy
Generator.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, TypeVar

import numpy as np

from gapo_jax.constraints import ifeval_checks, verdicts
from gapo_jax.constraints.fields import FIELDS, Kwargs, clean_kwargs
from gapo_jax.constraints.text import final_answer
from gapo_jax.records import Constraint, JsonObject

T = TypeVar("T")
Phrasing = str | Mapping[str, str]  # a template, or one template per relation
Probe = tuple[Kwargs, str, str]  # arguments, a satisfying text, a violating text
_ATTEMPTS = 12


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return one of the items."""
    return items[int(rng.integers(len(items)))]


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """Return the items in random order."""
    return [items[i] for i in rng.permutation(len(items))]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 word", "2 words"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def quoted(words: Sequence[str], link: str = "and") -> str:
    """Return `"a"`, `"a" and "b"` or `"a", "b" and "c"`, with another link word if given."""
    marked = [f'"{word}"' for word in words]
    return marked[0] if len(marked) == 1 else f"{', '.join(marked[:-1])} {link} {marked[-1]}"


class ConstraintType:
    """One type of constraint, as much of it as verifying needs.

    Attributes:
      id: the instruction id, `group:name`.
      probes: examples that differ in nothing but what the type is about; `visibility` reads them.
        A type without probes counts as visible.
      difference: in a few words, what the texts of `probes` differ in, for messages.
      siblings: ids of related types. A type without arguments has no near miss of its own:
        `registry.modify` takes an instance of a sibling instead.
    """

    id: str
    probes: tuple[Probe, ...] = ()
    difference: str = ""
    siblings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The short name: `title` for `detectable_format:title`."""
        return self.id.split(":")[-1]

    @property
    def train_styles(self) -> tuple[int, ...]:
        """Style numbers that training prompts use."""
        return (0,)

    @property
    def heldout_styles(self) -> tuple[int, ...]:
        """Style numbers of evaluation prompts."""
        return (0,)

    @property
    def has_arguments(self) -> bool:
        """Whether instances differ; a plug-in type is taken to have arguments."""
        return bool(FIELDS.get(self.id, True))

    @property
    def can_sample(self) -> bool:
        """Whether prompts can be made with the type: it has `sample` and `modify`."""
        return hasattr(self, "sample") and hasattr(self, "modify")

    # Twice the same type in one prompt contradicts itself or says the same thing again.
    @functools.cached_property
    def conflicts(self) -> frozenset[str]:
        """Ids that must not occur in one prompt with this type; a type excludes itself."""
        return frozenset((self.id,))

    def describe(self, constraint: Constraint, style: int = 0) -> str:
        """Return the constraint as a sentence, in one of the styles."""
        return self.id

    def check(self, constraint: Constraint, response: str, prompt: str = "") -> bool:
        """Return the strict verdict on a response, whose thinking does not count.

        No built-in type reads the prompt.
        """
        return verdicts.follows(self.id, constraint.kwargs, final_answer(response))

    def shortfall(self, constraint: Constraint, response: str) -> float:
        """Return how far a violating response is from satisfying the constraint, in (0, 1].

        1 for a type without degrees.
        """
        return 1.0


class TrainableType(ConstraintType):
    """A type that training prompts can be made of; a subclass defines phrasings and `propose`.

    Attributes:
      train, heldout: phrasings for training and for evaluation only, each a format string over
        `fields(kwargs)`, or one per relation.
      relation: name of the relation field, or None.
      excludes: ids of other types that must not stand in one prompt with this one.
    """

    train: ClassVar[tuple[Phrasing, ...]]
    heldout: ClassVar[tuple[Phrasing, ...]]
    relation: ClassVar[str | None] = None
    excludes: ClassVar[tuple[str, ...]] = ()

    @property
    def train_styles(self) -> tuple[int, ...]:
        """Style numbers that training prompts use."""
        return tuple(range(len(self.train)))

    @property
    def heldout_styles(self) -> tuple[int, ...]:
        """Style numbers kept for evaluation; none of them is a training style."""
        return tuple(range(len(self.train), len(self.train) + len(self.heldout)))

    @functools.cached_property
    def conflicts(self) -> frozenset[str]:
        """Ids that must not occur in one prompt with this type: the release's, or `excludes`."""
        own = frozenset((self.id, *self.excludes))
        return ifeval_checks.conflicts().get(self.id, own)

    def clean(self, kwargs: Kwargs) -> JsonObject:
        """Return valid arguments in their normal form, nulls dropped."""
        if self.id in FIELDS:
            return clean_kwargs(self.id, kwargs)
        return {key: value for key, value in kwargs.items() if value is not None}

    def follows(self, kwargs: Kwargs, response: str) -> bool:
        """Return whether a response satisfies the instance with these arguments."""
        return self.check(Constraint(self.id, kwargs), response)

    def describe(self, constraint: Constraint, style: int = 0) -> str:
        """Return the constraint as a sentence, in one of the styles.

        Raises:
          ValueError: no such style, or invalid arguments.
        """
        phrasings = self.train + self.heldout
        if not 0 <= style < len(phrasings):
            raise ValueError(
                f"style of {self.id}: expected 0 to {len(phrasings) - 1}, got {style}; training"
                f" styles are {self.train_styles}, held-out styles {self.heldout_styles}"
            )
        # Rows of public sets carry nulls and whole floats; the sentence must not show either.
        kwargs = self.clean(constraint.kwargs)
        phrasing = phrasings[style]
        if not isinstance(phrasing, str):
            phrasing = phrasing[kwargs[str(self.relation)]]
        return phrasing.format(**self.fields(kwargs))

    def fields(self, kwargs: Kwargs) -> JsonObject:
        """Return what the phrasings may name; subclasses add counted nouns and quoted words."""
        return dict(kwargs)

    def propose(
        self,
        rng: np.random.Generator,
        response: str | None,
        satisfied: bool,
        words: Sequence[str],
        task: str | None,
    ) -> JsonObject | None:
        """Suggest arguments that the response probably satisfies (or violates), or None.

        Without a response, suggest something that a short answer can do. A type without arguments
        has only one instance.
        """
        return {}

    def near_misses(
        self,
        rng: np.random.Generator,
        kwargs: Kwargs,
        response: str,
        words: Sequence[str],
    ) -> Iterator[JsonObject]:
        """Yield small changes of the arguments, in random order; `modify` takes the first one that
        the response violates."""
        return iter(())

    def measure(self, kwargs: Kwargs, response: str) -> tuple[int, str, int] | None:
        """Return (value of the response, relation, number asked for), or None for a type without
        degrees; the relation is "at least", "less than" or "exactly"."""
        return None

    def shortfall(self, constraint: Constraint, response: str) -> float:
        """Return how far a violating response is from satisfying the constraint, in (0, 1].

        The missing (or surplus) count as a share of the larger of count and number; 1 for a type
        without degrees.
        """
        measured = self.measure(self.clean(constraint.kwargs), final_answer(response))
        if measured is None:
            return 1.0
        value, relation, number = measured
        # At the border of "less than" the value is one too large, not zero: hence the + 1.
        gaps = {"at least": number - value, "less than": value - number + 1}
        gap = max(1, gaps.get(relation, abs(value - number)))
        return min(1.0, gap / max(value, number, 1))

    def sample(
        self,
        rng: np.random.Generator,
        *,
        response: str | None = None,
        satisfied: bool | None = None,
        words: Sequence[str] = (),
        task: str | None = None,
    ) -> Constraint | None:
        """Draw an instance, verified by `check` where a response is given.

        Args:
          rng: numpy Generator.
          response: a text that the instance must satisfy or violate; numbers lie near its own.
          satisfied: which of the two; None with a response tosses a coin first.
          words: candidate keywords, preferably from other responses to the same task (words from
            elsewhere would be off topic and give the violated instances away).
          task: the task's text, for types that use it.

        Returns:
          The instance, or None if the type has no such instance for this response.

        Raises:
          ValueError: `satisfied` without a response.
        """
        if response is None:
            if satisfied is not None:
                raise ValueError("sample: satisfied= needs a response to verify, got none")
            kwargs = self.propose(rng, None, True, words, task)
            return None if kwargs is None else Constraint(self.id, kwargs)
        # The arguments come from what will be verified, so thinking is left out here already: a
        # keyword from the thinking would hardly ever hold.
        answer = final_answer(response)
        holds = bool(rng.integers(2)) if satisfied is None else satisfied
        # A proposal is a guess (the official counts have corners that `propose` does not repeat),
        # so a few are tried; without arguments every try would be the same.
        for _ in range(_ATTEMPTS if self.has_arguments else 1):
            kwargs = self.propose(rng, answer, holds, words, task)
            if kwargs is None:
                return None
            if self.follows(kwargs, answer) == holds:
                return Constraint(self.id, kwargs)
        return None

    def modify(
        self,
        constraint: Constraint,
        response: str,
        rng: np.random.Generator,
        words: Sequence[str] = (),
        *,
        task: str | None = None,
    ) -> Constraint | None:
        """Change the constraint into one that the response violates: f_modify of GAPO, section 3.2.

        The nearest change comes first (another number, the opposite relation, one word exchanged),
        then another instance of the type. `registry.modify` goes on to related types.

        Returns:
          A violated constraint of this type that differs from the given one, or None.
        """
        answer = final_answer(response)
        before = self.clean(constraint.kwargs)
        for kwargs in self.near_misses(rng, before, answer, words):
            # A near miss may be the constraint itself again, or one that happens to hold as well.
            if self.clean(kwargs) != before and not self.follows(kwargs, answer):
                return Constraint(self.id, kwargs)
        if not self.has_arguments:
            return None
        other = self.sample(rng, response=answer, satisfied=False, words=words, task=task)
        changed = other is not None and self.clean(other.kwargs) != before
        return other if changed else None
