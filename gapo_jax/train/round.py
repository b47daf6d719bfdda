"""What the phases of a round hand on: rollout, rewards, experience."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from gapo_jax.evaluate.accuracy import Verdict
from gapo_jax.train.discriminator.texts import GeneratedText
from gapo_jax.train.forward import RolloutLogprobs
from gapo_jax.train.online.reward_sources import SourceScores
from gapo_jax.types import Experience, PromptRow, Rollout


class RoundRollout(NamedTuple):
    """A round's responses, the samples of a prompt next to each other.

    Attributes:
        index: of the round, from 0.
        rows: the prompt of each response.
        texts: the responses as text.
        arrays: the responses as tokens, numpy.
        verdicts: what the verifiers say of them.
        generated: prompt, response and verdict as the discriminator learns from them.
        rule_rewards_B: float32 [B] in [0, 1]; NaN where there is nothing to verify.
        learn_B: bool [B], False for rows that must not be learned from.
        counted_B: bool [B], False for rows that only fill the static shape; None where none does.
        metrics: of all that was sampled, of what is not among the rows too.
        response_mask_BR: the same, int32: which of the sampled tokens are real.
        device_s: seconds in which the device had something to sample.
    """

    index: int
    rows: list[PromptRow]
    texts: list[str]
    arrays: Rollout
    verdicts: list[Verdict]
    generated: list[GeneratedText]
    rule_rewards_B: np.ndarray
    learn_B: np.ndarray
    counted_B: np.ndarray | None
    metrics: dict[str, float]
    response_mask_BR: np.ndarray
    device_s: float


class Rewards(NamedTuple):
    """The rewards of a rollout, all from one snapshot of every source.

    Attributes:
        logits_B: of the discriminator, float32 [B]; None where it is not asked.
        rewards_B: standardised and clipped, float32 [B].
        stats: the running statistics of scores with these among them, float32 [3].
        chosen: the rows to learn from, int64, ascending.
        scored_B: bool [B], False for rows that no source scores, which must not be learned from.
        sources: what each source says.
    """

    logits_B: np.ndarray | None
    rewards_B: jax.Array
    stats: jax.Array
    chosen: np.ndarray
    scored_B: np.ndarray
    sources: SourceScores


class RoundExperience(NamedTuple):
    """What the policy learns from in a round.

    Attributes:
        index: of the round, from 0.
        rows: the chosen rows with their advantages.
        logprobs: what one pass over them gave before the updates.
        metrics: of the experience; `kl/ref` is the KL to the reference, nats a token.
    """

    index: int
    rows: Experience
    logprobs: RolloutLogprobs
    metrics: dict[str, float]
