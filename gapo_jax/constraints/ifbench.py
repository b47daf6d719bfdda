"""The 58 types of IFBench (arXiv 2507.02833), which are verified and described, never trained on.

IFBench measures how far obedience carries over to constraints that training has not seen. So its
types have no `sample`, no `modify` and no phrasings for training: `describe` gives the official
wording, `check` the official verdict, and `registry.resolve` refuses them as training types.
"""

from __future__ import annotations

from gapo_jax.constraints import ifbench_checks, verdicts
from gapo_jax.constraints.base import ConstraintType
from gapo_jax.constraints.fields import IFBENCH
from gapo_jax.records import Constraint


class IFBenchType(ConstraintType):
    """A type of IFBench, by its id."""

    def __init__(self, type_id: str) -> None:
        self.id = type_id

    def describe(self, constraint: Constraint, style: int = 0) -> str:
        """Return the official wording, the only style.

        Raises:
          ValueError: invalid arguments.
        """
        return ifbench_checks.describe(self.id, verdicts.as_items(constraint.kwargs))


# One class for all: the package holds the checker and the wording of each, by its id.
TYPES = tuple(IFBenchType(type_id) for type_id in IFBENCH)
