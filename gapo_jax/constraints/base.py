"""What every constraint type can do: be described, sampled, bent into a near miss, and checked.

A type is a subclass of `ConstraintType` with its phrasings and `propose`, which suggests keyword
arguments near a response; whether an instance really is satisfied or violated is never believed
from the proposal but proven by the official verdict. Random choices take a numpy Generator.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from gapo_jax.constraints import official
from gapo_jax.records import Constraint

T = TypeVar("T")
Phrasing = str | Mapping[str, str]  # a template, or one template per relation
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
    """One type of constraint; a subclass fills in the class variables and `propose`.

    Attributes:
      id: the IFEval instruction id.
      train, heldout: phrasings for training and for evaluation only, each a format string over
        `fields(kwargs)`, or one per relation.
      relation: name of the relation field, or None.
      siblings: ids of related types; a type without arguments has no near miss of its own, so
        `modify` goes to an instance of one of these.
      probes: (kwargs, satisfying text, violating text) that differ in nothing but what the type
        is about; `visibility` reads them, and a test proves them.
      difference: in a word, what `probes` differ in, for messages.
    """

    id: ClassVar[str]
    train: ClassVar[tuple[Phrasing, ...]]
    heldout: ClassVar[tuple[Phrasing, ...]]
    relation: ClassVar[str | None] = None
    siblings: ClassVar[tuple[str, ...]] = ()
    probes: ClassVar[tuple[tuple[Mapping[str, Any], str, str], ...]]
    difference: ClassVar[str]

    @property
    def name(self) -> str:
        """The short name: `title` for `detectable_format:title`."""
        return self.id.split(":")[1]

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
        """Ids that must not stand in one prompt with this type (the release's table)."""
        return official.conflicts()[self.id]

    def describe(self, constraint: Constraint, style: int) -> str:
        """Return the constraint as a sentence, in one of the styles.

        Raises:
          ValueError: no such style, or kwargs that do not fit the type.
        """
        phrasings = self.train + self.heldout
        if not 0 <= style < len(phrasings):
            raise ValueError(
                f"style of {self.id}: wanted 0 to {len(phrasings) - 1}"
                f" (train {self.train_styles}, held out {self.heldout_styles}), got {style}"
            )
        kwargs = official.clean_kwargs(self.id, constraint.kwargs)
        phrasing = phrasings[style]
        if not isinstance(phrasing, str):
            phrasing = phrasing[kwargs[str(self.relation)]]
        return phrasing.format(**self.fields(kwargs))

    def fields(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the phrasings may name; subclasses add counted nouns and quoted words."""
        return dict(kwargs)

    def check(self, constraint: Constraint, response: str, prompt: str = "") -> bool:
        """Return the strict official verdict. No IFEval type reads the prompt."""
        return official.follows(self.id, constraint.kwargs, response)

    def propose(
        self,
        rng: np.random.Generator,
        response: str | None,
        satisfied: bool,
        words: Sequence[str],
        task: str | None,
    ) -> dict[str, Any] | None:
        """Suggest kwargs that the response probably satisfies (or violates); None if there are
        none. Without a response, suggest something that a short answer can do. A type without
        arguments has only one instance."""
        return {}

    def near_misses(
        self,
        rng: np.random.Generator,
        kwargs: Mapping[str, Any],
        response: str,
        words: Sequence[str],
    ) -> Iterator[dict[str, Any]]:
        """Yield small changes of the kwargs, in random order; `modify` takes the first that the
        response violates."""
        return iter(())

    def measure(self, kwargs: Mapping[str, Any], response: str) -> tuple[int, str, int] | None:
        """Return (value of the response, relation, number wanted), or None for a type that holds
        or does not; the relation is "at least", "less than" or "exactly"."""
        return None

    def shortfall(self, constraint: Constraint, response: str) -> float:
        """Return how far the response is from satisfying the constraint: float in (0, 1].

        The missing (or surplus) count as a share of the larger of count and number; 1 for types
        that hold or do not. Meant for constraints that the response violates.
        """
        measured = self.measure(official.clean_kwargs(self.id, constraint.kwargs), response)
        if measured is None:
            return 1.0
        value, relation, number = measured
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
        """Draw an instance, proven by the verifier where a response is given.

        Args:
          rng: numpy Generator.
          response: a text that the instance must satisfy or violate; numbers lie near its own.
          satisfied: which of the two; None with a response tosses a coin first.
          words: candidate keywords, best from other responses to the same task (with words from
            elsewhere, being off topic would give the violated ones away).
          task: the task's text, for types that speak of it.

        Returns:
          The instance, or None if the type has none of the wanted kind for this response.

        Raises:
          ValueError: `satisfied` without a response.
        """
        if response is None:
            if satisfied is not None:
                raise ValueError("sample: satisfied= wants a response to be judged, got none")
            kwargs = self.propose(rng, None, True, words, task)
            return None if kwargs is None else Constraint(self.id, kwargs)
        wanted = bool(rng.integers(2)) if satisfied is None else satisfied
        for _ in range(_ATTEMPTS if official.FIELDS[self.id] else 1):
            kwargs = self.propose(rng, response, wanted, words, task)
            if kwargs is None:
                return None
            if official.follows(self.id, kwargs, response) == wanted:
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
        types: Sequence[str] | None = None,
    ) -> Constraint | None:
        """Bend the constraint into one that the response violates: GAPO's f_modify (section 3.2).

        The nearest change comes first: another number, the opposite relation, a swapped word;
        then another instance of the type; for a type without arguments an instance of a sibling
        type (`siblings`, limited to `types` where given).

        Returns:
          A constraint proven violated and different from the one given, or None.
        """
        before = official.clean_kwargs(self.id, constraint.kwargs)
        for kwargs in self.near_misses(rng, before, response, words):
            changed = official.clean_kwargs(self.id, kwargs) != before
            if changed and not official.follows(self.id, kwargs, response):
                return Constraint(self.id, kwargs)
        if official.FIELDS[self.id]:
            other = self.sample(rng, response=response, satisfied=False, words=words, task=task)
            if other is not None and official.clean_kwargs(self.id, other.kwargs) != before:
                return other
            return None
        from gapo_jax.constraints.registry import get

        for sibling in shuffled(rng, self.siblings):
            if types is None or sibling in types:
                other = get(sibling).sample(
                    rng, response=response, satisfied=False, words=words, task=task
                )
                if other is not None:
                    return other
        return None


def other_relation(relation: str) -> str:
    """Return the relation that is its negation at the same number."""
    return official.RELATIONS[1 - official.RELATIONS.index(relation)]


def threshold(
    rng: np.random.Generator,
    value: int,
    satisfied: bool,
    *,
    low: int,
    high: int,
    spread: int = 2,
    step: int = 1,
    relations: Sequence[str] = official.RELATIONS,
) -> tuple[str, int] | None:
    """Draw (relation, number) near a value: true of the value if `satisfied`, else false.

    "at least k" holds for k <= value, "less than k" for k > value. Numbers lie within `spread`
    of the border, in [low, high], multiples of `step` where one is near; the rule is the same on
    both sides, so that a number by itself does not tell which side it is on.

    Returns:
      The pair, or None where no number in range does it.
    """
    for relation in shuffled(rng, relations):
        below = (relation == "at least") == satisfied  # the wanted number is <= value
        lowest, highest = (value - spread + 1, value) if below else (value + 1, value + spread)
        if not below and highest < low:  # the whole window lies under the range, yet all of
            lowest, highest = low, low + spread - 1  # the range is beyond the value
        lowest, highest = max(lowest, low), min(highest, high)
        if lowest > highest:
            continue
        number = int(rng.integers(lowest, highest + 1))
        rounded = round(number / step) * step
        return relation, rounded if lowest <= rounded <= highest else number
    return None


def relation_near_misses(
    rng: np.random.Generator,
    relation: str,
    number: int,
    value: int,
    *,
    low: int,
    spread: int,
    step: int = 1,
) -> Iterator[tuple[str, int]]:
    """Yield (relation, number) that `value` violates if (relation, number) held for it: the
    opposite relation at the same number, or another number past the value, in random order."""
    moved = threshold(
        rng,
        value,
        False,
        low=low,
        high=max(value, low) + spread,
        spread=spread,
        step=step,
        relations=(relation,),
    )
    for candidate in shuffled(rng, [(other_relation(relation), number), moved]):
        if candidate is not None and candidate[1] >= low:
            yield candidate
