"""Text in, text out: prompts through the chat template, the sampler and back to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from transformers import PreTrainedTokenizerFast

from gapo_jax.data.tokenizer import chat_prompt, decode_responses, encode_prompts
from gapo_jax.types import Rollout

SampleFn = Callable[..., Rollout]


class Generated(NamedTuple):
    """Responses in the order of their prompts: plain text, and the rollout as numpy arrays."""

    texts: list[str]
    rollout: Rollout


def row_keys(key: jax.Array, *path: int, count: int) -> jax.Array:
    """Return `count` typed keys [B] that depend on the run's key, on `path` and on the row."""
    for part in path:
        key = jax.random.fold_in(key, part)
    return _fold_rows(key, np.arange(count, dtype=np.uint32))


@jax.jit
def _fold_rows(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows_B)


def ended_rows(rollout: Rollout, eos_ids: Sequence[int]) -> np.ndarray:
    """Return which responses hold their end-of-sequence token, bool [B]."""
    tokens_BR = np.asarray(rollout.tokens_BT)[:, -rollout.response_mask_BR.shape[1] :]
    is_end_BR = np.isin(tokens_BR, eos_ids)
    return np.any(is_end_BR & (np.asarray(rollout.response_mask_BR) > 0), axis=1)


def prompt_lengths(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], system: str | None
) -> list[int]:
    """Return the length of each prompt in tokens, chat template included."""
    texts = [chat_prompt(tokenizer, prompt, system) for prompt in prompts]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def prompt_width(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], system: str | None, limit: int
) -> int:
    """Return P for a set of prompts: the longest, rounded up to a multiple of 8, at most `limit`.

    Raises:
        ValueError: a prompt is longer than `limit`; names it, its length and the config key.
    """
    lengths = prompt_lengths(tokenizer, prompts, system)
    longest = int(np.argmax(lengths))
    if lengths[longest] > limit:
        raise ValueError(
            f"a prompt has {lengths[longest]} tokens, but config.data.max_prompt_tokens={limit} "
            f"(the prompt: {prompts[longest]!r}); raise the limit or shorten the prompt"
        )
    return min(limit, -(-lengths[longest] // 8) * 8)


def generate(
    sample: SampleFn,
    params: Any,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    keys_B: jax.Array,
    *,
    batch_size: int,
    width: int,
    temperature: float,
    system: str | None = None,
    on_batch: Callable[[int], object] = lambda done: None,
) -> Generated:
    """Sample responses, `batch_size` rows at a time; prompt b // G gets row b, G = keys / prompts.

    Every call of the sampler has the same shape, so it compiles once; the last batch is filled up
    with repeated prompts, whose rows are dropped again. The samples of one prompt share its
    prefill. A row's text depends on its key and its prompt alone. `on_batch` is told the number
    of rows done.

    Raises:
        ValueError: the keys are not a multiple of the prompts, or the batch not one of G.
    """
    samples, rest = divmod(keys_B.shape[0], len(prompts))
    if rest or not samples or batch_size % samples:
        raise ValueError(
            f"got {len(prompts)} prompts, {keys_B.shape[0]} keys and batches of {batch_size} rows; "
            "the keys must be a multiple of the prompts, and config.sampling.batch_size of the "
            "samples of one prompt"
        )
    texts = [chat_prompt(tokenizer, prompt, system) for prompt in prompts]
    tokens_AP, mask_AP = encode_prompts(tokenizer, texts, width, buckets=(width,))
    parts: list[Rollout] = []
    for start in range(0, keys_B.shape[0], batch_size):
        rows = np.arange(start, start + batch_size) % keys_B.shape[0]
        asked = rows[::samples] // samples
        rollout = sample(params, tokens_AP[asked], mask_AP[asked], keys_B[rows], temperature)
        keep = min(batch_size, keys_B.shape[0] - start)
        parts.append(jax.tree.map(lambda leaf, keep=keep: np.asarray(leaf)[:keep], rollout))
        on_batch(start + keep)
    rollout = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    tokens_BR = rollout.tokens_BT[:, width:]
    return Generated(decode_responses(tokenizer, tokens_BR, rollout.response_mask_BR), rollout)
