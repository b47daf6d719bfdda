"""Drawing the next token of every row, and deciding which rows have ended.

Drawing a token costs one pass over the logits more than their log-sum-exp. The vocabulary is cut
into blocks; a first uniform number picks the block by its mass, a second the token inside it. Two
numbers per row and step replace the V Gumbel variates of the usual trick, which on a CPU cost as
much as half the network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, ScalarLike

from gapo_jax import rng
from gapo_jax.models import DecoderConfig, generation
from gapo_jax.rng import Stream
from gapo_jax.sharding import ONE_DEVICE, Placement

BLOCK = 256


class Settings(NamedTuple):
    """What is fixed when a sampler is made; see `sampler.make_sampler`."""

    config: DecoderConfig
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_period: int = 0
    repetition_times: int = 4
    place: Placement = ONE_DEVICE

    def check(self) -> None:
        """Raise ValueError on settings that cannot work."""
        if (
            self.max_new_tokens < 1
            or self.top_k < 0
            or not 0.0 < self.top_p <= 1.0
            or not 0.0 <= self.min_p <= 1.0
            or self.repetition_period < 0
            or self.repetition_times < 2
        ):
            raise ValueError(
                "sampling needs max_new_tokens >= 1, top_k >= 0, 0 < top_p <= 1, 0 <= min_p <= 1, "
                f"repetition_period >= 0 and repetition_times >= 2, got {self.max_new_tokens}, "
                f"{self.top_k}, {self.top_p}, {self.min_p}, {self.repetition_period} and "
                f"{self.repetition_times}"
            )


class Repeats(NamedTuple):
    """How far each row repeats itself: its last W tokens, the newest first (-1: none yet), and for
    each period p of 1 to W how many tokens in a row were equal to the one p before; int32."""

    recent_BW: jax.Array
    runs_BW: jax.Array


class Drawn(NamedTuple):
    """One token of every row: the token (`pad_id` in rows that had ended) and its log-prob (0
    there), whether the row has ended with it (or before), and the repeats up to it."""

    tokens_B: jax.Array
    logprobs_B: jax.Array
    ended_B: jax.Array
    repeats: Repeats | None


def no_repeats(settings: Settings, batch: int) -> Repeats | None:
    """The repeats of rows without a token; None if nobody asks for them."""
    if not settings.repetition_period:
        return None
    shape = (batch, settings.repetition_period)
    return Repeats(jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.int32))


def draw_next(
    settings: Settings,
    weights: generation.DecodeWeights,
    hidden_BD: Float[Array, "B D"],
    keys_B: Key[Array, "B"],
    step: Int[Array, "*_"],
    temperature: ScalarLike,
    ended_B: Bool[Array, "B"],
    limits_B: Int[Array, "B"] | None,
    repeats: Repeats | None,
) -> Drawn:
    """Draw token number `step` (a scalar or [B]) of every row from its final hidden state.

    A row ends with an end token, at its limit of tokens (None: has none of its own), or, with
    `repetition_period`, when its last tokens are `repetition_times` copies of one block of at most
    `repetition_period` tokens.
    """
    greedy = jnp.asarray(temperature) == 0
    divisor = jnp.where(greedy, 1.0, temperature)
    logits_BV = generation.next_logits(weights, hidden_BD, divisor, settings.config.final_softcap)
    drawn_B, logprobs_B = draw_tokens(
        logits_BV, keys_B, step, greedy,
        top_k=settings.top_k, top_p=settings.top_p, min_p=settings.min_p, place=settings.place,
    )  # fmt: skip
    tokens_B = jnp.where(ended_B, settings.pad_id, drawn_B)
    ends_B = jnp.zeros_like(ended_B)
    if settings.eos_ids:
        ends_B |= jnp.isin(tokens_B, jnp.asarray(settings.eos_ids, jnp.int32))
    if limits_B is not None:
        ends_B |= step + 1 >= limits_B
    if repeats is not None:
        repeats = _follow(repeats, tokens_B)
        periods_W = jnp.arange(1, settings.repetition_period + 1)
        copied_BW = repeats.runs_BW >= periods_W * (settings.repetition_times - 1)
        ends_B |= copied_BW.any(axis=1)
    return Drawn(tokens_B, jnp.where(ended_B, 0.0, logprobs_B), ended_B | ends_B, repeats)


def _follow(repeats: Repeats, tokens_B: jax.Array) -> Repeats:
    """Take one more token of every row into account."""
    same_BW = repeats.recent_BW == tokens_B[:, None]
    recent_BW = jnp.concatenate([tokens_B[:, None], repeats.recent_BW[:, :-1]], axis=1)
    return Repeats(recent_BW, jnp.where(same_BW, repeats.runs_BW + 1, 0))


def draw_tokens(
    logits_BV: Float[Array, "B V"],
    keys_B: Key[Array, "B"],
    step: Int[Array, "*_"],
    greedy: bool | Bool[Array, ""] = False,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    place: Placement = ONE_DEVICE,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draw one token per row from softmax(logits), or take the best one when `greedy`.

    `logits_BV` float32, already divided by the temperature; a token's key is derived from that of
    its row in `keys_B` and from `step` (int32, a scalar or [B]); `place` is where the logits were
    made. Returns the tokens [B] int32 and their log-probs [B] float32 in the full distribution
    (before `restrict`).
    """
    restricted = bool(top_k or top_p < 1.0 or min_p)
    # Sorting takes whole rows.
    grain = 0 if restricted else _grain(place, logits_BV.shape[1])
    logits_BV = logits_BV if grain else place.keep_rows(logits_BV)
    top_B = _blocks(logits_BV).max(axis=-1).max(axis=-1) if not grain else logits_BV.max(axis=-1)
    mass_BM = _masses(logits_BV, top_B, grain, place)
    log_total_B = jnp.log(mass_BM.sum(axis=-1)) + top_B
    if restricted:
        logits_BV = restrict(logits_BV, top_k, top_p, min_p)
        mass_BM = _masses(logits_BV, top_B, grain, place)

    def uniform(key: jax.Array, at: jax.Array) -> jax.Array:
        return jax.random.uniform(rng.key(key, Stream.TOKEN, at), (2,))

    uniform_B2 = jax.vmap(uniform)(keys_B, jnp.broadcast_to(step, keys_B.shape))
    if grain:
        best_B = logits_BV.argmax(axis=-1) // BLOCK
    else:
        best_B = _blocks(logits_BV).max(axis=-1).argmax(axis=-1)
    block_B = jnp.where(greedy, best_B, _invert_cdf(mass_BM, uniform_B2[:, 0]))
    block_BC = _pick_block(logits_BV, block_B, grain)
    inside_B = _invert_cdf(jnp.exp(block_BC - top_B[:, None]), uniform_B2[:, 1])
    inside_B = jnp.where(greedy, block_BC.argmax(axis=-1), inside_B)
    chosen_B = jnp.take_along_axis(block_BC, inside_B[:, None], axis=1)[:, 0]
    tokens_B = (block_B * block_BC.shape[1] + inside_B).astype(jnp.int32)
    return tokens_B, chosen_B - log_total_B


def restrict(
    logits_BV: Float[Array, "B V"], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Float[Array, "B V"]:
    """Set to -inf what lies outside the `top_k` best, then outside the nucleus of mass `top_p`,
    then what is less than `min_p` times as probable as the best token (arXiv 2407.01082, Eq. 2).

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
    if min_p:
        threshold_B1 = logits_BV.max(axis=-1, keepdims=True) + math.log(min_p)
        logits_BV = jnp.where(logits_BV < threshold_B1, -jnp.inf, logits_BV)
    return logits_BV


def _grain(place: Placement, vocab: int) -> int:
    """Return the width of the pieces that make up both the blocks and the devices' parts of the
    vocabulary; 0 where every device has all logits of its rows."""
    parts = place.tensor_parts
    return math.gcd(vocab // parts, BLOCK) if parts > 1 and vocab % parts == 0 else 0


def _masses(
    logits_BV: Float[Array, "B V"], top_B: Float[Array, "B"], grain: int, place: Placement
) -> Float[Array, "B M"]:
    """Return the sum of exp(logit - top) of every block.

    On a mesh each device sums up the pieces of its part of the vocabulary, and the sums are what
    the devices exchange.
    """
    if not grain:
        return jnp.exp(_blocks(logits_BV) - top_B[:, None, None]).sum(axis=-1)
    pieces_BNC = logits_BV.reshape(logits_BV.shape[0], -1, grain)
    mass_BN = place.keep_rows(jnp.exp(pieces_BNC - top_B[:, None, None]).sum(axis=-1))
    count = BLOCK // grain
    mass_BN = jnp.pad(mass_BN, ((0, 0), (0, -mass_BN.shape[1] % count)))
    return mass_BN.reshape(mass_BN.shape[0], -1, count).sum(axis=-1)


def _pick_block(
    logits_BV: Float[Array, "B V"], block_B: Int[Array, "B"], grain: int
) -> Float[Array, "B C"]:
    """Return the logits of one block of every row."""
    if not grain:
        return jnp.take_along_axis(_blocks(logits_BV), block_B[:, None, None], axis=1)[:, 0]
    columns_BC = block_B[:, None] * BLOCK + jnp.arange(BLOCK)
    block_BC = jnp.take_along_axis(logits_BV, columns_BC, axis=1, mode="clip")
    return jnp.where(columns_BC < logits_BV.shape[1], block_BC, -jnp.inf)


def _blocks(logits_BV: Float[Array, "B V"]) -> Float[Array, "B M C"]:
    """Cut the vocabulary into blocks, with -inf beyond V."""
    batch, vocab = logits_BV.shape
    padded_BV = jnp.pad(logits_BV, ((0, 0), (0, -vocab % BLOCK)), constant_values=-jnp.inf)
    return padded_BV.reshape(batch, -1, BLOCK)


def _invert_cdf(mass_BM: Float[Array, "B M"], uniform_B: Float[Array, "B"]) -> Int[Array, "B"]:
    """First index whose cumulative mass exceeds the share `uniform_B` of the total."""
    cumulative_BM = jnp.cumsum(mass_BM, axis=-1)
    target_B1 = uniform_B[:, None] * cumulative_BM[:, -1:]
    index_B = (cumulative_BM <= target_B1).sum(axis=-1)
    return jnp.minimum(index_B, mass_BM.shape[-1] - 1)
