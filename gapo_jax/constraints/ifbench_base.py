"""What the IFBench types share: conflicts, and the types whose argument is one number."""

from __future__ import annotations

import functools
from typing import ClassVar

from gapo_jax.constraints.base import ConstraintType, counted, pick, shuffled
from gapo_jax.constraints.fields import IFBENCH, IFEVAL

# Types that dictate the whole text: they stand beside nothing but lengths and letters.
WHOLE = frozenset(
    name
    for name in IFBENCH
    if name.startswith(("custom:", "repeat:"))
    or name.split(":")[1]
    in """options newline no_whitespace alphabet vowel consonants prime_lengths odd_even_syllables
    words_japanese line_indent title_case sentence_words""".split()
)


class IFBenchType(ConstraintType):
    """A type of IFBench; the release has no table of conflicts, so this one is ours."""

    @functools.cached_property
    def conflicts(self) -> frozenset[str]:
        """Every type for one that dictates the whole text, else those and the type itself."""
        if self.id in WHOLE:
            return frozenset((*IFEVAL, *IFBENCH))
        return WHOLE | {self.id}


class CountType(IFBenchType):
    """A type whose one argument is a number that a count of the response has to meet.

    Attributes:
      field: name of the argument; `demand`: "at least", "at most" or "exactly".
      noun: what is counted, for the phrasings' {things}; `low`, `high`: numbers worth asking for;
        `start`: range of numbers to ask for where there is no response yet.
    """

    field: ClassVar[str]
    demand: ClassVar[str] = "at least"
    noun: ClassVar[str]
    low: ClassVar[int] = 1
    high: ClassVar[int] = 10_000
    start: ClassVar[tuple[int, int]] = (2, 6)

    def count(self, response: str) -> int:
        """Return the response's count, as the official checker counts."""
        raise NotImplementedError

    def fields(self, kwargs):
        number = kwargs[self.field]
        return {"n": number, "things": counted(number, self.noun)}

    def measure(self, kwargs, response):
        number = kwargs[self.field]
        if self.demand == "at most":
            return self.count(response), "less than", number + 1
        return self.count(response), self.demand, number

    def _range(self, value: int, satisfied: bool) -> list[int]:
        spread = max(2, value // 4)
        if self.demand == "exactly":
            numbers = [value] if satisfied else [value - 1, value + 1, value - 2, value + 2]
        elif (self.demand == "at least") == satisfied:
            numbers = list(range(value - spread + 1, value + 1))
            numbers = numbers if satisfied else [number - 1 for number in numbers]
        else:
            numbers = list(range(value, value + spread))
            numbers = numbers if satisfied else [number + 1 for number in numbers]
        return [number for number in numbers if self.low <= number <= self.high]

    def propose(self, rng, response, satisfied, words, task):
        if response is None:
            return {self.field: int(rng.integers(*self.start))}
        value = self.count(response)
        numbers = self._range(value, satisfied)
        if not numbers and self.demand == "at least" and not satisfied:
            numbers = [self.low]  # far below what is worth asking for
        return {self.field: pick(rng, numbers)} if numbers else None

    def near_misses(self, rng, kwargs, response, words):
        for number in shuffled(rng, self._range(self.count(response), False)):
            yield {self.field: number}
