"""Continuous batching: a row that ends frees its slot for the next prompt.

Responses differ in length, and a batch that waits for its longest row decodes mostly padding. Here
a fixed number of slots is decoded, a chunk of tokens at a time in one device loop. Between chunks
the host collects what was drawn and gives the free slots to the next rows. All shapes are static:

- Prompts are prefilled a few at a time into a pool, from which rows take their prompt's keys and
  values; the samples of one prompt take the same ones.
- The response part of the cache is a ring (`models/generation.py`): every slot writes into the same
  column, wherever its row has begun, and sees the columns of its own row alone.
- When no rows are waiting and few are left, they move to fewer slots (`SHRINK`).

The buffers are donated from call to call, so the cache is updated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, ScalarLike

from gapo_jax.models import generation
from gapo_jax.rollout.draws import Repeats, Settings, draw_next, no_repeats
from gapo_jax.types import Params, Rollout

# Prompts of one prefill, and slots that are decoded when few rows are left, as parts of the slots.
POOL, SHRINK = 4, 4


class Pool(NamedTuple):
    """Prefilled prompts: final hidden state, mask and cache of each."""

    hidden_AD: jax.Array
    mask_AP: jax.Array
    cache: generation.Cache


class Slots(NamedTuple):
    """The rows that are decoded together, on the device.

    `column` is where the ring's next tokens go; `step_B` counts the tokens of each row, `limits_B`
    is the most it may have, and `prompts` holds the prompt and the newest hidden state of each.
    """

    column: jax.Array
    step_B: jax.Array
    limits_B: jax.Array
    ended_B: jax.Array
    keys_B: jax.Array
    repeats: Repeats | None
    prompts: Pool
    cache: generation.Cache


class Chunk(NamedTuple):
    """What one call has drawn: tokens, their log-probs and whether they count, and who ended."""

    tokens_BC: jax.Array
    logprobs_BC: jax.Array
    mask_BC: jax.Array
    ended_B: jax.Array


class ContinuousSampler:
    """A sampler that decodes `slots` rows at a time; make it by `sampler.make_sampler`.

    The call is that of the other sampler, with two more arguments for the host: `stop` is asked
    after every chunk whether the tokens of a row so far end it, and `on_rows` is told the number of
    rows done. The rollout is in numpy; tokens that `stop` refuses are still in it. `decoded` is the
    number of tokens that the last call has decoded, those of idle slots too.
    """

    def __init__(self, settings: Settings, slots: int, chunk: int) -> None:
        if slots < 1 or chunk < 1:
            raise ValueError(
                f"continuous sampling needs slots >= 1 and chunk >= 1, got {slots} and {chunk}"
            )
        if jax.process_count() > 1:
            raise ValueError(
                f"slots={slots}: continuous sampling runs in one process, but this is one of "
                f"{jax.process_count()}; set config.sampling.slots=0"
            )
        self.settings, self.slots, self.chunk, self.decoded = settings, slots, chunk, 0
        config = settings.config
        self._weights = jax.jit(lambda params: generation.decode_weights(params, config))
        self._prefill = jax.jit(lambda params, *prompts: _prefill(settings, params, *prompts))
        self._begin = jax.jit(
            lambda pool, *rows: _admit(_empty(settings, pool, *rows), pool, *rows)
        )
        self._admit = jax.jit(_admit, donate_argnums=0)
        self._keep = jax.jit(_keep)
        self._advance = jax.jit(
            lambda slots, *inputs: _advance(settings, chunk, slots, *inputs), donate_argnums=0
        )

    def __call__(
        self,
        params: Params,
        tokens_AP: Int[Array | np.ndarray, "A P"],
        mask_AP: Int[Array | np.ndarray, "A P"],
        keys_B: Key[Array, "B"],
        temperature: ScalarLike,
        limits_B: Int[Array | np.ndarray, "B"] | None = None,
        *,
        stop: Callable[[Sequence[int]], bool] | None = None,
        on_rows: Callable[[int], object] = lambda done: None,
    ) -> Rollout:
        """Sample one response per key; see `sampler.make_sampler`."""
        prompts_AP = np.asarray(tokens_AP), np.asarray(mask_AP)
        book = _Book(self.settings, self.slots, prompts_AP, keys_B, limits_B)
        weights, temperature = self._weights(params), jnp.float32(temperature)
        slots, row_S = None, np.full(book.size, -1)
        fewer = max(1, book.size // SHRINK)
        while True:
            slots, row_S = self._fill(params, book, slots, row_S)
            busy_S = row_S >= 0
            if slots is None or not busy_S.any():
                break
            if book.waiting == book.total and busy_S.sum() <= fewer < len(row_S):
                kept_S = np.argsort(~busy_S, kind="stable")[:fewer]
                slots, row_S = self._keep(slots, kept_S.astype(np.int32)), row_S[kept_S]
            slots, chunk = self._advance(slots, weights, row_S >= 0, temperature)
            row_S = book.collect(row_S, jax.device_get(chunk), stop)
            on_rows(book.done)
        self.decoded = book.decoded
        prompt_BP, prompt_mask_BP = (np.repeat(x_AP, book.samples, axis=0) for x_AP in prompts_AP)
        fields: dict[str, Any] = {
            "tokens_BT": np.concatenate([prompt_BP, book.tokens_BR], axis=1),
            "mask_BT": np.concatenate([prompt_mask_BP, book.mask_BR], axis=1),
            "response_mask_BR": book.mask_BR,
            "logprobs_BR": book.logprobs_BR,
        }
        return Rollout(**fields)

    def _fill(
        self, params: Params, book: _Book, slots: Slots | None, row_S: np.ndarray
    ) -> tuple[Slots | None, np.ndarray]:
        """Give the free slots to waiting rows, and prefill prompts as they are needed."""
        while book.waiting < book.total and (row_S < 0).any():
            if book.waiting >= book.pooled * book.samples:
                book.pool = self._prefill(params, *book.next_prompts())
            rows_S, source_S, row_S = book.seat(row_S)
            fresh = source_S, book.keys_B[rows_S], book.limits_B[rows_S]
            if slots is None:
                slots = self._begin(book.pool, *fresh)
            else:
                slots = self._admit(slots, book.pool, *fresh)
        return slots, row_S


class _Book:
    """What the host knows of a call: which prompts and rows wait, and the tokens of all rows."""

    def __init__(
        self,
        settings: Settings,
        slots: int,
        prompts_AP: tuple[np.ndarray, np.ndarray],
        keys_B: jax.Array,
        limits_B: jax.Array | np.ndarray | None,
    ) -> None:
        self.samples = samples_per_prompt(settings, prompts_AP[0], keys_B)
        self.prompts_AP, self.keys_B, self.total = prompts_AP, keys_B, keys_B.shape[0]
        # No more slots than rows, but few different shapes to compile.
        self.size = min(slots, 1 << (self.total - 1).bit_length())
        self.width = min(len(prompts_AP[0]), max(1, self.size // POOL))
        self.pool: Pool | None = None
        self.pooled = self.waiting = self.done = self.decoded = 0
        self.limits_B = np.full(self.total, settings.max_new_tokens, np.int32)
        if limits_B is not None:
            self.limits_B = np.minimum(self.limits_B, np.asarray(limits_B, np.int32))
        shape = self.total, settings.max_new_tokens
        self.tokens_BR = np.full(shape, settings.pad_id, np.int32)
        self.mask_BR = np.zeros(shape, np.int32)
        self.logprobs_BR = np.zeros(shape, np.float32)

    def next_prompts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the prompts of the next pool; the last one is filled up with its last prompt."""
        tokens_AP, mask_AP = self.prompts_AP
        asked = np.minimum(self.pooled + np.arange(self.width), len(tokens_AP) - 1)
        self.pooled += self.width
        return tokens_AP[asked], mask_AP[asked]

    def seat(self, row_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give free slots to the next rows that the pool has prompts for; return for each slot the
        row that begins (-1: none), its prompt's place in the pool (int32) and the row it has."""
        available = min(self.total, self.pooled * self.samples)
        free = np.flatnonzero(row_S < 0)[: available - self.waiting]
        begins_S, row_S = np.full_like(row_S, -1), row_S.copy()
        begins_S[free] = row_S[free] = self.waiting + np.arange(len(free))
        self.waiting += len(free)
        place_S = begins_S // self.samples - (self.pooled - self.width)
        return begins_S, np.where(begins_S < 0, -1, place_S).astype(np.int32), row_S

    def collect(
        self, row_S: np.ndarray, chunk: Chunk, stop: Callable[[Sequence[int]], bool] | None
    ) -> np.ndarray:
        """Take in the tokens of a chunk; return the rows that the slots have still."""
        row_S = row_S.copy()
        self.decoded += int(chunk.mask_BC.any(axis=0).sum()) * len(row_S)
        for slot in np.flatnonzero(row_S >= 0):
            row, count = row_S[slot], int(chunk.mask_BC[slot].sum())
            start = int(self.mask_BR[row].sum())
            columns = slice(start, start + count)
            self.tokens_BR[row, columns] = chunk.tokens_BC[slot, :count]
            self.logprobs_BR[row, columns] = chunk.logprobs_BC[slot, :count]
            self.mask_BR[row, columns] = 1
            stopped = stop is not None and stop(self.tokens_BR[row, : start + count].tolist())
            if stopped or chunk.ended_B[slot]:
                row_S[slot] = -1
                self.done += 1
        return row_S


def samples_per_prompt(
    settings: Settings, tokens_AP: Int[Array | np.ndarray, "A P"], keys_B: Key[Array, "B"]
) -> int:
    """Return G, the responses to each prompt.

    Raises:
        ValueError: the keys are not a multiple of the prompts, or the tokens do not fit the model.
    """
    prompts, width = tokens_AP.shape
    if keys_B.shape[0] % prompts:
        raise ValueError(
            f"sampling needs one key per response, a multiple of the {prompts} prompts, got "
            f"{keys_B.shape[0]} keys"
        )
    length, limit = settings.max_new_tokens, settings.config.max_positions
    if width + length > limit:
        raise ValueError(
            f"prompt of {width} and response of {length} tokens exceed the "
            f"model's max_positions = {limit}; shorten one of them"
        )
    return keys_B.shape[0] // prompts


def _prefill(settings: Settings, params, tokens_AP, mask_AP) -> Pool:
    hidden_AD, cache = generation.prefill(params, settings.config, tokens_AP, mask_AP)
    return Pool(hidden_AD, mask_AP, cache)


def _empty(settings: Settings, pool: Pool, source_B, keys_B, limits_B) -> Slots:
    """Slots without rows for the arguments of `_admit`."""
    del limits_B
    batch = source_B.shape[0]
    zeros_B = jnp.zeros(batch, jnp.int32)
    return Slots(
        column=jnp.int32(0),
        step_B=zeros_B,
        limits_B=zeros_B,
        ended_B=jnp.ones(batch, bool),
        keys_B=keys_B,
        repeats=no_repeats(settings, batch),
        prompts=jax.tree.map(lambda x: jnp.zeros((batch, *x.shape[1:]), x.dtype), pool),
        cache=generation.empty_cache(settings.config, batch, settings.max_new_tokens),
    )


def _admit(slots: Slots, pool: Pool, source_B, keys_B, limits_B) -> Slots:
    """Begin rows in the slots whose `source_B` (int32) is not -1, with that prompt of the pool."""
    begins_B = source_B >= 0

    def choose(fresh: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(begins_B.reshape(-1, *[1] * (old.ndim - 1)), fresh, old)

    repeats = slots.repeats
    if repeats is not None:
        empty = Repeats(jnp.full_like(repeats.recent_BW, -1), jnp.zeros_like(repeats.runs_BW))
        repeats = jax.tree.map(choose, empty, repeats)
    return slots._replace(
        step_B=choose(jnp.zeros_like(slots.step_B), slots.step_B),
        limits_B=choose(limits_B, slots.limits_B),
        ended_B=slots.ended_B & ~begins_B,
        keys_B=choose(keys_B, slots.keys_B),
        repeats=repeats,
        prompts=jax.tree.map(
            lambda fresh, old: choose(fresh[jnp.maximum(source_B, 0)], old), pool, slots.prompts
        ),
    )


def _keep(slots: Slots, kept_B: jax.Array) -> Slots:
    """Return the slots of the given numbers alone."""
    return jax.tree.map(lambda x: x[kept_B] if x.ndim else x, slots)


def _advance(
    settings: Settings, chunk: int, slots: Slots, weights, running_B, temperature
) -> tuple[Slots, Chunk]:
    """Draw up to `chunk` tokens for every slot that is `running_B` and has not ended."""
    batch = slots.step_B.shape[0]
    slots = slots._replace(ended_B=slots.ended_B | ~running_B)
    out = Chunk(
        tokens_BC=jnp.full((batch, chunk), settings.pad_id, jnp.int32),
        logprobs_BC=jnp.zeros((batch, chunk), jnp.float32),
        mask_BC=jnp.zeros((batch, chunk), bool),
        ended_B=slots.ended_B,
    )

    def body(carry: tuple[jax.Array, Slots, Chunk]) -> tuple[jax.Array, Slots, Chunk]:
        index, slots, out = carry
        drawn = draw_next(
            settings, weights, slots.prompts.hidden_AD, slots.keys_B, slots.step_B, temperature,
            slots.ended_B, slots.limits_B, slots.repeats,
        )  # fmt: skip
        out = Chunk(
            tokens_BC=out.tokens_BC.at[:, index].set(drawn.tokens_B),
            logprobs_BC=out.logprobs_BC.at[:, index].set(drawn.logprobs_B),
            mask_BC=out.mask_BC.at[:, index].set(~slots.ended_B),
            ended_B=drawn.ended_B,
        )
        hidden_BD, cache = generation.decode_step(
            weights, settings.config, drawn.tokens_B, slots.step_B, slots.prompts.mask_AP,
            slots.prompts.cache, slots.cache, slots.column,
        )  # fmt: skip
        slots = slots._replace(
            column=(slots.column + 1) % settings.max_new_tokens,
            step_B=slots.step_B + ~slots.ended_B,
            ended_B=drawn.ended_B,
            repeats=drawn.repeats,
            prompts=slots.prompts._replace(hidden_AD=hidden_BD),
            cache=cache,
        )
        return index + 1, slots, out

    def unfinished(carry: tuple[jax.Array, Slots, Chunk]) -> jax.Array:
        return (carry[0] < chunk) & ~carry[1].ended_B.all()

    _, slots, out = jax.lax.while_loop(unfinished, body, (jnp.int32(0), slots, out))
    return slots, out
