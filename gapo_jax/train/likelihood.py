"""How likely responses are under the frozen start: what a policy has paid in fluency.

Text that no longer looks like the starting model's has a low likelihood under it, whatever the
reward says. The pass is the reference's of the online methods at temperature 1, over batches of one
shape.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from gapo_jax.train.build import Models
from gapo_jax.train.forward import PolicySpec, reference_part, response_logprobs
from gapo_jax.types import Params, Rollout


@functools.partial(jax.jit, static_argnames="spec")
def _logprobs(ref_params: Params, rollout: Rollout, spec: PolicySpec) -> jax.Array:
    return response_logprobs(spec, ref_params, reference_part(spec, ref_params), rollout)[0]


def start_logprobs(models: Models, rollout: Rollout, batch_size: int) -> np.ndarray:
    """Return the mean log-probability of each response's tokens under `ref_params`, float64 [B].

    Args:
        models: of the run.
        rollout: the responses, numpy or device arrays; their end-of-sequence token counts.
        batch_size: rows at a time; the last batch is filled up with copies.
    """
    spec = dataclasses.replace(models.spec, temperature=1.0)
    mask_BR = np.asarray(rollout.response_mask_BR)
    rows = len(mask_BR)
    sums_B = np.zeros(rows)
    for start in range(0, rows, batch_size):
        picked = np.arange(start, start + batch_size) % rows
        batch = jax.tree.map(lambda leaf, picked=picked: np.asarray(leaf)[picked], rollout)
        logprobs_BR = np.asarray(_logprobs(models.ref_params, batch, spec), np.float64)
        keep = min(batch_size, rows - start)
        sums_B[start : start + keep] = logprobs_BR[:keep].sum(axis=1)
    return sums_B / np.maximum(mask_BR.sum(axis=1), 1)
