"""Sampling from the decoder: one jitted program of prefill and a loop over new tokens.

Drawing a token costs one pass over the logits more than their log-sum-exp. The vocabulary is cut
into blocks; a first uniform number picks the block by its mass, a second the token inside it. Two
numbers per row and step replace the V Gumbel variates of the usual trick, which on a CPU cost as
much as half the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gapo_jax.models import Decoder, DecoderConfig, generation
from gapo_jax.sharding import ONE_DEVICE, Placement
from gapo_jax.types import Rollout

BLOCK = 256

Sampler = Callable[..., Rollout]


class _Settings(NamedTuple):
    """What is fixed when a sampler is made."""

    config: DecoderConfig
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    top_k: int
    top_p: float


class _State(NamedTuple):
    """What the loop over new tokens carries."""

    step: jax.Array
    last_B: jax.Array
    ended_B: jax.Array
    tokens_BR: jax.Array
    mask_BR: jax.Array
    logprobs_BR: jax.Array
    cache: generation.Cache


def make_sampler(
    decoder: Decoder,
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    top_k: int = 0,
    top_p: float = 1.0,
    place: Placement = ONE_DEVICE,
) -> Sampler:
    """Build `sample(params, tokens_AP, mask_AP, keys_B, temperature) -> Rollout`, jitted.

    Args of `sample`: the decoder's parameters; prompts padded on the left (`tokens_AP`, `mask_AP`
    int32); one typed PRNG key per response; the temperature, a scalar that is traced (a new value
    compiles nothing), 0 for greedy. With as many keys as prompts every prompt gets one response;
    with G times as many it gets G neighbouring ones from a single prefill: row b continues prompt
    b // G.

    A response depends on its own key and prompt alone, not on its neighbours, the batch size or
    the padding. It ends with the first of `eos_ids`; the loop ends when all have. `top_k` (0 =
    all) and `top_p` (1 = all) restrict what is drawn. `Rollout.logprobs_BR` are the log-probs of
    the drawn tokens in the full distribution at the sampling temperature (at temperature 1 when
    greedy), and 0 after the end; rows are `pad_id` there. With a `place` of several devices the
    prompts are split over them, the parameters lie as `place.params` puts them, and every device
    gets the whole rollout.

    Raises ValueError on impossible settings, and from `sample` when the number of keys is not a
    multiple of the prompts or the tokens do not fit `max_positions`.
    """
    if max_new_tokens < 1 or top_k < 0 or not 0.0 < top_p <= 1.0:
        raise ValueError(
            "sampling needs max_new_tokens >= 1, top_k >= 0 and 0 < top_p <= 1, got "
            f"{max_new_tokens}, {top_k} and {top_p}"
        )
    settings = _Settings(decoder.config, max_new_tokens, tuple(eos_ids), pad_id, top_k, top_p)

    def sample(
        params: Mapping[str, Any],
        tokens_AP: jax.Array,
        mask_AP: jax.Array,
        keys_B: jax.Array,
        temperature: float | jax.Array,
    ) -> Rollout:
        return _sample(settings, params, tokens_AP, mask_AP, keys_B, temperature)

    return place.jit(sample, keep="whole", rows=(1, 2, 3))


def _sample(settings: _Settings, params, tokens_AP, mask_AP, keys_B, temperature) -> Rollout:
    """Prefill once, then append one token to every row until all have ended."""
    config, length, batch = settings.config, settings.max_new_tokens, keys_B.shape[0]
    samples = _samples_per_prompt(tokens_AP, keys_B, length, config.max_positions)
    greedy = jnp.asarray(temperature) == 0
    weights = generation.decode_weights(params, config)
    hidden_AD, prompt_cache = generation.prefill(params, config, tokens_AP, mask_AP)

    def draw(state: _State, hidden_BD: jax.Array) -> _State:
        divisor = jnp.where(greedy, 1.0, temperature)
        logits_BV = generation.next_logits(weights, hidden_BD, divisor, config.final_softcap)
        drawn_B, logprob_B = draw_tokens(
            logits_BV, keys_B, state.step, greedy, top_k=settings.top_k, top_p=settings.top_p
        )
        return _append(state, drawn_B, logprob_B, settings.eos_ids, settings.pad_id)

    def advance(state: _State) -> _State:
        hidden_BD, cache = generation.decode_step(
            weights, config, state.last_B, state.step - 1, mask_AP, prompt_cache, state.cache
        )
        return draw(state._replace(cache=cache), hidden_BD)

    def unfinished(state: _State) -> jax.Array:
        return (state.step < length) & ~state.ended_B.all()

    cache = generation.empty_cache(config, batch, length)
    state = _initial_state(batch, length, settings.pad_id, cache)
    state = draw(state, jnp.repeat(hidden_AD, samples, axis=0))
    state = jax.lax.while_loop(unfinished, advance, state)
    prompt_BP, prompt_mask_BP = (jnp.repeat(x, samples, axis=0) for x in (tokens_AP, mask_AP))
    return Rollout(
        tokens_BT=jnp.concatenate([prompt_BP, state.tokens_BR], axis=1),
        mask_BT=jnp.concatenate([prompt_mask_BP, state.mask_BR], axis=1),
        response_mask_BR=state.mask_BR,
        logprobs_BR=state.logprobs_BR,
    )


def draw_tokens(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    step: jax.Array,
    greedy: bool | jax.Array = False,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Draw one token per row from softmax(logits), or take the best one when `greedy`.

    `logits_BV` float32, already divided by the temperature; each of `keys_B` is folded with
    `step`. Returns the tokens [B] int32 and their log-probs [B] float32 in the full distribution
    (before `top_k` and `top_p`).
    """
    blocks_BMC, top_B = _blocks(logits_BV)
    mass_BM = jnp.exp(blocks_BMC - top_B[:, None, None]).sum(axis=-1)
    log_total_B = jnp.log(mass_BM.sum(axis=-1)) + top_B
    if top_k or top_p < 1.0:
        blocks_BMC, _ = _blocks(restrict(logits_BV, top_k, top_p))
        mass_BM = jnp.exp(blocks_BMC - top_B[:, None, None]).sum(axis=-1)

    uniform_B2 = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step), (2,)))(
        keys_B
    )
    best_B = blocks_BMC.max(axis=-1).argmax(axis=-1)
    block_B = jnp.where(greedy, best_B, _invert_cdf(mass_BM, uniform_B2[:, 0]))
    block_BC = jnp.take_along_axis(blocks_BMC, block_B[:, None, None], axis=1)[:, 0]
    inside_B = _invert_cdf(jnp.exp(block_BC - top_B[:, None]), uniform_B2[:, 1])
    inside_B = jnp.where(greedy, block_BC.argmax(axis=-1), inside_B)
    chosen_B = jnp.take_along_axis(block_BC, inside_B[:, None], axis=1)[:, 0]
    tokens_B = (block_B * block_BC.shape[1] + inside_B).astype(jnp.int32)
    return tokens_B, chosen_B - log_total_B


def restrict(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Set to -inf what lies outside the `top_k` best, then outside the nucleus of mass `top_p`.

    The nucleus (Holtzman et al. 2020) is the smallest set of best tokens with at least that mass;
    tokens tied with its last member stay in. `logits_BV` float32, of any shape [B, V].
    """
    if top_k and top_k < logits_BV.shape[-1]:
        threshold_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < threshold_B1, -jnp.inf, logits_BV)
    if top_p < 1.0:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
        inside_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV < top_p
        threshold_B1 = jnp.where(inside_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < threshold_B1, -jnp.inf, logits_BV)
    return logits_BV


def _blocks(logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cut the vocabulary into blocks [B, M, C] (-inf beyond V), and the maximum [B]."""
    batch, vocab = logits_BV.shape
    padded_BV = jnp.pad(logits_BV, ((0, 0), (0, -vocab % BLOCK)), constant_values=-jnp.inf)
    blocks_BMC = padded_BV.reshape(batch, -1, BLOCK)
    return blocks_BMC, blocks_BMC.max(axis=-1).max(axis=-1)


def _invert_cdf(mass_BM: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """First index whose cumulative mass exceeds the share `uniform_B` of the total."""
    cumulative_BM = jnp.cumsum(mass_BM, axis=-1)
    target_B1 = uniform_B[:, None] * cumulative_BM[:, -1:]
    index_B = (cumulative_BM <= target_B1).sum(axis=-1)
    return jnp.minimum(index_B, mass_BM.shape[-1] - 1)


def _samples_per_prompt(tokens_AP, keys_B, max_new_tokens: int, max_positions: int) -> int:
    prompts, prompt_length = tokens_AP.shape
    if keys_B.shape[0] % prompts:
        raise ValueError(
            f"sampling needs one key per response, a multiple of the {prompts} prompts, got "
            f"{keys_B.shape[0]} keys"
        )
    if prompt_length + max_new_tokens > max_positions:
        raise ValueError(
            f"prompt of {prompt_length} and response of {max_new_tokens} tokens exceed the "
            f"model's max_positions = {max_positions}; shorten one of them"
        )
    return keys_B.shape[0] // prompts


def _initial_state(batch: int, length: int, pad_id: int, cache: generation.Cache) -> _State:
    return _State(
        step=jnp.int32(0),
        last_B=jnp.zeros((batch,), jnp.int32),
        ended_B=jnp.zeros((batch,), bool),
        tokens_BR=jnp.full((batch, length), pad_id, jnp.int32),
        mask_BR=jnp.zeros((batch, length), jnp.int32),
        logprobs_BR=jnp.zeros((batch, length), jnp.float32),
        cache=cache,
    )


def _append(state: _State, drawn_B, logprob_B, eos_E: tuple[int, ...], pad_id: int) -> _State:
    """Write the drawn tokens of the rows that have not ended into column `state.step`."""
    alive_B = ~state.ended_B
    drawn_B = jnp.where(alive_B, drawn_B, pad_id)
    is_eos_B = (
        jnp.isin(drawn_B, jnp.asarray(eos_E, jnp.int32)) if eos_E else jnp.zeros_like(alive_B)
    )

    def write(array_BR: jax.Array, column_B: jax.Array) -> jax.Array:
        column_B1 = column_B.astype(array_BR.dtype)[:, None]
        return jax.lax.dynamic_update_slice_in_dim(array_BR, column_B1, state.step, axis=1)

    return state._replace(
        step=state.step + 1,
        last_B=drawn_B,
        ended_B=state.ended_B | (alive_B & is_eos_B),
        tokens_BR=write(state.tokens_BR, drawn_B),
        mask_BR=write(state.mask_BR, alive_B),
        logprobs_BR=write(state.logprobs_BR, jnp.where(alive_B, logprob_B, 0.0)),
    )
