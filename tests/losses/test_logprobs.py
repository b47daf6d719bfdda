"""chunked_logprobs: equal to the plain form, and never the whole [B, T, V]."""

import inspect
import os
import pathlib
import subprocess
import sys

import jax
import jax.extend.core
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from gapo_jax.losses import chunked_logprobs


def grad(function, *args, **kwargs):
    """jax.grad, compiled: op by op each test would compile dozens of kernels."""
    return jax.jit(jax.grad(function, *args, **kwargs))


D, V = 8, 37


def make(rng, batch, tokens):
    hidden = jnp.array(rng.normal(size=(batch, tokens, D)), jnp.float32)
    kernel = jnp.array(rng.normal(size=(D, V)), jnp.float32)
    targets = jnp.array(rng.integers(0, V, size=(batch, tokens)), jnp.int32)
    return hidden, kernel, targets


def plain(hidden, kernel, targets, temperature=1.0):
    """The whole [B, T, V] in numpy float64."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64) / temperature
    logits -= logits.max(-1, keepdims=True)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logps, np.asarray(targets)[..., None], -1)[..., 0]
    return chosen, -(np.exp(logps) * logps).sum(-1)


# Rows by tokens by chunk: neither divides, one chunk for all, rows split, rows of one token.
SHAPES = [(3, 7, 4, True), (2, 5, 256, False), (9, 3, 4, True), (5, 1, 2, False)]


@pytest.mark.parametrize("batch, tokens, chunk, tied", SHAPES)
def test_equals_the_plain_form_for_every_way_of_chunking(rng, batch, tokens, chunk, tied):
    hidden, kernel, targets = make(rng, batch, tokens)
    ours = jax.jit(chunked_logprobs, static_argnames=("chunk_tokens", "with_entropy", "tied"))(
        hidden, kernel, targets, temperature=0.7, chunk_tokens=chunk, with_entropy=True, tied=tied
    )
    for ours_BT, plain_BT in zip(ours, plain(hidden, kernel, targets, 0.7)):
        assert ours_BT.shape == (batch, tokens) and ours_BT.dtype == jnp.float32
        np.testing.assert_allclose(ours_BT, plain_BT, atol=5e-6)


@pytest.mark.parametrize("batch, tokens, chunk, tied", SHAPES)
def test_gradient_equals_that_of_log_softmax(rng, batch, tokens, chunk, tied):
    hidden, kernel, targets = make(rng, batch, tokens)
    weights = jnp.array(rng.normal(size=(batch, tokens)), jnp.float32)

    def ours(hidden, kernel):
        return jnp.sum(
            weights * chunked_logprobs(hidden, kernel, targets, chunk_tokens=chunk, tied=tied)[0]
        )

    def whole(hidden, kernel):
        logps = jax.nn.log_softmax(hidden @ kernel)
        return jnp.sum(weights * jnp.take_along_axis(logps, targets[..., None], -1)[..., 0])

    for mine, theirs in zip(
        grad(ours, (0, 1))(hidden, kernel), grad(whole, (0, 1))(hidden, kernel)
    ):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_places_that_nobody_reads_are_left_out(rng):
    """Three of the seven chunks have no real place: value, entropy and both gradients."""
    hidden, kernel, targets = make(rng, 4, 7)
    mask = jnp.array(np.arange(7) < np.array([[7], [2], [0], [5]]), jnp.int32)
    weights = jnp.array(rng.normal(size=(4, 7)), jnp.float32)

    def total(hidden, kernel, weights, mask):
        found, entropy = chunked_logprobs(
            hidden, kernel, targets, chunk_tokens=4, with_entropy=True, mask_BT=mask
        )
        return jnp.sum(weights * found), (found, entropy)

    compute = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    mine, numbers = compute(hidden, kernel, weights, mask)
    for ours_BT, plain_BT in zip(numbers, plain(hidden, kernel, targets)):
        np.testing.assert_allclose(ours_BT, np.where(mask, plain_BT, 0.0), atol=5e-6)
    theirs, _ = compute(hidden, kernel, weights * mask, jnp.ones_like(mask))
    for a, b in zip(mine, theirs):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_soft_cap_is_applied_before_the_temperature(rng, tied):
    """Value, entropy and gradient against the whole [B, T, V]; the cap lies within the logits."""
    hidden, kernel, targets = make(rng, 3, 7)
    cap, temperature = 1.5, 0.7
    assert np.abs(hidden @ kernel).max() > 2 * cap
    weights = jnp.array(rng.normal(size=(3, 7)), jnp.float32)
    options = dict(temperature=temperature, chunk_tokens=4, tied=tied, softcap=cap)

    def ours(hidden, kernel):
        return jnp.sum(weights * chunked_logprobs(hidden, kernel, targets, **options)[0])

    def whole(hidden, kernel):
        logits = cap * jnp.tanh(hidden @ kernel / cap) / temperature
        logps = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logps, targets[..., None], -1)[..., 0]
        return jnp.sum(weights * chosen), (chosen, -(jnp.exp(logps) * logps).sum(-1))

    (_, wanted), gradients = jax.jit(jax.value_and_grad(whole, (0, 1), has_aux=True))(
        hidden, kernel
    )
    got = jax.jit(lambda h, k: chunked_logprobs(h, k, targets, with_entropy=True, **options))(
        hidden, kernel
    )
    for mine, theirs in zip(got, wanted):
        np.testing.assert_allclose(mine, theirs, atol=5e-6)
    for mine, theirs in zip(grad(ours, (0, 1))(hidden, kernel), gradients):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_gradient_against_finite_differences(rng):
    hidden, kernel, targets = make(rng, 2, 3)
    jax.test_util.check_grads(
        lambda *x: chunked_logprobs(*map(jnp.asarray, x), targets, chunk_tokens=2)[0].sum(),
        (hidden, kernel), order=1, modes=["rev"], atol=2e-2, rtol=2e-2,
    )  # fmt: skip


def test_by_hand():
    # Logits (0, log 3): probabilities 1/4 and 3/4.
    hidden, kernel = jnp.ones((1, 1, 1)), jnp.array([[0.0, jnp.log(3.0)]])
    logprobs, entropy = chunked_logprobs(hidden, kernel, jnp.array([[1]]), with_entropy=True)
    assert float(logprobs[0, 0]) == pytest.approx(np.log(0.75), abs=1e-6)
    assert float(entropy[0, 0]) == pytest.approx(-0.25 * np.log(0.25) - 0.75 * np.log(0.75))
    # At temperature 2 the odds are the square root: 1 to sqrt(3).
    logprobs, _ = chunked_logprobs(hidden, kernel, jnp.array([[0]]), temperature=2.0)
    assert float(logprobs[0, 0]) == pytest.approx(-np.log(1 + np.sqrt(3)), abs=1e-6)


def test_huge_logits_stay_finite(rng):
    hidden, kernel, targets = make(rng, 2, 3)
    hidden = hidden * 1e4

    def total(hidden, kernel):
        logprobs, entropy = chunked_logprobs(hidden, kernel, targets, with_entropy=True)
        return logprobs.sum(), (logprobs, entropy)

    gradients, outputs = grad(total, (0, 1), has_aux=True)(hidden, kernel)
    for array in jax.tree.leaves((gradients, outputs)):
        assert np.isfinite(array).all()
    assert (np.array(outputs[1]) >= 0).all()


def test_the_entropy_is_a_metric_without_gradient(rng):
    hidden, kernel, targets = make(rng, 2, 3)
    gradients = grad(
        lambda h, k: chunked_logprobs(h, k, targets, with_entropy=True)[1].sum(), (0, 1)
    )(hidden, kernel)
    assert all(not np.any(gradient) for gradient in gradients)


def sizes(jaxpr):
    """Number of elements of every value inside a jaxpr and the jaxprs within."""
    for equation in jaxpr.eqns:
        yield from (value.aval.size for value in equation.outvars if hasattr(value.aval, "size"))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_no_value_is_as_large_as_the_logits_in_either_pass():
    batch, tokens, width, words, chunk = 4, 64, 4, 512, 16
    shapes = (
        jax.ShapeDtypeStruct((batch, tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((width, words), jnp.float32),
        jax.ShapeDtypeStruct((batch, tokens), jnp.int32),
    )

    def total(hidden, kernel, targets):
        return chunked_logprobs(hidden, kernel, targets, chunk_tokens=chunk)[0].sum()

    def whole(hidden, kernel, targets):
        logps = jax.nn.log_softmax(hidden @ kernel)
        return jnp.take_along_axis(logps, targets[..., None], -1).sum()

    largest = max(sizes(jax.make_jaxpr(jax.grad(total, (0, 1)))(*shapes).jaxpr))
    assert largest == chunk * words
    # The measure can fail: the plain form does hold all of them.
    assert (
        max(sizes(jax.make_jaxpr(jax.grad(whole, (0, 1)))(*shapes).jaxpr)) >= batch * tokens * words
    )
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(*shapes).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < batch * tokens * words * 4 / 2


def test_a_frozen_kernel_costs_no_gradient():
    shapes = (
        jax.ShapeDtypeStruct((2, 16, 32), jnp.float32),
        jax.ShapeDtypeStruct((32, 256), jnp.float32),
        jax.ShapeDtypeStruct((2, 16), jnp.int32),
    )

    def products(which):
        total = lambda h, k, t: chunked_logprobs(h, k, t, chunk_tokens=8)[0].sum()  # noqa: E731
        text = jax.jit(jax.grad(total, which)).lower(*shapes).compile().as_text()
        return text.count(" dot(") + text.count('custom_call_target="__onednn$matmul"')

    # Logits and the gradient of the hidden states; for the kernel's, logits again and itself.
    assert (products((0,)), products((0, 1))) == (2, 4)


def test_bfloat16_operands_give_float32_results(rng):
    hidden, kernel, targets = make(rng, 2, 5)
    low = chunked_logprobs(hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), targets)[0]
    assert low.dtype == jnp.float32
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (hidden, kernel)]
    np.testing.assert_allclose(low, plain(*rounded, targets)[0], atol=1e-4)
    gradient = grad(lambda h: chunked_logprobs(h, kernel.astype(jnp.bfloat16), targets)[0].sum())(
        hidden.astype(jnp.bfloat16)
    )
    assert gradient.dtype == jnp.bfloat16


def test_a_traced_temperature_does_not_recompile(rng):
    hidden, kernel, targets = make(rng, 2, 5)
    traces = []

    @jax.jit
    def score(temperature):
        traces.append(1)
        return chunked_logprobs(hidden, kernel, targets, temperature=temperature)[0]

    for temperature in (0.5, 1.0):
        np.testing.assert_allclose(
            score(temperature), plain(hidden, kernel, targets, temperature)[0], atol=5e-6
        )
    assert len(traces) == 1


def test_sharded_meshes_change_nothing():
    # Eight CPU devices have to be asked for before jax starts, hence the process of its own.
    cases = pathlib.Path(__file__).with_name("cases_sharded.py")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, cases], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kernel_DV": jnp.ones((V, D))}, "transposed"),
        ({"targets_BT": jnp.ones((2, 4), jnp.int32)}, "targets"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_arguments_are_named(rng, change, message):
    hidden, kernel, targets = make(rng, 2, 5)
    arguments = {"hidden_BTD": hidden, "kernel_DV": kernel, "targets_BT": targets} | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(chunked_logprobs)(**arguments)  # the tests' own check of shapes is before it
