"""Text in, text out: prompts through the chat template, the sampler and back to text."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Key
from transformers import PreTrainedTokenizerFast

from gapo_jax.constraints.text import with_opening
from gapo_jax.data.batching import round_up
from gapo_jax.data.tokenizer import chat_prompt, decode_responses, encode_prompts
from gapo_jax.rollout.continuous import ContinuousSampler
from gapo_jax.rollout.sampler import Sampler
from gapo_jax.rollout.stops import StopStrings, stop_strings
from gapo_jax.types import Params, Rollout

Asked = str | Sequence[Mapping[str, str]]  # one user turn, or the turns of a dialogue


class Generated(NamedTuple):
    """Responses in the order of their prompts: plain text, and the rollout as numpy arrays;
    `device_s` are the seconds in which the device had them to compute."""

    texts: list[str]
    rollout: Rollout
    device_s: float = 0.0


def ended_rows(
    rollout: Rollout, eos_ids: Sequence[int], stops: StopStrings | None = None
) -> Bool[np.ndarray, "B"]:
    """Return which responses hold their end-of-sequence token or a stop string, bool [B]."""
    tokens_BR = np.asarray(rollout.tokens_BT)[:, -rollout.response_mask_BR.shape[1] :]
    is_end_BR = np.isin(tokens_BR, eos_ids)
    ended_B = np.any(is_end_BR & (np.asarray(rollout.response_mask_BR) > 0), axis=1)
    return ended_B | stops.held(rollout) if stops else ended_B


def prompt_lengths(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Asked], system: str | None
) -> list[int]:
    """Return the length of each prompt in tokens, chat template included."""
    return [len(chat_prompt(tokenizer, prompt, system).ids) for prompt in prompts]


def prompt_width(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Asked], system: str | None, limit: int
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
    return round_up(lengths[longest], limit)


def generate(
    sample: Sampler,
    params: Params,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Asked],
    keys_B: Key[Array, "B"],
    *,
    batch_size: int,
    width: int,
    temperature: float,
    system: str | None = None,
    stop: Sequence[str] = (),
    on_batch: Callable[[int], object] = lambda done: None,
) -> Generated:
    """Sample responses; prompt b // G gets row b, G = keys / prompts.

    A row's text depends on its key and its prompt alone, and the samples of one prompt share its
    prefill. A continuous sampler takes all rows; any other `batch_size` rows at a time. Texts are
    cut before the first of the strings `stop`; the rollout keeps the tokens that complete it. Where
    the chat template opens a `<think>` block, the text begins with its tag.
    `on_batch` is told the number of rows done.

    Raises:
        ValueError: the keys are not a multiple of the prompts, or the batch not one of G; an empty
            stop string.
    """
    samples, rest = divmod(keys_B.shape[0], len(prompts))
    continuous = isinstance(sample, ContinuousSampler)
    if rest or not samples or (batch_size % samples and not continuous):
        raise ValueError(
            f"got {len(prompts)} prompts, {keys_B.shape[0]} keys and batches of {batch_size} rows; "
            "the keys must be a multiple of the prompts, and config.sampling.batch_size of the "
            "samples of one prompt"
        )
    stops = stop_strings(tokenizer, stop)
    asked = [chat_prompt(tokenizer, prompt, system) for prompt in prompts]
    prompts_AP = encode_prompts(tokenizer, asked, width, buckets=(width,))
    start = time.perf_counter()
    if continuous:
        rollout = sample(params, *prompts_AP, keys_B, temperature, stop=stops, on_rows=on_batch)
    else:
        inputs = params, *prompts_AP, keys_B, temperature
        rollout = _in_batches(sample, inputs, samples, batch_size, on_batch)
    device_s = time.perf_counter() - start
    if stops is not None:
        pad_id = tokenizer.pad_token_id
        rollout = stops.cut_rollout(rollout, pad_id if isinstance(pad_id, int) else 0)
    tokens_BR, mask_BR = np.asarray(rollout.tokens_BT)[:, width:], rollout.response_mask_BR
    texts = decode_responses(tokenizer, tokens_BR, np.asarray(mask_BR))
    texts = [stops.cut(text) for text in texts] if stops else texts
    texts = [with_opening(text, asked[row // samples]) for row, text in enumerate(texts)]
    return Generated(texts, rollout, device_s)


def _in_batches(
    sample: Sampler,
    inputs: tuple[Params, np.ndarray, np.ndarray, jax.Array, float],
    samples: int,
    batch_size: int,
    on_batch: Callable[[int], object],
) -> Rollout:
    """Sample `batch_size` rows at a time, each batch until its longest row has ended.

    Every call of the sampler has the same shape, so it compiles once; the last batch is filled up
    with repeated prompts, whose rows are dropped again.
    """
    params, tokens_AP, mask_AP, keys_B, temperature = inputs
    parts: list[Rollout] = []
    for start in range(0, keys_B.shape[0], batch_size):
        rows = np.arange(start, start + batch_size) % keys_B.shape[0]
        asked = rows[::samples] // samples
        rollout = sample(params, tokens_AP[asked], mask_AP[asked], keys_B[rows], temperature)
        keep = min(batch_size, keys_B.shape[0] - start)
        parts.append(jax.tree.map(lambda leaf, keep=keep: np.asarray(leaf)[:keep], rollout))
        on_batch(start + keep)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
