"""Building blocks that decoder and encoder share: norms, activations, rotary positions, remat.

The arithmetic is in plain functions, so that the training forward and the cached decoding in
`generation` run the same code on the same numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from gapo_jax.sharding import batch_sharding

RematPolicy = Literal["none", "dots", "full"]
NormKind = Literal["rms", "rms_plus_one", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
RopeTables = tuple[jax.Array, jax.Array]


def check_choices(config: object) -> None:
    """Raise ValueError if a field annotated with a `Literal` holds none of its values."""
    for name, kind in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name), get_args(kind)
        if get_origin(kind) is Literal and value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def gelu(x: jax.Array) -> jax.Array:
    """The exact gelu, x Phi(x) (arXiv 1606.08415, Eq. 2), by erf as torch computes it.

    `nn.gelu` uses erfc, which selects between two series for every element to be more exact where
    the result is below 1e-7, and makes an encoder's step 5% slower on a CPU.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": gelu,
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
}

kernel_init = nn.initializers.normal(stddev=0.02)


def wide(dtype: DTypeLike) -> np.dtype:
    """Return the dtype for statistics, scores and logits of a computation in `dtype`.

    It is float32, and float64 for float64, in which `convert.py verify` compares without the
    rounding of float32.
    """
    return jnp.promote_types(dtype, jnp.float32)


def rms_norm(x_D: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """Normalise by the root mean square over the last axis (Zhang & Sennrich 2019, Eq. 4).

    `x_D` [..., D] of any float dtype, `scale_D` [D]; statistics in float32 (`wide`), result in
    x's dtype.
    """
    wide_D = x_D.astype(wide(x_D.dtype))
    variance = jnp.mean(jnp.square(wide_D), axis=-1, keepdims=True)
    return (wide_D * jax.lax.rsqrt(variance + eps) * scale_D).astype(x_D.dtype)


def layer_norm(x_D: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float) -> jax.Array:
    """Apply layer norm over the last axis (arXiv 1607.06450, Eq. 4); dtypes as in `rms_norm`."""
    wide_D = x_D.astype(wide(x_D.dtype))
    centred_D = wide_D - jnp.mean(wide_D, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred_D), axis=-1, keepdims=True)
    return (centred_D * jax.lax.rsqrt(variance + eps) * scale_D + bias_D).astype(x_D.dtype)


def normalize(
    x_D: jax.Array, params: Mapping[str, jax.Array], kind: NormKind, eps: float
) -> jax.Array:
    """Apply a norm of the given kind with the parameters of a `Norm`.

    "rms_plus_one" is Gemma's, whose checkpoints store the scale minus 1.
    """
    if kind == "layer":
        return layer_norm(x_D, params["scale"], params["bias"], eps)
    scale_D = params["scale"]
    return rms_norm(x_D, 1.0 + scale_D if kind == "rms_plus_one" else scale_D, eps)


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
    """Bound `x` smoothly to (-cap, cap) (Gemma 2, arXiv 2408.00118, section 2); 0 is no bound."""
    return cap * jnp.tanh(x / cap) if cap else x


def rope_tables(
    positions_BT: jax.Array, head_dim: int, theta: float, scaling: Sequence[float] = ()
) -> RopeTables:
    """Return cosines and sines of rotary positions (RoFormer, arXiv 2104.09864, Eq. 34), float32.

    Args:
        positions_BT: int32 [..., T].
        head_dim: H. Each table is [..., T, H] with two equal halves, the "rotate half" layout of
            Llama checkpoints.
        theta: base of the wavelengths.
        scaling: stretches the wavelengths for long texts, see `rope_divisors`.

    Raises:
        ValueError: `head_dim` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")
    angles = positions_BT[..., None].astype(jnp.float32) / rope_divisors(head_dim, theta, scaling)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rope_divisors(head_dim: int, theta: float, scaling: Sequence[float] = ()) -> np.ndarray:
    """Return the wavelengths / 2 pi [H / 2] of the rotary pairs, float32.

    `scaling` is one of

    - (): no scaling;
    - (factor,): all wavelengths times factor (position interpolation, arXiv 2306.15595, Eq. 4);
    - (factor, low, high, length): Llama 3.1's. Wavelengths above length / low are multiplied by
      factor, those below length / high stay, and frequencies in between are interpolated.
    """
    divisors = theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if len(scaling) == 1:
        divisors = divisors * scaling[0]
    elif scaling:
        factor, low, high, length = scaling
        turns = length / (2 * math.pi * divisors)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        divisors = divisors / (kept + (1.0 - kept) / factor)
    return divisors.astype(np.float32)


def apply_rope(x_BTNH: jax.Array, rope: RopeTables) -> jax.Array:
    """Rotate queries or keys by the angles of `rope_tables` [..., T, H]; the dtype is kept."""
    half = x_BTNH.shape[-1] // 2
    # Rotating the halves separately saves the copy that a concatenated rotation would make.
    low, high = x_BTNH[..., :half], x_BTNH[..., half:]
    cos, sin = (table_BTH[..., None, :half] for table_BTH in rope)
    result = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return result.astype(x_BTNH.dtype)


class Norm(nn.Module):
    """`normalize` with learned float32 parameters [D]: `scale`, and `bias` for kind "layer"."""

    eps: float
    kind: NormKind = "rms"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Normalise `x_BTD` over its last axis; shape and dtype are kept."""
        shape = (x_BTD.shape[-1],)
        ones = nn.initializers.zeros if self.kind == "rms_plus_one" else nn.initializers.ones
        params = {"scale": self.param("scale", ones, shape, jnp.float32)}
        if self.kind == "layer":
            params["bias"] = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return normalize(x_BTD, params, self.kind, self.eps)


def split_rows(x_BTD: jax.Array) -> jax.Array:
    """Hold an array to its rows split over the devices of the context mesh, if there is one.

    Rows that the devices do not divide stay whole on every device, as `sharding.Placement.rows`
    places them. Call it where XLA would otherwise keep another split (see `Embed`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return x_BTD
    rows = batch_sharding(mesh)
    parts = math.prod(mesh.shape[axis] for axis in rows.spec[0])
    where = NamedSharding(mesh, PartitionSpec()) if x_BTD.shape[0] % parts else rows
    return jax.lax.with_sharding_constraint(x_BTD, where)


class Embed(nn.Embed):
    """An embedding table with float32 parameters.

    The table is split along D over the mesh axis that splits the rows of a batch. Without the
    constraint XLA would continue with split features and sum over the devices after each product.
    """

    embedding_init: Any = kernel_init

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Look up `inputs` (int32 [B, ...]); returns [B, ..., D]."""
        return split_rows(super().__call__(inputs))


def flat_dot_general(
    x_BTD: jax.Array,
    kernel_DF: jax.Array,
    dimension_numbers: object,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Multiply `x_BTD` [..., D] by `kernel_DF` with all leading axes merged into one; [..., F].

    For `nn.Dense(dot_general=...)`, which contracts these two axes only. With two token axes XLA
    for CPU computes the kernel's gradient from a transposed copy of the output's gradient and
    fuses the derivative of the activation into that strided copy: a third of a training step.
    """
    del dimension_numbers
    flat_MF = jax.lax.dot_general(
        x_BTD.reshape(-1, x_BTD.shape[-1]),
        kernel_DF,
        (((1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return flat_MF.reshape(*x_BTD.shape[:-1], kernel_DF.shape[1])


class AdaptedDense(nn.Dense):
    """`nn.Dense` plus LoRA's low-rank update where the call brings the collection "lora".

    Computes x W + (x A) B (arXiv 2106.09685, Eq. 3) and never forms W + A B; see `lora.Adapters`.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map `inputs` [..., in] to [..., out]."""
        outputs = super().__call__(inputs)
        if not self.has_variable("lora", "a"):
            return outputs
        a_DE, b_EF = (self.get_variable("lora", name).astype(outputs.dtype) for name in "ab")
        low_BTE = flat_dot_general(inputs.astype(outputs.dtype), a_DE, None)
        return outputs + flat_dot_general(low_BTE, b_EF, None)


def dense(features: int, name: str, dtype: DTypeLike, use_bias: bool = False) -> nn.Dense:
    """Return a linear layer that computes in `dtype`; its `kernel` [in, out] is float32."""
    return AdaptedDense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        dot_general=flat_dot_general,
        name=name,
    )


def remat(block: type[nn.Module], policy: RematPolicy) -> Any:
    """Wrap a layer class so that its backward pass recomputes activations.

    Args:
        block: the layer class.
        policy: "none" keeps every activation, "dots" keeps the outputs of the weight matrices,
            "full" keeps only the input of the layer.
    """
    if policy == "none":
        return block
    keep_dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    # Inside a scan the loop itself keeps XLA from merging the recomputation away.
    return nn.remat(block, policy=keep_dots if policy == "dots" else None, prevent_cse=False)


def scan_layers(block: Any, length: int, num_broadcast: int, unroll: int = 1) -> Any:
    """Stack `length` copies of a layer class on a leading parameter axis with `nn.scan`.

    A layer is called as `layer(carry, *broadcast, scanned) -> (carry, None)`. Every layer sees the
    same `num_broadcast` arguments after the carry, and its own row of `scanned`, a tree of arrays
    [L, ...].
    """
    return nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast,) * num_broadcast + (0,),  # pyright: ignore[reportArgumentType]
        length=length,
        unroll=unroll,
    )
