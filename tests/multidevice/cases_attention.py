"""Splash attention on eight CPU devices: each runs the kernel on its rows and heads."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gapo_jax import models, sharding

CONFIG = models.DecoderConfig(
    vocab_size=64,
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=32,
    windows=(0, 6),
)


def test_splash_on_a_mesh_equals_the_plain_version_on_one_device() -> None:
    """Heads are split over `tensor`: two key heads are repeated for its four devices."""
    mesh, config = sharding.make_mesh(data=1, fsdp=2, tensor=4), CONFIG
    tokens_BT = jax.random.randint(jax.random.key(1), (8, 20), 0, config.vocab_size)
    mask_BT = (jnp.arange(20) >= jnp.arange(8)[:, None] % 5).astype(jnp.int32)
    plain, splash = (
        models.Decoder(dataclasses.replace(config, attention=name)) for name in ("xla", "splash")
    )
    params = plain.init(jax.random.key(0), tokens_BT, mask_BT)["params"]

    def loss(module, params, tokens_BT, mask_BT):
        hidden_BTD = module.apply({"params": params}, tokens_BT, mask_BT, method="hidden")
        return jnp.square(hidden_BTD * mask_BT[..., None]).mean()

    def step(*arrays):
        # Inside a step, as a caller would who compiles for a mesh of its own.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(loss, 1)(splash, *arrays)

    want, want_grads = jax.jit(jax.value_and_grad(loss, 1), static_argnums=0)(
        plain, params, tokens_BT, mask_BT
    )
    placed = jax.device_put(params, sharding.param_shardings(mesh, params))
    batch = jax.device_put((tokens_BT, mask_BT), sharding.batch_sharding(mesh))
    lowered = jax.jit(step).lower(placed, *batch)
    assert "shard_map" in lowered.as_text() or "manual" in lowered.as_text()
    got, grads = lowered.compile()(placed, *batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads)):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max() + 1e-7)
