"""Looked-up embeddings are split by rows, whatever the split of the table (8 devices)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from gapo_jax.models.layers import Embed
from gapo_jax.sharding import make_mesh, param_shardings


@pytest.mark.parametrize(("rows", "split"), [(16, True), (3, False)])
def test_rows_are_split_where_they_divide(rows, split):
    mesh = make_mesh(data=2, fsdp=4)
    module = Embed(24, 16)
    tokens_BT = jnp.zeros((rows, 5), jnp.int32)
    params = module.init(jax.random.key(0), tokens_BT)["params"]
    params = jax.device_put({"embed": params}, param_shardings(mesh, {"embed": params}))
    assert "fsdp" in params["embed"]["embedding"].sharding.spec

    @jax.jit
    def look_up(params, tokens_BT):
        return module.apply({"params": params["embed"]}, tokens_BT) * 2.0

    with jax.set_mesh(mesh):
        hidden_BTD = look_up(params, tokens_BT)
    assert hidden_BTD.sharding.shard_shape(hidden_BTD.shape) == (2 if split else 3, 5, 16)
