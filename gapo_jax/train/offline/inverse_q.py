"""Inverse-Q*-style learning: own samples, token rewards from the model's better-conditioned self.

Sourced (arXiv 2408.14874, abstract and introduction): token-level rewards without a reward model,
value model or labels, by estimating a conditionally optimal policy from the model's own responses
and imitating its rewards. This project's reconstruction: the estimate. It is the frozen starting
model contrasted under a better and a worse condition and renormalised (`steps.target_logprobs`).
The conditions come from constraints (`inverse_q.contrast`): the prompt with and without its
constraints, with and without a system prompt that asks for exactness, or the two prompts of a
preferential pair; the last kind needs no samples and is not made here. The starting model stays
frozen, so the target cannot run away.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from gapo_jax import rng
from gapo_jax.config import Config, system_text
from gapo_jax.data.batching import batch_at
from gapo_jax.data.tokenizer import chat_prompt, encode_prompts
from gapo_jax.evaluate.accuracy import verify
from gapo_jax.rng import Stream
from gapo_jax.rollout.generate import Generated, generate, prompt_width
from gapo_jax.train.buckets import take_rows
from gapo_jax.train.context import TrainContext
from gapo_jax.train.offline.steps import OfflineBatch
from gapo_jax.train.online.rollout import rollout_metrics
from gapo_jax.train.state import GAPOState
from gapo_jax.types import PromptRow, Rollout


class SampledBatches:
    """The policy's own samples of a round, beside them the same responses under the other
    condition; an update takes the next ones."""

    widths: Sequence[int] = ()

    def __init__(self, ctx: TrainContext, state: GAPOState) -> None:
        """Take the prompts of a run; nothing is sampled yet."""
        del state
        self.ctx, self.width = ctx, other_width(ctx)

    def begin_round(self, state: GAPOState, index: int) -> None:
        """Sample a response to each prompt of the round."""
        rows, generated = sample_round(self.ctx, state, index)
        condition = condition_rows(self.ctx, rows, generated.rollout, self.width)
        self.samples = OfflineBatch(rows=generated.rollout, condition=condition)
        self.first = index * self.ctx.updates_per_round

    def batch(self, update: int) -> OfflineBatch:
        """Return the samples of an update."""
        size = self.ctx.config.offline.batch_size
        start = (update - self.first) * size
        return take_rows(self.samples, slice(start, start + size))


def sample_round(
    ctx: TrainContext, state: GAPOState, index: int
) -> tuple[list[PromptRow], Generated]:
    """Sample one response to each prompt of a round from the policy; write what verifiers say."""
    config, pool = ctx.config, ctx.prompts.train
    count = ctx.updates_per_round * config.offline.batch_size
    order = functools.partial(batch_at, config.seed, Stream.INVERSE_Q_ORDER)
    rows = [pool[i] for i in order(step=index, n=len(pool), batch_size=count)]
    with ctx.clock("rollout"):
        generated = generate(
            ctx.models.sample,
            ctx.sampling_params(state),
            ctx.models.tokenizer,
            [row.prompt for row in rows],
            rng.row_keys(state.key, Stream.INVERSE_Q_ROLLOUT, index, count=count),
            batch_size=config.sampling.batch_size,
            width=ctx.prompts.width,
            temperature=config.sampling.temperature,
            system=system_text(config),
            stop=config.sampling.stop,
        )
    metrics = rollout_metrics(ctx, rows, generated, verify(rows, generated.texts, ctx.verifiers))
    metrics["time/rollout_s"] = ctx.clock.last["rollout"]
    ctx.writer.write((index + 1) * ctx.updates_per_round, index + 1, "rollout", metrics)
    return rows, generated


def other_prompt(config: Config, row: PromptRow) -> tuple[str, str | None]:
    """Return the other condition of a row as (prompt, system text)."""
    if config.inverse_q.contrast == "system":
        return row.prompt, config.inverse_q.system_prompt
    return row.task, system_text(config)


def other_width(ctx: TrainContext) -> int:
    """Return the prompt width of the other condition over all training prompts."""
    config = ctx.config
    pairs = [other_prompt(config, row) for row in ctx.prompts.train]
    limit = ctx.models.decoder.config.max_positions - config.sampling.max_new_tokens
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    return prompt_width(ctx.models.tokenizer, prompts, pairs[0][1], limit)


def condition_rows(
    ctx: TrainContext, rows: list[PromptRow], rollout: Rollout, width: int
) -> Rollout:
    """Return the rollout's responses after the prompts of the other condition."""
    tokenizer = ctx.models.tokenizer
    texts = [chat_prompt(tokenizer, *other_prompt(ctx.config, row)) for row in rows]
    tokens_BP, mask_BP = encode_prompts(tokenizer, texts, width, buckets=(width,))
    mask_BR = np.asarray(rollout.response_mask_BR)
    tokens_BR = np.asarray(rollout.tokens_BT)[:, -mask_BR.shape[1] :]
    return rollout.replace(
        tokens_BT=np.concatenate([tokens_BP, tokens_BR], axis=1),
        mask_BT=np.concatenate([mask_BP, mask_BR], axis=1),
    )
