"""Where arrays live: the device mesh, and one table from parameter names to mesh axes.

Parameters get logical axes by the first pattern of `PARAMETER_AXES` that their path ends with, and
logical axes get mesh axes by `MESH_AXES`. Mesh axes: `data` (batch only), `fsdp` (batch, and
parameters split over it), `tensor` (parameters and their activations split over it). The mesh is
Auto: XLA places the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS_NAMES = ("data", "fsdp", "tensor")

LogicalAxes = tuple[str | None, ...]

# (pattern of the end of the path, logical axes of the array). First match wins.
PARAMETER_AXES: tuple[tuple[str, LogicalAxes], ...] = (
    (r"embed/embedding", ("vocab", "embed")),
    (r"embed/word/embedding", ("vocab", "embed")),
    (r"embed/(position|type)/embedding", (None, "embed")),
    (r"(^|/)position/embedding", (None, "embed")),
    (r"lm_head/kernel", ("embed", "vocab")),
    (r"layers/attn/[qkv]/kernel", ("layers", "embed", "heads")),
    (r"layers/attn/[qkv]/bias", ("layers", "heads")),
    (r"layers/attn/o/kernel", ("layers", "heads", "embed")),
    (r"layers/mlp/(gate|up)/kernel", ("layers", "embed", "mlp")),
    (r"layers/mlp/(gate|up)/bias", ("layers", "mlp")),
    (r"layers/mlp/down/kernel", ("layers", "mlp", "embed")),
    (r"layers/(attn/o|mlp/down)/bias", ("layers", None)),
    (r"layers/(attn|mlp)(_post)?_norm/(scale|bias)", ("layers", None)),
    (r"layers/attn/[qk]_norm/(scale|bias)", ("layers", None)),
    (r"(embed/norm|final_norm)/(scale|bias)", (None,)),
    # Scalar heads (critic, discriminator): small, the same on every device.
    (r"(^|/)(up|out)/kernel", (None, None)),
    (r"(^|/)(up|out)/bias", (None,)),
)

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
    params: Any,
    *,
    table: Sequence[tuple[str, LogicalAxes]] = PARAMETER_AXES,
) -> Any:
    """Return a tree like `params` with a `NamedSharding` for every leaf.

    Works for whatever carries parameter paths: parameters, their shapes (`jax.eval_shape`),
    gradients, optimizer moments. Leaves without axes (counts, schedules) are replicated. An axis
    whose length the mesh axis does not divide is replicated.

    Raises:
        ValueError: no pattern matches a parameter, or its pattern has another number of axes; the
            message names it.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)
        if not shape:
            return replicated(mesh)
        axes = _logical_axes(jax.tree_util.keystr(path, simple=True, separator="/"), shape, table)
        return NamedSharding(mesh, _spec(mesh, shape, axes))

    return jax.tree_util.tree_map_with_path(sharding, params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of batches: rows split over `data` and `fsdp`, other axes whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _logical_axes(
    name: str, shape: tuple[int, ...], table: Sequence[tuple[str, LogicalAxes]]
) -> LogicalAxes:
    for pattern, axes in table:
        if re.search(rf"(?:{pattern})$", name) is None:
            continue
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


def _spec(mesh: Mesh, shape: tuple[int, ...], axes: LogicalAxes) -> PartitionSpec:
    chosen: list[str | None] = []
    for length, axis in zip(shape, axes):
        mesh_axis = None if axis is None else MESH_AXES[axis]
        divides = mesh_axis is not None and length % mesh.shape[mesh_axis] == 0
        chosen.append(mesh_axis if divides else None)
    return PartitionSpec(*chosen)
