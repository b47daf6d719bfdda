"""Where arrays live: the device mesh, and one table from parameter names to mesh axes.

Parameters get logical axes by the first pattern of `PARAMETER_AXES` that their path ends with, and
logical axes get mesh axes by `MESH_AXES`. Mesh axes: `data` (batch only), `fsdp` (batch, and
parameters split over it), `tensor` (parameters and their activations split over it). The mesh is
Auto: XLA places the rest. `Placement` puts what a run works with by these rules.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

AXIS_NAMES = ("data", "fsdp", "tensor")

LogicalAxes = tuple[str | None, ...]
Layout = Literal["params", "rows", "whole"]
# A pytree goes in and one of the same structure comes out: arrays, shapes or shardings.
Tree = TypeVar("Tree")

# (pattern of the end of the path, logical axes of the array). First match wins.
PARAMETER_AXES: tuple[tuple[str, LogicalAxes], ...] = (
    (r"embed/embedding", ("vocab", "embed")),
    (r"embed/word/embedding", ("vocab", "embed")),
    (r"embed/(position|type|relative)/embedding", (None, "embed")),
    (r"(^|/)position/embedding", (None, "embed")),
    (r"lm_head/kernel", ("embed", "vocab")),
    (r"layers/attn/[qkv](_global)?/kernel", ("layers", "embed", "heads")),
    (r"layers/attn/[qkv](_global)?/bias", ("layers", "heads")),
    (r"layers/attn/o/kernel", ("layers", "heads", "embed")),
    # The scales of int8 matrices (`generation.quantised`) lie as their columns do.
    (r"layers/attn/[qkv]/scale", ("layers", "heads")),
    (r"layers/mlp/(gate|up)/scale", ("layers", "mlp")),
    (r"layers/(attn/o|mlp/down)/scale", ("layers", None)),
    # Adapters are small beside their matrix: split with the side that they share with it.
    (r"layers/(attn/[qkv]|mlp/(gate|up))/a", ("layers", "embed", None)),
    (r"layers/attn/[qkv]/b", ("layers", None, "heads")),
    (r"layers/attn/o/a", ("layers", "heads", None)),
    (r"layers/mlp/(gate|up)/b", ("layers", None, "mlp")),
    (r"layers/mlp/down/a", ("layers", "mlp", None)),
    (r"layers/(attn/o|mlp/down)/b", ("layers", None, "embed")),
    (r"layers/mlp/(gate|up)/kernel", ("layers", "embed", "mlp")),
    (r"layers/mlp/(gate|up)/bias", ("layers", "mlp")),
    (r"layers/mlp/down/kernel", ("layers", "mlp", "embed")),
    (r"layers/(attn/o|mlp/down)/bias", ("layers", None)),
    (r"layers/(attn|mlp)(_post)?_norm/(scale|bias)", ("layers", None)),
    (r"layers/attn/[qk]_norm/(scale|bias)", ("layers", None)),
    (r"(embed/norm|embed/relative_norm|final_norm|head/norm)/(scale|bias)", (None,)),
    # Scalar heads (critic, discriminator) and BERT's pooler: small, the same on every device.
    (r"(^|/)(up|out|pooler)/kernel", (None, None)),
    (r"(^|/)(up|out|pooler)/bias", (None,)),
    # Of a run's state: count, mean and squares of the rewards so far.
    (r"reward_stats", (None,)),
)
# What Adafactor keeps for a matrix is a row and a column: small, the same on every device.
FACTORS = re.compile(r"(^|/)(v_row|v_col|v)/")

MESH_AXES: Mapping[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "layers": None,
}


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Return a mesh with axes `data`, `fsdp`, `tensor` over `devices` (default: all).

    At most one size may be -1: it takes what the other two leave.

    Raises:
        ValueError: a size is 0 or below -1, two are -1, or they do not multiply to the number of
            devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    shown = ", ".join(f"config.mesh.{name}={size}" for name, size in sizes.items())
    if any(size == 0 or size < -1 for size in sizes.values()):
        raise ValueError(f"wanted mesh sizes of at least 1, or -1 for the rest; got {shown}")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"wanted at most one mesh size of -1, got {shown}")
    known = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"wanted mesh sizes that multiply to the {len(devices)} devices here, got {shown}; "
            "set one of them to -1 to take what the others leave"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        AXIS_NAMES,
        axis_types=(AxisType.Auto,) * len(AXIS_NAMES),
        devices=devices,
    )


def param_shardings(
    mesh: Mesh,
    params: Tree,
    *,
    table: Sequence[tuple[str, LogicalAxes]] = PARAMETER_AXES,
) -> Tree:
    """Return a tree like `params` with a `NamedSharding` for every leaf.

    Works for whatever carries parameter paths: parameters, their shapes (`jax.eval_shape`),
    gradients, optimizer moments. Leaves without axes (counts, schedules) are replicated. An axis
    whose length the mesh axis does not divide is replicated.

    Raises:
        ValueError: no pattern matches a parameter, or its pattern has another number of axes; the
            message names it.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _param_spec(mesh, name, np.shape(leaf), table))

    return jax.tree_util.tree_map_with_path(sharding, params)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of batches: rows split over `data` and `fsdp`, other axes whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Placement:
    """Puts what a run works with on its mesh. `compilation.jit_placed` compiles steps for it.

    Without a mesh, or with one of a single device, every method hands on what it is given: a run on
    one device has the programs that it would have without this class. In a run of several processes
    every process calls every method, with the same values. For devices that are `described` but not
    here, single ones too, shapes are placed and programs compiled.
    """

    mesh: Mesh | None = None
    described: bool = False

    @property
    def spread(self) -> bool:
        """Whether anything has to be placed: on several devices, or on described ones."""
        return self.mesh is not None and (self.mesh.size > 1 or self.described)

    @property
    def platform(self) -> str:
        """The platform ("cpu", "gpu", "tpu") of the devices."""
        if self.mesh is None:
            return jax.default_backend()
        return self.mesh.devices.flat[0].platform

    @property
    def device_kind(self) -> str:
        """What the devices call themselves, such as "TPU v5 lite"."""
        return (jax.devices() if self.mesh is None else self.mesh.devices.flat)[0].device_kind

    @property
    def row_parts(self) -> int:
        """The number of parts that the rows of a batch are split into."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] if self.mesh is not None else 1

    @property
    def tensor_parts(self) -> int:
        """The number of devices that the heads and the feed-forward of one row are split over."""
        return self.mesh.shape["tensor"] if self.mesh is not None and self.spread else 1

    def regrouped(self, tensor: int) -> Placement:
        """Return a placement on the same devices with `tensor` of them to a copy of the weights, or
        as many as divide both it and the number of devices; 0 takes the mesh's own.

        For decoding, which reads every weight for every token: weights split over `fsdp` would be
        gathered anew each time.
        """
        if not self.spread:
            return self
        mesh = self._mesh
        tensor = math.gcd(tensor or mesh.shape["tensor"], mesh.size)
        devices = mesh.devices.reshape(-1, 1, tensor)
        mesh = Mesh(devices, AXIS_NAMES, axis_types=(AxisType.Auto,) * 3)
        return dataclasses.replace(self, mesh=mesh)

    def for_rows(self, rows: int) -> Placement:
        """Return a placement on the same devices that has work for all of them in a batch of so
        many rows: this one where they divide, else one that splits the rows over as many devices
        as divide both, and each row's heads and feed-forward over the rest (`tensor`)."""
        if not self.spread or rows % self.row_parts == 0:
            return self
        size = self._mesh.size
        return self.regrouped(size // math.gcd(rows, size))

    def shardings(self, tree: Tree, layout: Layout) -> Tree:
        """Return where each leaf of a tree lies: "params" by the table above (parameters, optimizer
        states, whole networks), "rows" split over `data` and `fsdp`, or whole where they do not
        divide (batches), "whole" on every device."""
        if layout == "params":
            return param_shardings(self._mesh, tree)
        whole, split = replicated(self._mesh), batch_sharding(self._mesh)

        def where(leaf: Any) -> NamedSharding:
            shape = np.shape(leaf)
            divides = layout == "rows" and shape and shape[0] % self.row_parts == 0
            return split if divides else whole

        return jax.tree.map(where, tree)

    def abstract(self, tree: Tree, layout: Layout = "params") -> Tree:
        """Return shapes with their places."""
        if not self.spread:
            return tree

        def located(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        return jax.tree.map(located, tree, self.shardings(tree, layout))

    def abstract_rows(self, tree: Tree) -> Tree:
        """Return the shapes of a batch with their places."""
        return self.abstract(tree, "rows")

    def put(self, path: str, leaf: np.ndarray) -> jax.Array:
        """Take one parameter from the host, named as in the table, to its shards: with it weights
        are read from disk without a second tree of them in memory."""
        if not self.spread:
            return jnp.asarray(leaf)
        where = NamedSharding(self._mesh, _param_spec(self._mesh, path, leaf.shape, PARAMETER_AXES))
        return _put(leaf, where)

    def place(self, tree: Tree, layout: Layout) -> Tree:
        """Take arrays to their places."""
        if not self.spread:
            return tree
        places = self.shardings(tree, layout)
        if jax.process_count() == 1:
            return jax.device_put(tree, places)
        return jax.tree.map(_put, tree, places)

    def params(self, tree: Tree) -> Tree:
        """Place parameters, optimizer states or whole networks."""
        return self.place(tree, "params")

    def rows(self, tree: Tree) -> Tree:
        """Place a batch."""
        return self.place(tree, "rows")

    def whole(self, tree: Tree) -> Tree:
        """Place arrays so that every device holds all of each."""
        return self.place(tree, "whole")

    def init(self, function: Callable[..., Tree], *inputs: Any) -> Tree:
        """Return `function(*inputs)`, new parameters or networks, each made where it belongs."""
        if not self.spread:
            return function(*inputs)
        shardings = param_shardings(self._mesh, jax.eval_shape(function, *inputs))
        return _in_turn(jax.jit(function, out_shardings=shardings)(*inputs))

    def keep(self, tree: Tree, layout: Layout) -> Tree:
        """Hold traced arrays to their places."""
        if not self.spread:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree, layout))

    def keep_rows(self, tree: Tree) -> Tree:
        """Hold traced batches to their places."""
        return self.keep(tree, "rows")

    def keep_axes(self, array: jax.Array, axes: LogicalAxes) -> jax.Array:
        """Hold a traced array to logical axes, such as those of the table above."""
        if not self.spread:
            return array
        place = NamedSharding(self._mesh, _spec(self._mesh, array.shape, axes))
        return jax.lax.with_sharding_constraint(array, place)

    def keep_columns(self, kernel_DV: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Hold a traced matrix, cast to `dtype`, to its columns split over `tensor` and gathered
        over `fsdp`: before a loop that would otherwise gather it in every turn. On one device there
        is nothing to gather and the loop casts what it reads."""
        if not self.spread:
            return kernel_DV
        kernel_DV = kernel_DV.astype(dtype)
        # Split first: XLA might else gather what the matrix was cast from, twice as many bytes.
        return self.keep_axes(self.keep_axes(kernel_DV, ("embed", "vocab")), (None, "vocab"))

    def host(self, tree: Tree) -> Tree:
        """Return arrays that this process can read whole: as they are, or gathered from the other
        processes, a slice of a stack at a time, so that no device has to hold all of it."""
        if jax.process_count() == 1 or not self.spread:
            return tree
        gather = jax.jit(lambda leaf: leaf, out_shardings=replicated(self._mesh))

        def whole(leaf: Any) -> np.ndarray:
            if not isinstance(leaf, jax.Array) or leaf.is_fully_replicated:
                return np.asarray(leaf)
            if leaf.ndim < 3:
                return np.asarray(gather(leaf))
            return np.stack([np.asarray(gather(leaf[i])) for i in range(leaf.shape[0])])

        return jax.tree.map(whole, tree)

    @property
    def _mesh(self) -> Mesh:
        assert self.mesh is not None
        return self.mesh


ONE_DEVICE = Placement()


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """As `jax.device_put`, also across processes that all hold the whole host value."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return _in_turn(jax.device_put(leaf, sharding))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _in_turn(tree: Tree) -> Tree:
    """Wait for arrays that several processes make together.

    Exchanges of different programs that run beside each other may meet in another order in each
    process, and then all of them wait for ever (seen between CPU processes).
    """
    return jax.block_until_ready(tree) if jax.process_count() > 1 else tree


def _logical_axes(
    name: str, shape: tuple[int, ...], table: Sequence[tuple[str, LogicalAxes]]
) -> LogicalAxes:
    for pattern, axes in table:
        if re.search(rf"(?:{pattern})$", name) is None:
            continue
        if len(axes) != len(shape) and FACTORS.search(name):
            return (None,) * len(shape)
        if len(axes) != len(shape):
            raise ValueError(
                f"parameter {name!r} has shape {shape}, but the pattern {pattern!r} in "
                f"gapo_jax/sharding.py has the axes {axes}; mend the pattern or add one before it"
            )
        return axes
    raise ValueError(
        f"no pattern in gapo_jax/sharding.py matches the parameter {name!r} of shape {shape}; "
        "add a line to PARAMETER_AXES"
    )


def _param_spec(
    mesh: Mesh, name: str, shape: tuple[int, ...], table: Sequence[tuple[str, LogicalAxes]]
) -> PartitionSpec:
    return _spec(mesh, shape, _logical_axes(name, shape, table)) if shape else PartitionSpec()


def _spec(mesh: Mesh, shape: tuple[int, ...], axes: LogicalAxes) -> PartitionSpec:
    chosen: list[str | None] = []
    for length, axis in zip(shape, axes):
        mesh_axis = None if axis is None else MESH_AXES[axis]
        divides = mesh_axis is not None and length % mesh.shape[mesh_axis] == 0
        chosen.append(mesh_axis if divides else None)
    return PartitionSpec(*chosen)
