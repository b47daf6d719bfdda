"""The constraint engine: verifiable constraints that label, reward and evaluate responses.

`check` and `check_loose` give the official verdicts of IFEval and IFBench, and ours on product
facts; `get(id)` returns a type that can
describe, sample, modify and check; `compose_prompt` writes prompts; `make_pair` makes verified
preferential prompts (GAPO section 3.2); `check_visibility` finds the types that a discriminator's
tokenizer cannot see. Random choices take a numpy Generator.
"""

from gapo_jax.constraints.augment import KINDS, difficulty, holds, make_pair, verify_pair
from gapo_jax.constraints.base import ConstraintType
from gapo_jax.constraints.registry import check, check_loose, conflict, get, resolve, types
from gapo_jax.constraints.template import compose_prompt
from gapo_jax.constraints.visibility import VisibilityReport, check_visibility, enforce
from gapo_jax.constraints.words import content_words

__all__ = [
    "KINDS",
    "ConstraintType",
    "VisibilityReport",
    "check",
    "check_loose",
    "check_visibility",
    "compose_prompt",
    "conflict",
    "content_words",
    "difficulty",
    "enforce",
    "get",
    "holds",
    "make_pair",
    "resolve",
    "types",
    "verify_pair",
]
