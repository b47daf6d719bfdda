"""Letter key for array shapes, and the values that cross module borders.

Array names end in one capital letter per axis (`logits_BTV`):

| letter | axis | letter | axis |
|---|---|---|---|
| B | batch rows | D | model width |
| T | all tokens of a row, T = P + R | N | attention heads |
| P | prompt tokens, padded on the left | K | key/value heads |
| R | response tokens, padded on the right | H | head width |
| V | vocabulary | F | feed-forward width |
| L | layers | S | cache slots |
| G | samples of one prompt, sides of an example | C | tokens of one chunk |
| E | rank of an adapter (LoRA) | A | prompts or examples, of G rows each |

Layout of a row: the prompt is padded on the left to P and the response on the right to R, so that
response token r always sits in column P + r and is predicted by the hidden state in column
P + r - 1. Masks are int32 with 1 for a real token. A response mask covers the tokens up to and
including the end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import flax.struct
import jax

from gapo_jax.records import (
    ACCEPTED,
    GENERATED,
    REJECTED,
    Constraint,
    Preference,
    PreferentialPair,
    PreferentialResponses,
    PromptRow,
)

__all__ = [
    "ACCEPTED",
    "GENERATED",
    "REJECTED",
    "Constraint",
    "Experience",
    "Metrics",
    "Params",
    "Preference",
    "PreferentialPair",
    "PreferentialResponses",
    "PromptRow",
    "Rollout",
]

# The parameters of a network: names to arrays, or to the parameters of a part, at any depth. The
# leaves of a tree that only describes one are `jax.ShapeDtypeStruct`, shardings or None.
Params: TypeAlias = Mapping[str, Any]

# Float32 scalars under the names that metrics.jsonl has: what a loss or step measured.
Metrics: TypeAlias = dict[str, jax.Array]


class Rollout(flax.struct.PyTreeNode):
    """Sampled responses. `tokens_BT`, `mask_BT` int32; `response_mask_BR` int32;
    `logprobs_BR` float32, of the sampled tokens at the sampling temperature."""

    tokens_BT: jax.Array
    mask_BT: jax.Array
    response_mask_BR: jax.Array
    logprobs_BR: jax.Array


class Experience(flax.struct.PyTreeNode):
    """A rollout made ready for policy updates: one row per response, all float32 but the tokens.

    `old_logprobs_BR` and `ref_logprobs_BR` come from the training forward at the sampling
    temperature; `values_BR` and `returns_BR` from the critic and GAE, None without a critic.
    `response_mask_BR` covers the tokens to learn from. `rewards_B` are the rewards themselves.
    `counted_B` (int32; None: every row) marks the rows that a mean over rows divides by: a response
    that is masked for being cut off is one of them, a row that only fills the static shape is not.
    `sampled_logprobs_BR` are the sampler's own log-probs, where they are to weigh the tokens
    (`config.sampling.weights`).
    """

    tokens_BT: jax.Array
    mask_BT: jax.Array
    response_mask_BR: jax.Array
    old_logprobs_BR: jax.Array
    ref_logprobs_BR: jax.Array
    advantages_BR: jax.Array
    values_BR: jax.Array | None = None
    returns_BR: jax.Array | None = None
    rewards_B: jax.Array | None = None
    counted_B: jax.Array | None = None
    sampled_logprobs_BR: jax.Array | None = None
