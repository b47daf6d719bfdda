"""LoRA (arXiv 2106.09685): low-rank updates A B beside frozen matrices of the scanned layers.

The adapters are a tree of their own, stacked over the layers as the kernels are:

    {"attn": {"q": {"a": [L, in, E], "b": [L, E, out]}, ...}, "mlp": {"gate": ..., ...}}

with E the rank. They alone are trained and saved; the base parameters are not touched, so the
reference is the base without them. A training forward computes x W + alpha / E (x A) B (Eq. 3 and
section 4.1); only sampling and export add A B to W, once.

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

Tree = Mapping[str, Any]


class Adapters(flax.struct.PyTreeNode):
    """`layers` as in the module docstring, float32; rank and `alpha` are the same for all."""

    layers: Tree
    alpha: float = flax.struct.field(pytree_node=False)

    @property
    def pairs(self) -> dict[str, Tree]:
        """{"attn/q": {"a", "b"}} of every adapted projection."""
        return dict(_nodes(self.layers, "a"))

    @property
    def scale(self) -> float:
        """The factor of A B: alpha / E."""
        return self.alpha / next(iter(self.pairs.values()))["a"].shape[-1]

    def collection(self) -> Tree:
        """Return what a `LayerStack` takes as its collection "lora": B comes scaled.

        `stack.apply({"params": layers, "lora": adapters.collection()}, ...)`; for a whole `Decoder`
        `{"params": params, "lora": {"layers": adapters.collection()}}`.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * self.scale if path[-1].key == "b" else leaf, self.layers
        )


def kernels(layers: Tree) -> dict[str, Any]:
    """Return {"attn/q": kernel [L, in, out]} of every projection in a stack of layers."""
    found = {path: node["kernel"] for path, node in _nodes(layers, "kernel")}
    return {path: kernel for path, kernel in found.items() if kernel.ndim == 3}


def _nodes(tree: Tree, leaf: str, path: str = "") -> Iterator[tuple[str, Tree]]:
    """Yield (path, node) of the nodes that hold a leaf of that name."""
    for name, node in tree.items():
        if isinstance(node, Mapping) and leaf in node:
            yield path + name, node
        elif isinstance(node, Mapping):
            yield from _nodes(node, leaf, f"{path}{name}/")


def find_targets(layers: Tree, targets: Sequence[str]) -> dict[str, Any]:
    """Return {"attn/q": kernel} of the projections that any of `targets` means.

    A target that is a plain word is the name of a projection ("q", "gate"), and so is each of
    "q,v", which is how a flag spells them; any other one is a regular expression, searched in the
    path ("layers/attn/q/kernel").

    Raises:
        ValueError: a target means no projection; names the nearest.
    """
    known = kernels(layers)
    names = sorted({path.split("/")[-1] for path in known})
    chosen: set[str] = set()
    listed = [t.split(",") if re.fullmatch(r"[\w,]+", t) else [t] for t in targets]
    for target in itertools.chain(*listed):
        # The word "o" as an expression would mean every path.
        pattern = rf"/{target}/kernel$" if re.fullmatch(r"\w+", target) else target
        found = [path for path in known if re.search(pattern, f"layers/{path}/kernel")]
        if not found:
            near = difflib.get_close_matches(target, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {names}"
            raise ValueError(
                f"Wanted a projection of the generator in config.lora.targets, got {target!r}; "
                f"{hint} (a regular expression is searched in paths such as "
                "'layers/attn/q/kernel')"
            )
        chosen.update(found)
    return {path: kernel for path, kernel in known.items() if path in chosen}


def init_adapters(
    key: jax.Array, layers: Tree, *, rank: int, alpha: float, targets: Sequence[str]
) -> Adapters:
    """Return adapters that change nothing yet: A uniform in +-1/sqrt(in), as PEFT's, and B zero.

    `layers` are the stacked layers to adapt (shapes are enough). Raises ValueError as
    `find_targets`, and on a rank that is no smaller than a matrix it should be low beside.
    """
    tree: dict[str, Any] = {}
    for number, (path, kernel) in enumerate(find_targets(layers, targets).items()):
        count, width_in, width_out = kernel.shape
        if not 0 < rank < min(width_in, width_out):
            raise ValueError(
                f"Wanted 0 < config.lora.rank < {min(width_in, width_out)} for {path} of shape "
                f"{(width_in, width_out)}, got {rank}"
            )
        bound = width_in**-0.5
        a_LDE = jax.random.uniform(
            jax.random.fold_in(key, number), (count, width_in, rank), jnp.float32, -bound, bound
        )
        put(tree, path, {"a": a_LDE, "b": jnp.zeros((count, rank, width_out), jnp.float32)})
    return Adapters(tree, alpha)


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set `value` at a path ("attn/q") of a nested dictionary, in place."""
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def merge_adapters(layers: Tree, adapters: Adapters) -> Tree:
    """Return `layers` with W + scale A B in place of every adapted W (float32).

    Adapters of fewer layers than there are belong to the upper ones.
    """
    merged = jax.tree.map(lambda leaf: leaf, dict(layers))  # fresh dictionaries, the same arrays
    for path, pair in adapters.pairs.items():
        delta_LDF = jnp.einsum("lde,lef->ldf", pair["a"], pair["b"])
        kernel_LDF = jnp.asarray(kernels(layers)[path])
        first = len(kernel_LDF) - len(delta_LDF)
        put(merged, f"{path}/kernel", kernel_LDF.at[first:].add(adapters.scale * delta_LDF))
    return merged
