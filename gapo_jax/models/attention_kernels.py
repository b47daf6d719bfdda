"""Attention kernels: which one runs on which device, and how it is split over a mesh.

- `xla`, on a CPU and wherever no other kernel fits: the plain version, `attention.attend` and the
  blocks of `encoder_attention`. The tests compare the other two with it.
- `cudnn`, on a GPU: cuDNN's flash attention, by `jax.nn.dot_product_attention`.
- `splash`, on a TPU: Pallas splash attention, `jax.experimental.pallas.ops.tpu.splash_attention`.

The last two never hold a [T, T] array. The kernels agree on real tokens to rounding. On a row of
padding they may differ; it is finite with all of them, and nothing reads it.

**On a mesh.** XLA splits the plain version and cuDNN itself, but not a Pallas call. So `splash`
runs under `jax.shard_map` over the mesh of the context: trace the step under
`with jax.set_mesh(mesh):`, where `mesh` has the axes of `gapo_jax.sharding`. Rows are split as
`sharding.batch_sharding` splits a batch, heads over the mesh axis of the logical axis "heads" (keys
and values are repeated if that axis has more devices than they have heads), and lengths are not
split. A mesh axis that does not divide is left out, and so are axes that are manual already (inside
a `shard_map`). Without a context mesh everything is on one device. The platform, too, is that of
the context mesh, so that a program for a topology that is only described is traced with the kernels
of that topology.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

from gapo_jax import sharding

AttentionKernel = Literal["xla", "cudnn", "splash"]
AttentionChoice = Literal["auto", "xla", "cudnn", "splash"]

# Splash works on tiles of lanes; a larger block is faster as long as it fits the vector memory.
_LANES, _LARGEST_BLOCK = 128, 512
_CUDNN_HEAD_DIM = 128  # 256 only on some GPUs

Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def platform() -> str:
    """Return the platform ("cpu", "gpu", "tpu") that is traced for.

    It is that of the context mesh, or JAX's default without one.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose(
    wanted: AttentionChoice,
    *,
    dtype: DTypeLike,
    head_dim: int,
    softcap: float = 0.0,
    two_sided_windows: bool = False,
    plain_only: str = "",
) -> AttentionKernel:
    """Return the kernel to run.

    Args:
        wanted: a kernel, or "auto" for the fastest one that the platform has and that can do what
            the other arguments say. "splash" on a CPU runs in Pallas' interpreter, for tests.
        dtype: of the heads.
        head_dim: width of a head.
        softcap: bound of the scores, 0 for none.
        two_sided_windows: whether windows reach to both sides of a token.
        plain_only: names a feature that only the plain version has; "" for none.

    Raises:
        ValueError: `wanted` is unknown, or names a kernel that cannot do this.
    """
    if wanted not in get_args(AttentionChoice):
        raise ValueError(f"attention must be one of {get_args(AttentionChoice)}, got {wanted!r}")
    here = platform()
    lacks = {"xla": "", "cudnn": plain_only, "splash": plain_only}
    if here != "gpu" or not _has_flash():
        lacks["cudnn"] = "an NVIDIA GPU of compute capability 8.0 or more"
    elif jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        lacks["cudnn"] = lacks["cudnn"] or f"bfloat16 or float16 (dtype is {jnp.dtype(dtype)})"
    elif head_dim % 8 or head_dim > _CUDNN_HEAD_DIM:
        lacks["cudnn"] = f"a head_dim of at most {_CUDNN_HEAD_DIM} that 8 divides, not {head_dim}"
    elif softcap:
        lacks["cudnn"] = "no soft cap"
    elif two_sided_windows:
        lacks["cudnn"] = "no windows to both sides"
    if here == "gpu":
        lacks["splash"] = "a TPU"
    if wanted == "auto":
        fastest: dict[str, AttentionKernel] = {"gpu": "cudnn", "tpu": "splash"}
        best = fastest.get(here, "xla")
        return "xla" if lacks[best] else best
    if lacks[wanted]:
        raise ValueError(
            f"attention={wanted!r} needs {lacks[wanted]}; set it to 'auto', which takes what fits"
        )
    return wanted


def _has_flash() -> bool:
    """Return whether cuDNN's flash attention runs on the GPU here; on a described one it does."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return True
    capability = str(getattr(device, "compute_capability", ""))  # "9.0"; "gfx90a" on AMD
    return capability.replace(".", "").isdigit() and float(capability) >= 8.0


def causal_attention(
    kernel: AttentionKernel,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask_BT: jax.Array,
    *,
    windows: Sequence[int],
    index: jax.Array,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """Compute causal self-attention with "cudnn" or "splash", as `attend` under `causal_bias`.

    Args:
        kernel: "cudnn" or "splash".
        q_BTNH, k_BTKH, v_BTKH: queries, keys and values.
        mask_BT: int32, 1 = real token. The real tokens of a row must be adjacent; padding may be
            on either side.
        windows: the widths that the layers of the network have, ascending, 0 for no window.
        index: this layer's place in `windows`, an int32 scalar that may be traced.
        scale: factor of the scores.
        softcap: bound of the scores, 0 for none.

    Returns:
        [B, T, N, H].
    """

    def with_window(window: int) -> Kernel:
        if kernel == "cudnn":
            near = (window - 1, 0) if window else None
            return functools.partial(flash, causal=True, window=near, scale=scale)
        return functools.partial(splash, causal=True, window=window, scale=scale, softcap=softcap)

    return _switch(with_window, windows, index, q_BTNH, k_BTKH, v_BTKH, mask_BT)


def bidirectional_attention(
    kernel: AttentionKernel,
    q_BTNH: jax.Array,
    k_BTNH: jax.Array,
    v_BTNH: jax.Array,
    mask_BT: jax.Array,
    *,
    windows: Sequence[int] = (0,),
    index: jax.Array | int = 0,
    see_first: bool = False,
) -> jax.Array:
    """Compute self-attention to both sides with "cudnn" or "splash"; the scale is H ** -0.5.

    Args:
        kernel, q_BTNH, k_BTNH, v_BTNH, mask_BT, index: as in `causal_attention`.
        windows: as in `causal_attention`, but a window reaches that many tokens to each side.
        see_first: whether every token also sees the first real token of its row (Longformer). That
            token's own output, which has other projections, is left to the caller.

    Returns:
        [B, T, N, H].
    """
    scale = q_BTNH.shape[-1] ** -0.5

    def with_window(window: int) -> Kernel:
        if kernel == "cudnn":
            return functools.partial(flash, causal=False, window=None, scale=scale)
        return functools.partial(
            splash, causal=False, window=window, scale=scale, see_first=see_first
        )

    return _switch(with_window, windows, index, q_BTNH, k_BTNH, v_BTNH, mask_BT)


def _switch(
    with_window: Callable[[int], Kernel],
    windows: Sequence[int],
    index: jax.Array | int,
    *arrays: jax.Array,
) -> jax.Array:
    """Run the kernel for the layer's window; it is a branch only if the windows differ."""
    branches = [with_window(window) for window in windows]
    return branches[0](*arrays) if len(branches) == 1 else jax.lax.switch(index, branches, *arrays)


# Rows that begin with their first real token


@jax.custom_vjp
def rotate(x_BT: jax.Array, places_B: jax.Array) -> jax.Array:
    """Rotate the columns (axis 1) of row b by `places_B[b]` (int32) to the left.

    The gradient of a rotation is the rotation back, where JAX by itself would use a scatter.
    """
    columns_BT = (jnp.arange(x_BT.shape[1]) + places_B[:, None]) % x_BT.shape[1]
    return jax.vmap(lambda row_T, columns_T: row_T[columns_T])(x_BT, columns_BT)


def _rotate_forward(x_BT: jax.Array, places_B: jax.Array):
    return rotate(x_BT, places_B), places_B


def _rotate_backward(places_B: jax.Array, gradient_BT: jax.Array):
    return rotate(gradient_BT, -places_B), None


rotate.defvjp(_rotate_forward, _rotate_backward)


def from_first(attend: Kernel, q_BTNH, k_BTKH, v_BTKH, mask_BT: jax.Array) -> jax.Array:
    """Run `attend` on rows rotated so that their first real token is in column 0; rotate back."""
    places_B = jnp.argmax(mask_BT > 0, axis=1).astype(jnp.int32)
    turned = (rotate(x, places_B) for x in (q_BTNH, k_BTKH, v_BTKH, mask_BT))
    return rotate(attend(*turned), -places_B)


# cuDNN


def flash(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask_BT: jax.Array,
    *,
    causal: bool,
    window: tuple[int, int] | None,
    scale: float,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """Compute flash attention by `jax.nn.dot_product_attention`; returns [B, T, N, H].

    It takes the length of each row instead of a bias [B, T, T], so rows are rotated to begin with
    their first real token. `window` counts the tokens that a query sees before and after itself.
    """

    def attend(q, k, v, mask):
        lengths_B = jnp.maximum(mask.sum(axis=1), 1).astype(jnp.int32)
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=causal, query_seq_lengths=lengths_B,
            key_value_seq_lengths=lengths_B, local_window_size=window,
            implementation=implementation,
        )  # fmt: skip

    return from_first(attend, q_BTNH, k_BTKH, v_BTKH, mask_BT)


# Splash


def splash(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask_BT: jax.Array,
    *,
    causal: bool,
    window: int,
    scale: float,
    softcap: float = 0.0,
    see_first: bool = False,
) -> jax.Array:
    """Compute splash attention on every device of the context mesh; returns [B, T, N, H].

    Args:
        q_BTNH, k_BTKH, v_BTKH, mask_BT: as in `causal_attention`. Padding is a segment of its own,
            and so are the columns that fill T up to a multiple of 128.
        causal: whether a token sees only itself and what is before it.
        window: 0 for no window; otherwise the number of last tokens that a causal query sees, its
            own among them, or the number of tokens to each side.
        scale: factor of the scores.
        softcap: bound of the scores, 0 for none.
        see_first: as in `bidirectional_attention`.
    """
    attend = functools.partial(
        _splash_on_device,
        mask_of=functools.partial(_splash_mask, causal=causal, window=window, see_first=see_first),
        scale=scale,
        softcap=softcap,
        interpret=platform() == "cpu",
    )
    if see_first:
        attend = functools.partial(from_first, attend)
    return _over_mesh(attend, q_BTNH, k_BTKH, v_BTKH, mask_BT)


def _over_mesh(attend: Kernel, q_BTNH, k_BTKH, v_BTKH, mask_BT) -> jax.Array:
    """Call `attend` on each device with the rows and heads that it holds."""
    mesh = jax.sharding.get_abstract_mesh()
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind != AxisType.Manual}
    if not free:
        return attend(q_BTNH, k_BTKH, v_BTKH, mask_BT)
    rows, heads = sharding.batch_sharding(mesh).spec[0], sharding.MESH_AXES["heads"]
    rows = tuple(axis for axis in rows if axis in free)
    batch, kv_heads = k_BTKH.shape[0], k_BTKH.shape[2]
    if batch % int(np.prod([mesh.shape[axis] for axis in rows])):
        rows = ()
    parts = mesh.shape[heads] if heads in free else 1
    if parts % kv_heads == 0 and q_BTNH.shape[2] % parts == 0:
        k_BTKH, v_BTKH = (jnp.repeat(x, parts // kv_heads, axis=2) for x in (k_BTKH, v_BTKH))
    elif kv_heads % parts:
        heads = None
    spec = PartitionSpec(rows or None, None, heads if parts > 1 else None, None)
    # A Pallas call does not say over which axes its result varies.
    sharded = jax.shard_map(
        attend,
        in_specs=(spec, spec, spec, PartitionSpec(rows or None, None)),
        out_specs=spec,
        axis_names=free,
        check_vma=False,
    )
    return sharded(q_BTNH, k_BTKH, v_BTKH, mask_BT)


def _splash_on_device(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask_BT: jax.Array,
    *,
    mask_of: Callable[[int], splash_attention.Mask],
    scale: float,
    softcap: float,
    interpret: bool,
) -> jax.Array:
    """Compute one device's share of `splash`."""
    length, num_heads = q_BTNH.shape[1:3]
    padded = -(-length // _LANES) * _LANES
    fitting = [size for size in range(_LANES, _LARGEST_BLOCK + 1, _LANES) if padded % size == 0]
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": max(fitting) for name in names}
    kernel: Any = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask_of(padded)] * num_heads),
        block_sizes=splash_attention.BlockSizes(**blocks),
        attn_logits_soft_cap=softcap or None,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def fill(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(x_BT, ((0, 0), (0, padded - length)) + ((0, 0),) * (x_BT.ndim - 2))

    # The kernel takes [N, T, H] of one row.
    q_BNTH, k_BKTH, v_BKTH = (fill(x).swapaxes(1, 2) for x in (q_BTNH * scale, k_BTKH, v_BTKH))
    segments_BT = fill((mask_BT > 0).astype(jnp.int32))
    segments = splash_attention.SegmentIds(segments_BT, segments_BT)
    out_BNTH: jax.Array = jax.vmap(kernel)(q_BNTH, k_BKTH, v_BKTH, segments)
    return out_BNTH.swapaxes(1, 2)[:, :length]


def _splash_mask(
    length: int, *, causal: bool, window: int, see_first: bool
) -> splash_attention.Mask:
    """Return the lazy mask [T, T] of one head."""
    shape = (length, length)
    if causal:
        if not window:
            return splash_attention.CausalMask(shape)
        return splash_attention.LocalMask(shape, (window - 1, 0), 0)
    if not window:
        return splash_attention.FullMask(shape)
    near = splash_attention.LocalMask(shape, (window, window), 0)
    return near | _FirstColumn(shape) if see_first else near


@dataclasses.dataclass(frozen=True)
class _FirstColumn(splash_attention.Mask):
    """The mask of column 0 alone; evaluated in blocks, never whole."""

    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (np.arange(size)[part] for size, part in zip(self.size, idx))
        return np.broadcast_to(columns == 0, (len(rows), len(columns)))
