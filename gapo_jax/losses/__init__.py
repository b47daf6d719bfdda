"""Losses and estimators: pure functions of arrays and keyword arguments.

Token-level arrays and their mask go in; a float32 scalar and a dictionary of float32 metrics come
out. What stands at a masked place changes nothing, neither the value nor the gradient.
"""

from gapo_jax.losses.advantages import (
    gae,
    group_normalise,
    last_token_onehot,
    leave_one_out,
    token_rewards,
)
from gapo_jax.losses.discriminator import (
    bce_loss,
    binary_cross_entropy,
    bradley_terry_loss,
    class_metrics,
    gradient_penalty_loss,
)
from gapo_jax.losses.inverse_q import inverse_q_loss
from gapo_jax.losses.kl import adaptive_kl_coef, k1, k2, k3, kl_loss
from gapo_jax.losses.kto import kto_loss, mismatched_rows
from gapo_jax.losses.logprobs import chunked_logprobs
from gapo_jax.losses.masked import (
    aggregate,
    masked_fill,
    masked_mean,
    masked_variance,
    weighted_mean,
    whiten,
)
from gapo_jax.losses.policy import importance_weights, ppo_loss
from gapo_jax.losses.preference import (
    dpo_loss,
    log1mexp,
    orpo_loss,
    sequence_logprobs,
    sft_loss,
    simpo_loss,
)
from gapo_jax.losses.rpo import rpo_loss
from gapo_jax.losses.value import explained_variance, value_loss

__all__ = [
    "adaptive_kl_coef",
    "aggregate",
    "bce_loss",
    "binary_cross_entropy",
    "bradley_terry_loss",
    "chunked_logprobs",
    "class_metrics",
    "dpo_loss",
    "explained_variance",
    "gae",
    "gradient_penalty_loss",
    "group_normalise",
    "inverse_q_loss",
    "k1",
    "k2",
    "k3",
    "kl_loss",
    "kto_loss",
    "last_token_onehot",
    "leave_one_out",
    "log1mexp",
    "masked_fill",
    "masked_mean",
    "masked_variance",
    "mismatched_rows",
    "orpo_loss",
    "importance_weights",
    "ppo_loss",
    "rpo_loss",
    "sequence_logprobs",
    "sft_loss",
    "simpo_loss",
    "token_rewards",
    "value_loss",
    "weighted_mean",
    "whiten",
]
