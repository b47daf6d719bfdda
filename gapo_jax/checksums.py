"""Checksums of arrays, computed where they lie, whatever their layout on the devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return (path, leaf) pairs; fields, keys and indices are all written the same way."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]


def array_checksums(tree: Any) -> dict[str, int]:
    """Return a checksum of every array of a tree, by path.

    They depend on the values alone, not on the layout: a checkpoint may be read on other devices
    than it was written from. They are computed where the arrays lie.
    """
    checksums: dict[str, int] = {}
    # Arrays on different devices cannot be arguments of one program.
    groups: dict[Any, list[tuple[str, Any]]] = {}
    for path, leaf in named_leaves(tree):
        leaf = _raw(leaf)
        sharding = getattr(leaf, "sharding", None)
        if sharding is not None and sharding.memory_kind == "pinned_host":
            # One at a time: the copy may lie on the host because the devices have no room for it.
            checksums[path] = int(
                _checksum(jax.device_put(leaf, sharding.with_memory_kind("device")))
            )
            continue
        devices = frozenset(sharding.device_set if sharding is not None else ())
        groups.setdefault(devices, []).append((path, leaf))
    for group in groups.values():
        numbers = jax.device_get(_checksums([leaf for _, leaf in group]))
        checksums |= {path: int(number) for (path, _), number in zip(group, numbers, strict=True)}
    return checksums


def _raw(leaf: Any) -> Any:
    """Return the numbers of a typed key, and any other array as it is."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


@jax.jit
def _checksum(array: jax.Array) -> jax.Array:
    """Return the sum of bits * (2 * position + 1) modulo 2^32.

    The factor is odd, so a change of one element always changes the sum. Integer sums do not
    depend on their order, and the position is computed along each axis because flattening would
    gather an array that is split over devices.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(array, words).astype(jnp.uint32)
    position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position += along * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


@jax.jit
def _checksums(leaves: list[Any]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]
