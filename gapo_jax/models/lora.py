"""LoRA (arXiv 2106.09685): low-rank updates A B beside frozen matrices of the scanned layers.

The adapters are a tree of their own, stacked over the layers as the kernels are:

    {"attn": {"q": {"a": [L, in, E], "b": [L, E, out]}, ...}, "mlp": {"gate": ..., ...}}

with E the rank. Only they are trained and saved; the base parameters do not change, so the
reference is the base without adapters. A training forward computes x W + alpha / E (x A) B (Eq. 3
and section 4.1); only sampling and export add A B to W, once.

There is no dropout on the adapters: PPO compares two forwards of the same weights, and noise in one
of them would look like a change of the policy.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gapo_jax import rng
from gapo_jax.records import JsonObject
from gapo_jax.rng import Stream
from gapo_jax.types import Params


class Adapters(flax.struct.PyTreeNode):
    """Adapters of some layers. All of them have the same rank and `alpha`.

    `layers` is the tree of the module docstring, float32.
    """

    layers: Params
    alpha: float = flax.struct.field(pytree_node=False)

    @property
    def pairs(self) -> dict[str, Params]:
        """{"attn/q": {"a", "b"}} of every adapted projection."""
        return dict(_nodes(self.layers, "a"))

    @property
    def scale(self) -> float:
        """The factor of A B: alpha / E."""
        return self.alpha / next(iter(self.pairs.values()))["a"].shape[-1]

    def collection(self) -> Params:
        """Return what a `LayerStack` takes as its collection "lora", with B scaled.

        `stack.apply({"params": layers, "lora": adapters.collection()}, ...)`; for a whole `Decoder`
        `{"params": params, "lora": {"layers": adapters.collection()}}`.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * self.scale if path[-1].key == "b" else leaf, self.layers
        )


def kernels(layers: Params) -> dict[str, jax.Array]:
    """Return {"attn/q": kernel [L, in, out]} of every projection in a stack of layers."""
    nodes = ((path, node["kernel"]) for path, node in _nodes(layers, "kernel"))
    return {path: kernel for path, kernel in nodes if kernel.ndim == 3}


def _nodes(tree: Params, leaf: str, path: str = "") -> Iterator[tuple[str, Params]]:
    """Yield (path, node) of the nodes that have a leaf of that name."""
    for name, node in tree.items():
        if isinstance(node, Mapping) and leaf in node:
            yield path + name, node
        elif isinstance(node, Mapping):
            yield from _nodes(node, leaf, f"{path}{name}/")


def find_targets(layers: Params, targets: Sequence[str]) -> dict[str, jax.Array]:
    """Return {"attn/q": kernel} of the projections that any of `targets` selects.

    A plain word names a projection ("q", "gate"), and a flag may join several with commas ("q,v").
    Anything else is a regular expression that is searched in the path ("layers/attn/q/kernel").

    Raises:
        ValueError: a target selects no projection; the message has the nearest name.
    """
    known = kernels(layers)
    names = sorted({path.split("/")[-1] for path in known})
    chosen: set[str] = set()
    listed = [t.split(",") if re.fullmatch(r"[\w,]+", t) else [t] for t in targets]
    for target in itertools.chain(*listed):
        # As an expression the word "o" would select every path.
        pattern = rf"/{target}/kernel$" if re.fullmatch(r"\w+", target) else target
        selected = [path for path in known if re.search(pattern, f"layers/{path}/kernel")]
        if not selected:
            near = difflib.get_close_matches(target, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {names}"
            raise ValueError(
                f"Wanted a projection of the generator in config.lora.targets, got {target!r}; "
                f"{hint} (a regular expression is searched in paths such as "
                "'layers/attn/q/kernel')"
            )
        chosen.update(selected)
    return {path: kernel for path, kernel in known.items() if path in chosen}


def init_adapters(
    key: jax.Array, layers: Params, *, rank: int, alpha: float, targets: Sequence[str]
) -> Adapters:
    """Return adapters that change nothing yet: A uniform in +-1/sqrt(in), as in PEFT, and B zero.

    `layers` are the stacked layers to adapt (shapes are enough). The numbers of a matrix depend on
    `key` and its path alone.

    Raises:
        ValueError: as `find_targets`, or the rank is not below the width of a matrix.
    """
    tree: dict[str, Any] = {}
    for path, kernel in find_targets(layers, targets).items():
        count, width_in, width_out = kernel.shape
        if not 0 < rank < min(width_in, width_out):
            raise ValueError(
                f"Wanted 0 < config.lora.rank < {min(width_in, width_out)} for {path} of shape "
                f"{(width_in, width_out)}, got {rank}"
            )
        bound = width_in**-0.5
        a_LDE = jax.random.uniform(
            rng.key(key, Stream.ADAPTER_WEIGHTS, path),
            (count, width_in, rank),
            jnp.float32,
            -bound,
            bound,
        )
        put(tree, path, {"a": a_LDE, "b": jnp.zeros((count, rank, width_out), jnp.float32)})
    return Adapters(tree, alpha)


def put(tree: JsonObject, path: str, value: object) -> None:
    """Set `value` at a path ("attn/q") of a nested dictionary, in place."""
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def merge_adapters(layers: Params, adapters: Adapters) -> Params:
    """Return `layers` with W + scale A B in place of every adapted W (float32).

    Adapters of fewer layers than there are belong to the upper ones.
    """
    merged = jax.tree.map(lambda leaf: leaf, dict(layers))  # new dictionaries, the same arrays
    for path, pair in adapters.pairs.items():
        delta_LDF = jnp.einsum("lde,lef->ldf", pair["a"], pair["b"])
        kernel_LDF = jnp.asarray(kernels(layers)[path])
        first = len(kernel_LDF) - len(delta_LDF)
        put(merged, f"{path}/kernel", kernel_LDF.at[first:].add(adapters.scale * delta_LDF))
    return merged
