"""Building blocks that decoder and encoder share: norms, rotary positions, remat policies.

The arithmetic is in plain functions, so that the modules of the training forward and the
cached decode of `generation` run the same code on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

REMAT_POLICIES = ("none", "dots", "full")

kernel_init = nn.initializers.normal(stddev=0.02)


def rms_norm(x_D: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019, Eq. 4).

    `x_D` [..., D] of any float dtype, `scale_D` [D]; statistics in float32, result in x's dtype.
    """
    x32_D = x_D.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32_D), axis=-1, keepdims=True)
    return (x32_D * jax.lax.rsqrt(variance + eps) * scale_D).astype(x_D.dtype)


def rope_tables(
    positions_BT: jax.Array, head_dim: int, theta: float
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary positions (RoFormer, arXiv 2104.09864, Eq. 34), float32.

    `positions_BT` int32 [..., T]; each result is [..., T, H] with the two halves of H equal, the
    "rotate half" layout of Llama checkpoints. Raises ValueError when `head_dim` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions_BT[..., None].astype(jnp.float32) / theta**exponents
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x_BTNH: jax.Array, cos_BTH: jax.Array, sin_BTH: jax.Array) -> jax.Array:
    """Rotate queries or keys `x_BTNH` by the angles of `rope_tables`; the dtype is kept."""
    half = x_BTNH.shape[-1] // 2
    rotated = jnp.concatenate([-x_BTNH[..., half:], x_BTNH[..., :half]], axis=-1)
    result = x_BTNH * cos_BTH[..., None, :] + rotated * sin_BTH[..., None, :]
    return result.astype(x_BTNH.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned scale [D], kept in float32."""

    eps: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Normalise `x_BTD` over its last axis; same shape and dtype."""
        scale_D = self.param("scale", nn.initializers.ones, (x_BTD.shape[-1],), jnp.float32)
        return rms_norm(x_BTD, scale_D, self.eps)


def flat_dot_general(
    x_BTD: jax.Array,
    kernel_DF: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Product of `x_BTD` [..., D] and `kernel_DF` with all leading axes as one; [..., F].

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
    """`nn.Dense` and, where the call brings the collection "lora", LoRA's low-rank update beside it
    (arXiv 2106.09685, Eq. 3): x W + (x A) B. W + A B is never formed; see `lora.Adapters`."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map `inputs` [..., in] to [..., out]."""
        outputs = super().__call__(inputs)
        if not self.has_variable("lora", "a"):
            return outputs
        a_DE, b_EF = (self.get_variable("lora", name).astype(outputs.dtype) for name in "ab")
        low_BTE = flat_dot_general(inputs.astype(outputs.dtype), a_DE, None)
        return outputs + flat_dot_general(low_BTE, b_EF, None)


def dense(features: int, name: str, dtype: Any, use_bias: bool = False) -> nn.Dense:
    """A linear layer with float32 parameters (`kernel` [in, out]) that computes in `dtype`."""
    return AdaptedDense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        dot_general=flat_dot_general,
        name=name,
    )


def remat(block: type[nn.Module], policy: str, static_argnums: tuple[int, ...] = ()) -> Any:
    """Wrap a layer class so that its backward pass recomputes as `policy` says.

    `none` keeps every activation, `dots` keeps the outputs of the weight matrices, `full` keeps
    only the input of the layer. Raises ValueError on another policy.
    """
    if policy == "none":
        return block
    policies: dict[str, Callable[..., bool] | None] = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": None,
    }
    if policy not in policies:
        raise ValueError(f"remat must be one of {REMAT_POLICIES}, got {policy!r}")
    # Inside a scan the loop itself keeps XLA from merging the recomputation away.
    return nn.remat(
        block, policy=policies[policy], prevent_cse=False, static_argnums=static_argnums
    )


def scan_layers(block: Any, length: int, num_broadcast: int, unroll: int = 1) -> Any:
    """Stack `length` copies of a layer class on a leading parameter axis with `nn.scan`.

    The layer is called as `layer(carry, *broadcast) -> (carry, None)`; every layer sees the same
    `num_broadcast` further arguments, and its own dropout key.
    """
    return nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * num_broadcast,  # pyright: ignore[reportArgumentType]
        length=length,
        unroll=unroll,
    )
