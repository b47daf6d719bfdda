"""Types that count: a number near what a response has, and near misses of it.

A number lies close to the count of the response it was made for, by the same rule on both sides, so
that a number by itself does not reveal whether it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from gapo_jax.constraints.base import TrainableType, pick, shuffled
from gapo_jax.constraints.fields import RELATIONS, Kwargs
from gapo_jax.records import JsonObject


class RelationType(TrainableType):
    """A type that asks for a count of "at least" or "less than" a number.

    Attributes:
      number: name of the field of the number.
      low, high: the range of numbers to ask for.
      step: numbers are multiples of it where one is near.
    """

    number: ClassVar[str]
    low: ClassVar[int] = 1
    high: ClassVar[int] = 200
    step: ClassVar[int] = 1

    def count(self, kwargs: Kwargs, response: str) -> int:
        """Return what is counted in a response; `kwargs` say of what, if the type has such a
        field."""
        raise NotImplementedError

    def spread(self, count: int) -> int:
        """Return how far from the count of a response a number may lie."""
        return 2

    def draw(self, rng: np.random.Generator, relation: str, words: Sequence[str]) -> JsonObject:
        """Return arguments that a short answer can satisfy, without the relation."""
        raise NotImplementedError

    def measure(self, kwargs: Kwargs, response: str) -> tuple[int, str, int]:
        """Return (count, relation, number asked for)."""
        return self.count(kwargs, response), kwargs[str(self.relation)], kwargs[self.number]

    def propose(self, rng, response, satisfied, words, task):
        """Suggest a relation and a number near the count of the response."""
        if response is None:
            relation = pick(rng, RELATIONS)
            return {**self.draw(rng, relation, words), str(self.relation): relation}
        return self.near(rng, {}, response, satisfied)

    def near(
        self, rng: np.random.Generator, kwargs: Kwargs, response: str, satisfied: bool
    ) -> JsonObject | None:
        """Return `kwargs` with a relation and a number that the response satisfies or violates."""
        count = self.count(kwargs, response)
        bound = threshold(
            rng, count, satisfied,
            low=self.low, high=self.high, spread=self.spread(count), step=self.step,
        )  # fmt: skip
        return None if bound is None else self._with(kwargs, *bound)

    def near_misses(self, rng, kwargs, response, words):
        """Yield the opposite relation and a number past the count, in random order."""
        count = self.count(kwargs, response)
        for bound in relation_near_misses(
            rng, kwargs[str(self.relation)], kwargs[self.number], count,
            low=self.low, spread=self.spread(count), step=self.step,
        ):  # fmt: skip
            yield self._with(kwargs, *bound)

    def _with(self, kwargs: Kwargs, relation: str, number: int) -> JsonObject:
        return {**kwargs, self.number: number, str(self.relation): relation}


class AtLeastType(TrainableType):
    """A type that asks for at least a number of something; `number` names the field."""

    number: ClassVar[str]

    def count(self, response: str) -> int:
        """Return what is counted in a response."""
        raise NotImplementedError

    def measure(self, kwargs: Kwargs, response: str) -> tuple[int, str, int]:
        """Return (count, "at least", number asked for)."""
        return self.count(response), "at least", kwargs[self.number]

    def propose(self, rng, response, satisfied, words, task):
        """Suggest a number near the count of the response."""
        if response is None:
            return {self.number: int(rng.integers(1, 4))}
        count = self.count(response)
        # Only one or two more than there are: a far number would be an easy pair.
        if not satisfied:
            return {self.number: count + int(rng.integers(1, 3))}
        return {self.number: int(rng.integers(max(1, count - 1), count + 1))} if count else None

    def near_misses(self, rng, kwargs, response, words):
        """Yield the next two numbers above the count."""
        for step in shuffled(rng, (1, 2)):
            yield {self.number: self.count(response) + step}


def other_relation(relation: str) -> str:
    """Return the negation of a relation at the same number."""
    return RELATIONS[1 - RELATIONS.index(relation)]


def threshold(
    rng: np.random.Generator,
    value: int,
    satisfied: bool,
    *,
    low: int,
    high: int,
    spread: int = 2,
    step: int = 1,
    relations: Sequence[str] = RELATIONS,
) -> tuple[str, int] | None:
    """Draw (relation, number) near a value: true of the value if `satisfied`, else false.

    "at least k" holds for k <= value, "less than k" for k > value. Numbers lie within `spread`
    of the border, in [low, high], and are multiples of `step` where one is near. The rule is the
    same on both sides, so that a number by itself does not reveal its side.

    Returns:
      The pair, or None where no number in range qualifies.
    """
    for relation in shuffled(rng, relations):
        below = (relation == "at least") == satisfied  # the number must be <= value
        lowest, highest = (value - spread + 1, value) if below else (value + 1, value + spread)
        if not below and highest < low:  # the whole window lies under the range, yet all of
            lowest, highest = low, low + spread - 1  # the range is beyond the value
        lowest, highest = max(lowest, low), min(highest, high)
        if lowest > highest:
            continue
        # Round numbers are what people ask for; off the grid only where the window holds none.
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
    """Yield (relation, number) that `value` violates, given a pair that holds for it.

    These are the opposite relation at the same number and another number past the value, in random
    order.
    """
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
    # Both kinds in random order: with one of them always first, the relation alone or the number
    # alone would tell the violated prompt from the satisfied one.
    for candidate in shuffled(rng, [(other_relation(relation), number), moved]):
        if candidate is not None and candidate[1] >= low:
            yield candidate
