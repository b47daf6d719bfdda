"""Eight CPU devices; `tests/test_sharding.py` runs this file in a process of its own."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from gapo_jax import models, sharding
from gapo_jax.checkpoint import Checkpointer

CONFIG = models.DecoderConfig(
    vocab_size=64, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=32
)
OPTIMIZER = optax.adam(1e-2)


def test_there_are_eight_devices() -> None:
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [({}, (8, 1, 1)), ({"fsdp": 4}, (2, 4, 1)), ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 2))],
)
def test_mesh_shapes(sizes: dict[str, int], expected: tuple[int, int, int]) -> None:
    assert sharding.make_mesh(**sizes).devices.shape == expected


def _batch() -> tuple[jax.Array, jax.Array]:
    tokens_BT = jax.random.randint(jax.random.key(1), (16, 12), 0, CONFIG.vocab_size)
    return tokens_BT, (jnp.arange(12) >= jnp.arange(16)[:, None] % 5).astype(jnp.int32)


def _step(state, tokens_BT, mask_BT):
    """One update of a small decoder on the next-token loss."""

    def loss_of(params):
        logits_BTV = models.Decoder(CONFIG).apply({"params": params}, tokens_BT, mask_BT)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits_BTV[:, :-1], tokens_BT[:, 1:]
        )
        return (losses * mask_BT[:, 1:]).sum() / mask_BT[:, 1:].sum()

    loss, gradients = jax.value_and_grad(loss_of)(state["params"])
    updates, opt_state = OPTIMIZER.update(gradients, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt_state}, loss


def _start():
    tokens_BT, mask_BT = _batch()
    params = models.Decoder(CONFIG).init(jax.random.key(0), tokens_BT, mask_BT)["params"]
    return {"params": params, "opt": OPTIMIZER.init(params)}


def _run(mesh) -> tuple[dict, list[float]]:
    shardings = sharding.param_shardings(mesh, jax.eval_shape(_start))
    rows = sharding.batch_sharding(mesh)
    state = jax.device_put(jax.jit(_start)(), shardings)
    step = jax.jit(
        _step,
        in_shardings=(shardings, rows, rows),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    losses = []
    for _ in range(3):
        state, loss = step(state, *jax.device_put(_batch(), rows))
        losses.append(float(loss))
    return state, losses


def test_eight_devices_train_as_one_does() -> None:
    one, losses_one = _run(sharding.make_mesh(devices=jax.devices()[:1]))
    many, losses_many = _run(sharding.make_mesh(data=2, fsdp=2, tensor=2))
    assert losses_one[-1] < losses_one[0]
    np.testing.assert_allclose(losses_many, losses_one, rtol=1e-5)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


def test_parameters_are_really_split() -> None:
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    kernel = jax.device_put(
        jnp.ones((2, 16, 16)), jax.NamedSharding(mesh, P(None, "fsdp", "tensor"))
    )
    params = {"layers": {"attn": {"q": {"kernel": jnp.ones((2, 16, 16))}}}}
    placed = jax.device_put(params, sharding.param_shardings(mesh, params))
    placed = placed["layers"]["attn"]["q"]["kernel"]
    assert placed.sharding.is_equivalent_to(kernel.sharding, 3)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 8, 8)}
    rows = jax.device_put(jnp.ones((16, 3)), sharding.batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(4, 3)}


def test_a_checkpoint_moves_to_another_mesh(tmp_path: pathlib.Path) -> None:
    start = jax.jit(_start)()
    mesh = sharding.make_mesh(data=1, fsdp=8)
    state = jax.device_put(start, sharding.param_shardings(mesh, start))
    expected = jax.tree.map(np.array, state)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {}, wait=True)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    shapes = jax.eval_shape(_start)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        sharding.param_shardings(mesh, shapes),
    )
    with Checkpointer(tmp_path) as checkpointer:
        restored, _ = checkpointer.restore(abstract)
    for left, right in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)
    kernel = restored["params"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == P(None, "fsdp", "tensor") and len(kernel.devices()) == 8
