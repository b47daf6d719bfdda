"""Log-probs of given tokens without ever holding [B, T, V] logits.

The vocabulary is the widest axis of a small model: 2,048 tokens by 49,152 words are 400 MB of
float32. Here tokens pass through the unembedding in chunks, forward and backward. The forward pass
takes the gradient by the hidden states along; the backward pass computes each chunk's logits anew
for the gradient of the kernel, if that is wanted. Between the two live only [B, T] and [B, T, D]
numbers beyond the inputs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike, Shaped

from gapo_jax.losses.masked import masked_mean, whiten

__all__ = ["chunked_logprobs", "masked_mean", "whiten"]


def chunked_logprobs(
    hidden_BTD: Float[Array, "B T D"],
    kernel_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    *,
    temperature: ScalarLike = 1.0,
    chunk_tokens: int = 256,
    with_entropy: bool = False,
    with_accuracy: bool = False,
    tied: bool = False,
    softcap: float = 0.0,
    mask_BT: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"] | None]:
    """Log-probs of `targets_BT` under softmax(hidden @ kernel / temperature), chunk by chunk.

    Args:
      hidden_BTD: final hidden states (after the last norm) which predict the targets.
      kernel_DV: unembedding. Its gradient costs nothing where nobody asks for it.
      targets_BT: int token ids in [0, V); a masked place may hold any valid id.
      temperature: > 0, the sampling temperature; may be traced, receives no gradient.
      chunk_tokens: tokens whose logits are held at one time (chunk_tokens * V * 4 bytes, twice
        where there is a gradient). Memory alone depends on it, not the result.
      with_entropy: also return the entropy of each distribution, in nats, as a metric: no
        gradient flows through it.
      with_accuracy: return in its place 1 where the target is the likeliest token, else 0.
      tied: the kernel is the transpose of an embedding [V, D] (`embedding.T`). The result is the
        same; the products then read the embedding as it lies and no transposed copy is made.
      mask_BT: int, 0 = a place that nobody reads. Its log-prob and entropy are 0; real places are
        brought together, so that what pads the responses is hardly computed. For rows that are not
        split over devices.
      softcap: bound the logits to softcap * tanh(logits / softcap) before the temperature (Gemma 2,
        arXiv 2408.00118, section 2); 0 does not.

    Returns:
      (logprobs_BT, entropy_BT or accuracy_BT or None), float32. First derivatives only, and in
      reverse mode.

    Raises:
      ValueError: shapes that do not fit, `chunk_tokens` < 1 or a temperature <= 0.
    """
    batch, tokens, width = hidden_BTD.shape
    _check(hidden_BTD, kernel_DV, targets_BT, temperature, chunk_tokens)
    if with_entropy and with_accuracy:
        raise ValueError("wanted with_entropy or with_accuracy, got both; call it twice")
    beside = "entropy" if with_entropy else "accuracy" if with_accuracy else ""
    # Dividing the hidden states costs D operations a token, dividing the logits V.
    bound, scale = None, 1.0 / jax.lax.stop_gradient(jnp.float32(temperature))
    if softcap:
        bound, scale = softcap * scale, 1.0 / softcap
    if softcap or not (isinstance(temperature, int | float) and temperature == 1):
        hidden_BTD = (hidden_BTD.astype(jnp.float32) * scale).astype(hidden_BTD.dtype)
    dtype = jnp.promote_types(hidden_BTD.dtype, kernel_DV.dtype)
    kernel_DV = kernel_DV.astype(dtype)
    chunked = functools.partial(_chunk, chunk_tokens=chunk_tokens)
    places_M, real_NBC = None, None
    if mask_BT is not None:
        places_M = jnp.argsort(mask_BT.reshape(-1) == 0, stable=True)
        hidden_BTD = hidden_BTD.reshape(1, -1, width)[:, places_M]
        targets_BT = targets_BT.reshape(1, -1)[:, places_M]
        real_NBC = chunked(mask_BT.reshape(1, -1)[:, places_M])
    logprobs_NBC, beside_NBC = _logprobs(
        chunked(hidden_BTD.astype(dtype)),
        kernel_DV.T if tied else kernel_DV,
        chunked(targets_BT),
        real_NBC,
        bound,
        "vd" if tied else "dv",
        beside,
    )

    def whole(x_NBC: jax.Array) -> jax.Array:
        if places_M is None or mask_BT is None:
            return _unchunk(x_NBC, batch, tokens)
        x_M = _unchunk(x_NBC, 1, batch * tokens)[0][jnp.argsort(places_M)]
        return jnp.where(mask_BT != 0, x_M.reshape(batch, tokens), 0.0)

    return whole(logprobs_NBC), jax.lax.stop_gradient(whole(beside_NBC)) if beside else None


def _check(hidden_BTD, kernel_DV, targets_BT, temperature, chunk_tokens: int) -> None:
    """Raise ValueError on arguments of `chunked_logprobs` that do not fit."""
    batch, tokens, width = hidden_BTD.shape
    if kernel_DV.shape[0] != width or targets_BT.shape != (batch, tokens):
        raise ValueError(
            f"Wanted hidden [B, T, D], kernel [D, V], targets [B, T]; got {hidden_BTD.shape}, "
            f"{kernel_DV.shape}, {targets_BT.shape}. A tied embedding [V, D] must be transposed."
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be 1 or more, got {chunk_tokens}.")
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(
            f"temperature must be above 0, got {temperature}; score greedy samples at 1.0."
        )


def _chunk(x_BT: Shaped[Array, "B T *tail"], chunk_tokens: int) -> Shaped[Array, "N M C *tail"]:
    """[B, T, ...] -> [chunks, B', C, ...], B' * C <= chunk_tokens.

    The batch axis stays outermost within a chunk, so an array sharded over rows stays so: every
    device works on its own rows in every chunk.
    """
    batch, tokens = x_BT.shape[:2]
    folds = -(-batch // chunk_tokens)
    rows = -(-batch // folds)
    columns = max(1, chunk_tokens // rows)
    length = folds * tokens
    chunks = -(-length // columns)
    columns = -(-length // chunks)  # of like size, so that the last one is not mostly padding
    tail = [(0, 0)] * (x_BT.ndim - 2)
    x_BT = jnp.pad(x_BT, [(0, rows * folds - batch), (0, 0), *tail])
    x_BT = x_BT.reshape(rows, length, *x_BT.shape[2:])
    x_BT = jnp.pad(x_BT, [(0, 0), (0, chunks * columns - length), *tail])
    x_BNC = x_BT.reshape(rows, chunks, columns, *x_BT.shape[2:])
    return jnp.moveaxis(x_BNC, 1, 0)


def _unchunk(
    x_NBC: Float[Array, "N M C"], batch: int, tokens: int
) -> Float[Array, "{batch} {tokens}"]:
    """The inverse of `_chunk` for [chunks, B', C]."""
    chunks, rows, columns = x_NBC.shape
    folds = -(-batch // rows)
    x_BT = jnp.moveaxis(x_NBC, 0, 1).reshape(rows, chunks * columns)[:, : folds * tokens]
    return x_BT.reshape(rows * folds, tokens)[:batch]


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _logits(hidden_BCD, kernel, bound, axes: str) -> tuple[jax.Array, jax.Array | float]:
    """Return the logits [B, C, V] of a chunk and their slope by the product's own value."""
    if axes == "vd":
        # Written as V products with the embedding as it lies: on CPU a third of the time of the
        # product with its transpose (`scripts/benchmark.py score`).
        logits_BCV = jnp.moveaxis(_einsum("vd,bcd->vbc", kernel, hidden_BCD), 0, -1)
    else:
        logits_BCV = _einsum("bcd,dv->bcv", hidden_BCD, kernel)
    if bound is None:
        return logits_BCV, 1.0
    tanh_BCV = jnp.tanh(logits_BCV)
    return bound * tanh_BCV, bound * (1.0 - jnp.square(tanh_BCV))


def _dlogits(logits_BCV, lse_BC, targets_BC, slope) -> jax.Array:
    """Gradient of each token's log-prob by its row of products, [B, C, V] float32."""
    words_V = jnp.arange(logits_BCV.shape[-1], dtype=targets_BC.dtype)
    chosen_BCV = (targets_BC[..., None] == words_V).astype(jnp.float32)
    return (chosen_BCV - jnp.exp(logits_BCV - lse_BC[..., None])) * slope


def _value(hidden_NBCD, kernel, targets_NBC, real_NBC, bound, axes: str, beside: str):
    """`axes` is "dv" or "vd", the order of the axes of `kernel`; `bound` (a scalar or None) is what
    the hyperbolic tangent of the product is multiplied by."""
    return _scan(hidden_NBCD, kernel, targets_NBC, real_NBC, bound, axes, beside, False)[:2]


def _scan(hidden_NBCD, kernel, targets_NBC, real_NBC, bound, axes, beside, with_slopes):
    """Return (log-probs, what is wanted `beside` them or None, log-sum-exp, gradient of each
    log-prob by its hidden state), the last, float32 [chunks, B, C, D], only `with_slopes`. A chunk
    without a real place is left out: zeros, and infinity for the log-sum-exp."""

    def compute(hidden_BCD, targets_BC):
        logits_BCV, slope = _logits(hidden_BCD, kernel, bound, axes)
        top_BC = jnp.max(logits_BCV, axis=-1)
        shifted_BCV = logits_BCV - top_BC[..., None]
        total_BC = jnp.sum(jnp.exp(shifted_BCV), axis=-1)
        target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
        lse_BC = top_BC + jnp.log(total_BC)
        beside_BC, slopes_BCD = None, None
        if beside == "entropy":
            mean_BC = jnp.sum(jnp.exp(shifted_BCV) * shifted_BCV, axis=-1) / total_BC
            beside_BC = jnp.log(total_BC) - mean_BC
        elif beside == "accuracy":
            beside_BC = (target_BC >= top_BC).astype(jnp.float32)
        if with_slopes:
            dlogits_BCV = _dlogits(logits_BCV, lse_BC, targets_BC, slope).astype(kernel.dtype)
            slopes_BCD = _einsum(f"bcv,{axes}->bcd", dlogits_BCV, kernel)
        return target_BC - lse_BC, beside_BC, lse_BC, slopes_BCD

    def leave_out(*inputs):
        blank = jax.tree.map(jnp.zeros_like, jax.eval_shape(compute, *inputs))
        return *blank[:2], jnp.full_like(blank[2], jnp.inf), blank[3]

    def chunk(_, inputs):
        *inputs, real_BC = inputs
        if real_BC is None:
            return None, compute(*inputs)
        return None, jax.lax.cond(jnp.any(real_BC != 0), compute, leave_out, *inputs)

    return jax.lax.scan(chunk, None, (hidden_NBCD, targets_NBC, real_NBC))[1]


def _forward(hidden_NBCD, kernel, targets_NBC, real_NBC, bound, axes, beside):
    # The gradient of a log-prob by its own hidden state does not depend on what is done with the
    # log-prob, so it is taken while the logits are there: backward computes them again only for
    # the gradient of the kernel.
    logprobs, extra, lse, slopes = _scan(
        hidden_NBCD, kernel, targets_NBC, real_NBC, bound, axes, beside, True
    )
    return (logprobs, extra), (hidden_NBCD, kernel, targets_NBC, bound, lse, slopes)


def _backward(axes, beside, saved, cotangents):
    del beside
    hidden_NBCD, kernel, targets_NBC, bound, lse_NBC, slopes_NBCD = saved
    gradient_NBC = cotangents[0]
    dhidden_NBCD = (slopes_NBCD * gradient_NBC[..., None]).astype(hidden_NBCD.dtype)

    def chunk(dkernel_DV, inputs):
        hidden_BCD, targets_BC, lse_BC, gradient_BC = inputs
        logits_BCV, slope = _logits(hidden_BCD, kernel, bound, axes)
        dlogits_BCV = _dlogits(logits_BCV, lse_BC, targets_BC, slope) * gradient_BC[..., None]
        return dkernel_DV + _einsum(
            "bcd,bcv->dv", hidden_BCD, dlogits_BCV.astype(kernel.dtype)
        ), None

    # If nobody reads the kernel's gradient, the compiler drops this loop. It is summed as [D, V]
    # for either layout: measured a fifth faster on CPU, one transpose included.
    zeros_DV = jnp.zeros((hidden_NBCD.shape[-1], kernel.shape[axes.index("v")]), jnp.float32)
    dkernel_DV, _ = jax.lax.scan(chunk, zeros_DV, (hidden_NBCD, targets_NBC, lse_NBC, gradient_NBC))
    dkernel = (dkernel_DV.T if axes == "vd" else dkernel_DV).astype(kernel.dtype)
    dbound = None if bound is None else jnp.zeros_like(bound)
    return dhidden_NBCD, dkernel, None, None, dbound


_logprobs = jax.custom_vjp(_value, nondiff_argnums=(5, 6))
_logprobs.defvjp(_forward, _backward)
