"""Sampling from the decoder: prefill, then a loop over new tokens.

`make_sampler` gives one of two samplers with the same call and the same texts. All rows at once:
one jitted program that runs until the last row has ended. With `slots`: rows that have ended make
room for the next ones (`continuous.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, ScalarLike

from gapo_jax.compilation import jit_placed
from gapo_jax.models import Decoder, generation
from gapo_jax.rollout.continuous import ContinuousSampler, samples_per_prompt
from gapo_jax.rollout.draws import Drawn, Repeats, Settings, draw_next, no_repeats
from gapo_jax.sharding import ONE_DEVICE, Placement
from gapo_jax.types import Params, Rollout

# The options of `make_sampler` that have a field of the same name in the configuration.
RESTRICTIONS = ("top_k", "top_p", "min_p", "repetition_period", "repetition_times")


@runtime_checkable
class Sampler(Protocol):
    """What `make_sampler` returns; see there."""

    def __call__(
        self,
        params: Params,
        tokens_AP: Int[Array | np.ndarray, "A P"],
        mask_AP: Int[Array | np.ndarray, "A P"],
        keys_B: Key[Array, "B"],
        temperature: ScalarLike,
        limits_B: Int[Array | np.ndarray, "B"] | None = None,
    ) -> Rollout:
        """Sample one response per key."""
        ...


class _State(NamedTuple):
    """What the loop over new tokens carries."""

    step: jax.Array
    last_B: jax.Array
    ended_B: jax.Array
    tokens_BR: jax.Array
    mask_BR: jax.Array
    logprobs_BR: jax.Array
    repeats: Repeats | None
    cache: generation.Cache


def make_sampler(
    decoder: Decoder,
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    slots: int = 0,
    chunk: int = 8,
    place: Placement = ONE_DEVICE,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_period: int = 0,
    repetition_times: int = 4,
) -> Sampler:
    """Build `sample(params, tokens_AP, mask_AP, keys_B, temperature, limits_B=None) -> Rollout`.

    Args of `sample`: the decoder's parameters; prompts padded on the left (`tokens_AP`, `mask_AP`
    int32); one typed PRNG key per response; the temperature, a scalar that is traced (a new value
    compiles nothing), 0 for greedy; the most tokens of each response (int32 [B], None: all
    `max_new_tokens`). With as many keys as prompts every prompt gets one response; with G times as
    many it gets G neighbouring ones from a single prefill: row b continues prompt b // G.

    A response depends on its own key and prompt alone, not on its neighbours, the batch size, the
    slots or the padding. It ends with the first of `eos_ids`, at its limit or by repetition; the
    loop ends when all have. `Rollout.logprobs_BR` are the log-probs of the drawn tokens in the full
    distribution at the sampling temperature (at temperature 1 when greedy), and 0 after the end;
    rows are `pad_id` there.

    With `slots` = 0 `sample` is jitted and decodes all rows at once. Otherwise it is a
    `ContinuousSampler` that decodes so many rows at a time, `chunk` tokens between two looks at
    which slots are free, and returns numpy arrays.

    `top_k` (0: all), `top_p` (1: all) and `min_p` (0: all) restrict what is drawn, see
    `draws.restrict`. A response that repeats itself is ended: `repetition_times` copies in a row of
    one block of at most `repetition_period` tokens (0: never).

    With a `place` of several devices the prompts are split over them, the parameters lie as
    `place.params` puts them, and every device gets the whole rollout; `slots` are for one device.

    Raises ValueError on impossible settings, and from `sample` when the number of keys is not a
    multiple of the prompts or the tokens do not fit `max_positions`.
    """
    settings = Settings(
        decoder.config, max_new_tokens, tuple(eos_ids), pad_id,
        top_k, top_p, min_p, repetition_period, repetition_times, place,
    )  # fmt: skip
    settings.check()
    if slots and place.spread:
        raise ValueError(
            f"config.sampling.slots={slots} refills slots on one device, but the mesh has several; "
            "set config.sampling.slots=0"
        )
    if slots:
        return ContinuousSampler(settings, slots, chunk)

    def sample(
        params: Params,
        tokens_AP: Int[Array | np.ndarray, "A P"],
        mask_AP: Int[Array | np.ndarray, "A P"],
        keys_B: Key[Array, "B"],
        temperature: ScalarLike,
        limits_B: Int[Array | np.ndarray, "B"] | None = None,
    ) -> Rollout:
        return _sample(settings, params, tokens_AP, mask_AP, keys_B, temperature, limits_B)

    return jit_placed(sample, place, keep="whole", rows=(1, 2, 3))


def restriction_warning(top_k: int, top_p: float, min_p: float) -> str | None:
    """Return the warning for a run that learns from samples restricted so; None without limits.

    Sampler and policy update give a token its log-prob in the full distribution, although it was
    drawn from a part of it. The ratio is then not to the policy that sampled, the estimate of the
    KL can fall below 0, and what lies outside the part is never sampled and so never corrected
    (https://github.com/huggingface/trl/issues/235).
    """
    restricted = {"top_k": (top_k, 0), "top_p": (top_p, 1.0), "min_p": (min_p, 0.0)}
    changed = {name: pair for name, pair in restricted.items() if pair[0] != pair[1]}
    if not changed:
        return None
    given = ", ".join(f"config.sampling.{name}={value}" for name, (value, _) in changed.items())
    plain = ", ".join(f"{name}={neutral}" for name, (_, neutral) in changed.items())
    return (
        f"{given}: responses are drawn from a part of the policy's distribution but learned from "
        f"with log-probs of all of it, which biases the update and the KL; set {plain} to train"
    )


def _sample(
    settings: Settings, params, tokens_AP, mask_AP, keys_B, temperature, limits_B
) -> Rollout:
    """Prefill once, then append one token to every row until all have ended."""
    config, length, batch = settings.config, settings.max_new_tokens, keys_B.shape[0]
    samples, place = samples_per_prompt(settings, tokens_AP, keys_B), settings.place
    weights = generation.decode_weights(params, config, place)
    hidden_AD, prompt_cache = generation.prefill(params, config, tokens_AP, mask_AP, place)

    def draw(state: _State, hidden_BD: jax.Array) -> _State:
        drawn = draw_next(
            settings, weights, hidden_BD, keys_B, state.step, temperature,
            state.ended_B, limits_B, state.repeats,
        )  # fmt: skip
        return _append(state, drawn)

    def advance(state: _State) -> _State:
        hidden_BD, cache = generation.decode_step(
            weights, config, state.last_B, state.step - 1, mask_AP, prompt_cache, state.cache
        )
        return draw(state._replace(cache=cache), hidden_BD)

    def unfinished(state: _State) -> jax.Array:
        return (state.step < length) & ~state.ended_B.all()

    state = _initial_state(settings, batch)
    state = draw(state, jnp.repeat(hidden_AD, samples, axis=0))
    state = jax.lax.while_loop(unfinished, advance, state)
    prompt_BP, prompt_mask_BP = (jnp.repeat(x, samples, axis=0) for x in (tokens_AP, mask_AP))
    return Rollout(
        tokens_BT=jnp.concatenate([prompt_BP, state.tokens_BR], axis=1),
        mask_BT=jnp.concatenate([prompt_mask_BP, state.mask_BR], axis=1),
        response_mask_BR=state.mask_BR,
        logprobs_BR=state.logprobs_BR,
    )


def _initial_state(settings: Settings, batch: int) -> _State:
    length = settings.max_new_tokens
    return _State(
        step=jnp.int32(0),
        last_B=jnp.zeros((batch,), jnp.int32),
        ended_B=jnp.zeros((batch,), bool),
        tokens_BR=jnp.full((batch, length), settings.pad_id, jnp.int32),
        mask_BR=jnp.zeros((batch, length), jnp.int32),
        logprobs_BR=jnp.zeros((batch, length), jnp.float32),
        repeats=no_repeats(settings, batch),
        cache=generation.empty_cache(settings.config, batch, length, settings.place),
    )


def _append(state: _State, drawn: Drawn) -> _State:
    """Write the drawn tokens of the rows that had not ended into column `state.step`."""

    def write(array_BR: jax.Array, column_B: jax.Array) -> jax.Array:
        column_B1 = column_B.astype(array_BR.dtype)[:, None]
        return jax.lax.dynamic_update_slice_in_dim(array_BR, column_B1, state.step, axis=1)

    return state._replace(
        step=state.step + 1,
        last_B=drawn.tokens_B,
        ended_B=drawn.ended_B,
        tokens_BR=write(state.tokens_BR, drawn.tokens_B),
        mask_BR=write(state.mask_BR, ~state.ended_B),
        logprobs_BR=write(state.logprobs_BR, drawn.logprobs_B),
        repeats=drawn.repeats,
    )
