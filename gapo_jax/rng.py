"""Random streams: generators and keys by the name of what they are for.

A random number depends on the run's seed, on the name of what it is for and on counters (round,
epoch, row), on nothing else: a run that continues at round n draws what it would have drawn. No two
(seed, name, counters) share a stream. Arithmetic on seeds cannot promise that: with `seed + 1` for
the critic's order and `seed + 2` for the policy's, seed 1's critic walks through its rows as seed
0's policy did, and what looks like two independent runs is not. No other module makes a generator
or a key.

The same holds along a path: a key that was drawn from has no descendants, as the number of counters
is part of the path. Renaming a stream changes its numbers; adding one changes no other.
"""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

# Of a seed that is wider, JAX keeps the lower 32 bits.
MAX_SEED = 2**32 - 1


@enum.unique
class Stream(enum.StrEnum):
    """What random numbers are for. In brackets: the counters that follow the name."""

    # Starting weights.
    GENERATOR_WEIGHTS = enum.auto()
    DISCRIMINATOR_WEIGHTS = enum.auto()
    REWARD_MODEL_WEIGHTS = enum.auto()  # [its source]
    CRITIC_WEIGHTS = enum.auto()
    ADAPTER_WEIGHTS = enum.auto()  # [matrix]
    HEAD_WEIGHTS = enum.auto()

    # What a run learns from, made before its first round.
    PROMPTS = enum.auto()  # [name of the set]
    BOOTSTRAP_PROMPTS = enum.auto()
    TRIP_WIRES = enum.auto()
    TOPIC_SPLIT = enum.auto()
    PAIRS = enum.auto()  # [name of the side]
    USER_PAIRS = enum.auto()  # [name of the side]
    EXAMPLES = enum.auto()
    HELDOUT_ROWS = enum.auto()

    # What a folder of data is made of.
    MINING = enum.auto()  # [task]
    TASK_SPLIT = enum.auto()  # [task]
    SELECTION = enum.auto()  # [name of the side]
    CARD = enum.auto()
    MIXTURE_BLOCK = enum.auto()  # [epoch, block]
    MIXTURE_ROWS = enum.auto()  # [epoch, source, pass]
    PRODUCT_CATEGORIES = enum.auto()
    PRODUCTS = enum.auto()  # [name of the side]
    PRODUCT_WORDING = enum.auto()  # its seed is drawn from PRODUCTS
    TOKENIZER_WORDS = enum.auto()

    # Sampled text; the last counter is the row.
    BOOTSTRAP = enum.auto()  # [row]
    ROLLOUT = enum.auto()  # [round, attempt, row]
    EVALUATION = enum.auto()  # [name of the set, row]
    INVERSE_Q_ROLLOUT = enum.auto()  # [round, row]
    SGPO_REFINEMENTS = enum.auto()  # [row]
    SGPO_ANSWERS = enum.auto()  # [row]
    SGPO_IMPROVEMENTS = enum.auto()  # [row]
    GENERATE_COMMAND = enum.auto()  # [row]
    CHAT_COMMAND = enum.auto()  # [turn]
    EVALUATE_COMMAND = enum.auto()  # [row]
    TOKEN = enum.auto()  # [number of the token in its row]; its root is the row's key

    # The order in which rows are learned from; an epoch goes once through all rows.
    PROMPT_ORDER = enum.auto()  # [attempt, number of rows, epoch]
    PAIR_PROMPT_ORDER = enum.auto()  # [attempt, epoch]
    INVERSE_Q_ORDER = enum.auto()  # [number of rows, epoch]
    POLICY_ORDER = enum.auto()  # [round, epoch]
    CRITIC_ORDER = enum.auto()  # [round, epoch]
    SFT_ORDER = enum.auto()  # [number of rows, epoch]
    OFFLINE_ORDER = enum.auto()  # [number of rows, epoch]
    OFFLINE_WIDTHS = enum.auto()  # [window]
    SGPO_ORDER = enum.auto()  # [stage]
    WARMUP_PAIRS = enum.auto()  # [epoch, number of rows, pass]
    WARMUP_BATCHES = enum.auto()  # [epoch]
    ROUND_PAIRS = enum.auto()  # [number of rows, epoch]
    ROUND_TEXTS = enum.auto()  # [round]
    REPLAY = enum.auto()  # [round]

    # Inside a step of the discriminator.
    DROPOUT = enum.auto()  # [update]
    DROPOUT_LAYER = enum.auto()  # [layer, 0 for the embeddings]; its root is the update's key
    DROPOUT_HIDDEN = enum.auto()  # [place in the layer]; its root is the layer's key
    DROPOUT_WEIGHTS = enum.auto()  # [block of queries]; its root is the layer's key

    # After the last step, and beside a run.
    RESAMPLES = enum.auto()
    BENCHMARK = enum.auto()  # [name of the numbers], for keys [name, row]


def stream(seed: int, name: Stream, *counters: int | str) -> np.random.Generator:
    """Return a fresh numpy generator for (seed, name, counters).

    >>> stream(0, Stream.CRITIC_ORDER, 3).permutation(4)  # in round 3
    """
    # Not `default_rng([seed, ...])`: it pads short lists with zeros, so [0, 1] is [0, 1, 0].
    path = repr((int(seed), str(name), *(_plain(counter) for counter in counters)))
    return np.random.default_rng(int.from_bytes(_digest(path, 16), "little"))


def root_key(seed: int) -> jax.Array:
    """Return the typed key that all others of a run are derived from; nothing is drawn from it.

    Raises:
        ValueError: a seed outside of 32 bits.
    """
    import jax

    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"wanted a seed of 0 to {MAX_SEED}, got {seed}")
    return jax.random.key(int(seed))


def key(root: int | jax.Array, name: Stream, *counters: int | str | jax.Array) -> jax.Array:
    """Return a typed JAX key for (root, name, counters).

    Args:
        root: the run's seed, or a key that is used for nothing but deriving others.
        name: what the key is for.
        counters: integers of 32 bits, which may be traced, or names.

    Raises:
        ValueError: a seed outside of 32 bits.
    """
    return _descend(_stem(root, name, len(counters)), counters)


def row_keys(root: int | jax.Array, name: Stream, *counters: int | str, count: int) -> jax.Array:
    """Return typed keys [count]; the one of row b is `key(root, name, *counters, b)`."""
    above = _descend(_stem(root, name, len(counters) + 1), counters)
    return _fold_rows()(above, np.arange(count, dtype=np.uint32))


def key_shape(*shape: int) -> jax.ShapeDtypeStruct:
    """Return the shape of typed keys, for functions that are traced and not run."""
    import jax

    return jax.ShapeDtypeStruct(shape, jax.eval_shape(jax.random.key, 0).dtype)


# JAX is imported where it is needed: a process that only verifies or mines text starts without it.


def _stem(root: int | jax.Array, name: Stream, depth: int) -> jax.Array:
    import jax

    if isinstance(root, int | np.integer):
        root = root_key(int(root))
    return jax.random.fold_in(root, _word(f"{name} {depth}"))


def _descend(key: jax.Array, counters: tuple[int | str | jax.Array, ...]) -> jax.Array:
    import jax

    for counter in counters:
        key = jax.random.fold_in(key, _word(counter) if isinstance(counter, str) else counter)
    return key


@functools.cache
def _fold_rows() -> Callable[[jax.Array, np.ndarray], jax.Array]:
    import jax

    return jax.jit(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))


def _plain(counter: int | str) -> int | str:
    return counter if isinstance(counter, str) else int(counter)


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=size).digest()


def _word(text: str) -> np.uint32:
    return np.uint32(int.from_bytes(_digest(text, 4), "little"))
