"""Flash and splash attention against the plain version, on a CPU: splash in Pallas' interpreter,
the wrapper of cuDNN's with XLA behind `jax.nn.dot_product_attention`."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from gapo_jax.models import Decoder, DecoderConfig, Encoder, EncoderConfig, generation
from gapo_jax.models import attention_kernels as kernels
from gapo_jax.models.attention import attend, causal_bias
from gapo_jax.models.encoder_attention import first_tokens, make_drop, windowed_attention
from gapo_jax.rng import Stream

B, T, N, H = 2, 200, 4, 16
NO_DROP = make_drop(0.0, None, Stream.DROPOUT_WEIGHTS)


def mask_of(length):
    """A row padded on the left and one padded on the right; the rest of both is real."""
    columns = np.arange(length)
    return np.stack([columns >= length // 3, columns < length - 7]).astype(np.int32)


MASK_BT = mask_of(T)


def heads(kv_heads):
    keys = jax.random.split(jax.random.key(kv_heads), 3)
    shapes = [(B, T, count, H) for count in (N, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]


def check(plain, kernel, arrays):
    """The two functions agree on real tokens, and so do their gradients."""
    weights = jax.random.normal(jax.random.key(9), (B, T, N, H)) * MASK_BT[..., None, None]

    def run(attention, q, k, v):
        out_BTNH = attention(q, k, v, jnp.asarray(MASK_BT))
        return (out_BTNH * weights).sum(), out_BTNH

    want, got = (
        jax.jit(jax.grad(functools.partial(run, attention), (0, 1, 2), has_aux=True))(*arrays)
        for attention in (plain, kernel)
    )
    assert jnp.isfinite(got[1]).all()
    np.testing.assert_allclose(got[1][MASK_BT > 0], want[1][MASK_BT > 0], rtol=1e-5, atol=1e-5)
    for name, ours, theirs in zip("qkv", got[0], want[0]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


def plain_causal(q, k, v, mask_BT, window, softcap=0.0):
    return attend(q, k, v, causal_bias(mask_BT, window), scale=0.3, softcap=softcap)


def test_causal_splash(monkeypatch):
    """Two blocks a row, with padding inside and behind them; grouped heads, a window, a soft cap.
    Without a window: the decoder below."""
    monkeypatch.setattr(kernels, "_LARGEST_BLOCK", 128)
    fields = {"windows": [40], "index": jnp.int32(0), "scale": 0.3, "softcap": 3.0}
    splash = functools.partial(kernels.causal_attention, "splash", **fields)
    check(functools.partial(plain_causal, window=40, softcap=3.0), splash, heads(2))


def test_splash_to_both_sides(monkeypatch):
    """Longformer's first token is seen from everywhere, wherever the padding puts it. Without a
    window: the ModernBERT below."""
    monkeypatch.setattr(kernels, "_LARGEST_BLOCK", 128)

    def plain(q, k, v, mask_BT):
        first_BT = first_tokens(mask_BT)
        return windowed_attention(q, k, v, mask_BT, 30, (30, 30), NO_DROP, first_BT)

    splash = functools.partial(kernels.bidirectional_attention, "splash")
    check(plain, functools.partial(splash, windows=[30], see_first=True), heads(N))


@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 40), (False, 0)])
def test_flash(causal, window):
    """Rows turned to their first token, lengths instead of a bias, the width of the window."""

    def plain(q, k, v, mask_BT):
        if causal:
            return plain_causal(q, k, v, mask_BT, window)
        return attend(q, k, v, jnp.where(mask_BT[:, None] > 0, 0.0, -1e30), scale=0.3)

    near = (window - 1, 0) if window else None
    flash = functools.partial(kernels.flash, causal=causal, window=near, scale=0.3)
    check(plain, functools.partial(flash, implementation="xla"), heads(2))


def agree(module, other, tokens_BT, mask_BT, method):
    """Two networks with one set of parameters: hidden states and gradients are the same."""
    params = jax.jit(module.init)(jax.random.key(0), tokens_BT, mask_BT)["params"]
    params = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 2 else leaf, params)  # steep scores

    def loss(network, params):
        hidden_BTD = network.apply({"params": params}, tokens_BT, mask_BT, method=method)
        # Other weights for every column: a layer norm's outputs sum to a constant.
        weights_BTD = jax.random.normal(jax.random.key(1), hidden_BTD.shape) * mask_BT[..., None]
        return (hidden_BTD * weights_BTD).sum(), hidden_BTD

    want, got = (
        jax.jit(jax.grad(functools.partial(loss, network), has_aux=True))(params)
        for network in (module, other)
    )
    real = mask_BT > 0
    np.testing.assert_allclose(got[1][real], want[1][real], rtol=0, atol=1e-4)
    scale = collections.defaultdict(float)
    for path, theirs in jax.tree_util.tree_leaves_with_path(want[0]):
        scale[path[:-1]] = max(scale[path[:-1]], float(np.abs(theirs).max()))
    found = zip(jax.tree.leaves(got[0]), jax.tree_util.tree_leaves_with_path(want[0]), strict=True)
    for ours, (path, theirs) in found:
        # Kernel and bias of a projection share a scale: the gradient of a key bias is a sum of the
        # same terms as its kernel's, and cancels but for rounding.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * scale[path[:-1]])
    return params


SHAPE = {"vocab_size": 50, "num_layers": 2, "d_model": 32, "num_heads": 4, "d_ff": 32}


def tokens_of(mask_BT):
    return jax.random.randint(jax.random.key(2), mask_BT.shape, 1, 50) * mask_BT


def test_a_decoder_with_two_kinds_of_layers():
    """Soft caps, every second layer with a window: the scan over layers picks the kernel."""
    config = DecoderConfig(**SHAPE, num_kv_heads=2, head_dim=8, windows=(6, 0), attn_softcap=5.0)
    mask_BT = mask_of(24)
    plain, splash = (dataclasses.replace(config, attention=name) for name in ("xla", "splash"))
    tokens_BT = tokens_of(mask_BT)
    params = agree(Decoder(plain), Decoder(splash), tokens_BT, mask_BT, "hidden")
    rows = slice(0, 1)  # a prompt has its padding on the left
    (want, _), (got, cache) = (
        jax.jit(generation.prefill, static_argnums=1)(params, kind, tokens_BT[rows], mask_BT[rows])
        for kind in (plain, splash)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert len(cache) == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["longformer", "modernbert"])
def test_an_encoder(family):
    """30 tokens are more than three blocks of the windows, so the plain version works in blocks."""
    fields = {
        "longformer": {"windows": (4, 4), "global_first": True},
        "modernbert": {"windows": (0, 4), "positions": "rope", "pre_norm": True, "gated": True},
    }[family]
    config = EncoderConfig(**SHAPE, **fields, family=family)
    mask_BT = mask_of(30)
    modules = [Encoder(dataclasses.replace(config, attention=name)) for name in ("xla", "splash")]
    agree(*modules, tokens_of(mask_BT), mask_BT, "__call__")


def on(platform):
    """The context of a program for another platform."""
    device = AbstractDevice(device_kind=platform, num_cores=1, platform=platform)
    axes = (AxisType.Auto,) * 3
    names = ("data", "fsdp", "tensor")
    return jax.sharding.use_abstract_mesh(
        AbstractMesh((1, 1, 1), names, axis_types=axes, abstract_device=device)
    )


HALF = {"dtype": "bfloat16", "head_dim": 64}


@pytest.mark.parametrize(
    ("platform", "changes", "kernel"),
    [
        ("cpu", {}, "xla"),
        ("tpu", {}, "splash"),
        ("tpu", {"dtype": "float32", "softcap": 50.0, "two_sided_windows": True}, "splash"),
        ("tpu", {"plain_only": "no dropout"}, "xla"),
        ("gpu", {}, "cudnn"),
        ("gpu", {"dtype": "float32"}, "xla"),
        ("gpu", {"head_dim": 256}, "xla"),
        ("gpu", {"softcap": 50.0}, "xla"),
        ("gpu", {"two_sided_windows": True}, "xla"),
    ],
)
def test_what_runs_where(platform, changes, kernel):
    arguments = HALF | changes
    with on(platform):
        assert kernels.choose("auto", **arguments) == kernel
        assert kernels.choose("xla", **arguments) == "xla"
        if kernel == "xla" and platform != "cpu":
            wanted = {"gpu": "cudnn", "tpu": "splash"}[platform]
            with pytest.raises(ValueError, match=f"attention='{wanted}' needs .*'auto'"):
                kernels.choose(wanted, **arguments)


def test_a_kernel_that_is_not_here_is_refused():
    assert kernels.choose("splash", **HALF) == "splash"  # interpreted
    with pytest.raises(ValueError, match="'cudnn' needs an NVIDIA GPU"):
        kernels.choose("cudnn", **HALF)
    with on("gpu"), pytest.raises(ValueError, match="'splash' needs a TPU"):
        kernels.choose("splash", **HALF)
    with pytest.raises(ValueError, match="attention must be one of"):
        DecoderConfig(**SHAPE, num_kv_heads=2, head_dim=8, attention="flash")
    with pytest.raises(ValueError, match="no dropout of attention weights"):
        EncoderConfig(**SHAPE, attention="splash", dropout=0.1)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed (pip install)")
def test_compiled_for_described_tpus():
    """The TPU compiler takes the kernels and needs less memory with them."""
    cases = pathlib.Path(__file__).with_name("cases_tpu_attention.py")
    done = subprocess.run([sys.executable, str(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
