"""Held-out evaluation of a policy: sample, verify by rule, summarise. The adversary has no say."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gapo_jax.config import Config, system_text
from gapo_jax.constraints.verifiers import VerifierPool
from gapo_jax.evaluate.accuracy import Verdict, paired_difference, summarise, verify
from gapo_jax.rollout.generate import generate, row_keys
from gapo_jax.train.build import Models
from gapo_jax.types import PromptRow

EVAL_STREAM = 101


def evaluate_policy(
    config: Config,
    models: Models,
    params: Any,
    rows: Sequence[PromptRow],
    *,
    name: str,
    width: int,
    verifiers: VerifierPool | None = None,
    on_batch: Callable[[int], object] = lambda done: None,
) -> list[Verdict]:
    """Sample `eval.samples_per_prompt` responses for each row and verify them.

    The keys depend on seed, set name, row and sample alone, so before and after are sampled with
    the same random numbers and differ by the weights only.
    """
    samples = [row for row in rows for _ in range(config.eval.samples_per_prompt)]
    stream = zlib.crc32(name.encode())
    keys_B = row_keys(jax.random.key(config.seed), EVAL_STREAM, stream, count=len(samples))
    generated = generate(
        models.sample,
        params,
        models.tokenizer,
        [row.prompt for row in rows],
        keys_B,
        batch_size=config.sampling.batch_size,
        width=width,
        temperature=config.eval.temperature,
        system=system_text(config),
        stop=config.sampling.stop,
        on_batch=on_batch,
    )
    return verify(samples, generated.texts, verifiers)


def summarise_sets(verdicts: Mapping[str, Sequence[Verdict]], resamples: int) -> dict[str, Any]:
    """Return the accuracies of each held-out set with 95% bootstrap intervals."""
    return {name: summarise(found, resamples=resamples) for name, found in verdicts.items()}


def compare_sets(
    before: Mapping[str, Sequence[Verdict]],
    after: Mapping[str, Sequence[Verdict]],
    resamples: int,
) -> dict[str, Any]:
    """Return after minus before for each set, paired by prompt, with 95% intervals."""
    return {
        name: paired_difference(before[name], after[name], resamples=resamples) for name in before
    }
