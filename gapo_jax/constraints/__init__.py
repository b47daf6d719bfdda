"""The constraint engine: verifiable constraints that label, reward and evaluate responses.

`check` and `check_loose` give the official verdicts of IFEval, IFTrain and IFBench, and verdicts
on product facts. `get(id)` returns a type, which describes and checks; a type that training prompts
are made with also samples and modifies. `compose_prompt` writes prompts; `make_pair` makes verified
preferential prompts (GAPO section 3.2); `check_visibility` finds the types that a discriminator's
tokenizer cannot see; `reward` is a reward function for TRL; `register` and `load_plugin` add types
of one's own. Nothing here loads JAX. Random choices take a numpy Generator.

Order of the modules, each of which imports only earlier ones: `fields`, `text`, `words`;
`ifeval_checks`, `iftrain_checks`, `ifbench_checks`, `product_checks`, `verdicts`; `base`,
`counting`, `ifeval_keywords`, `ifeval_lengths`, `ifeval_formats`, `ifeval_edges`,
`ifeval_whole_text`, `iftrain_words`, `iftrain_counts`, `iftrain_layout`, `ifbench`, `product`,
`plugins`, `registry`; `template`, `augment`, `visibility`, `verifiers`, `rows`, `trl_reward`.
"""

from gapo_jax.constraints.augment import KINDS, difficulty, holds, make_pair, verify_pair
from gapo_jax.constraints.base import ConstraintType, TrainableType
from gapo_jax.constraints.plugins import load_plugin, register
from gapo_jax.constraints.registry import (
    check,
    check_loose,
    conflict,
    get,
    modify,
    resolve,
    trainable,
    types,
)
from gapo_jax.constraints.template import compose_prompt
from gapo_jax.constraints.trl_reward import reward
from gapo_jax.constraints.visibility import VisibilityReport, check_visibility, enforce
from gapo_jax.constraints.words import content_words

__all__ = [
    "KINDS",
    "ConstraintType",
    "TrainableType",
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
    "load_plugin",
    "make_pair",
    "modify",
    "register",
    "resolve",
    "reward",
    "trainable",
    "types",
    "verify_pair",
]
