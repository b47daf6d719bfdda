"""The mesh and the parameter table, on one device; what needs eight runs in its own process."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from gapo_jax import models, sharding

# An abstract mesh stands for devices that are not here.
MESH = AbstractMesh((2, 2, 2), sharding.AXIS_NAMES, axis_types=(AxisType.Auto,) * 3)


def specs(params) -> dict[str, P]:
    shardings = sharding.param_shardings(MESH, params)
    flat, _ = jax.tree_util.tree_flatten_with_path(shardings)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v.spec for k, v in flat}


def test_every_parameter_of_every_network_has_a_rule() -> None:
    tokens = jnp.ones((1, 4), jnp.int32)
    sizes = dict(vocab_size=32, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2)
    sizes |= dict(head_dim=4, d_ff=24)
    decoder = models.Decoder(models.DecoderConfig(**sizes, tie_embeddings=False))
    found = specs(jax.eval_shape(decoder.init, jax.random.key(0), tokens, tokens)["params"])
    assert found["embed/embedding"] == P("tensor", "fsdp")
    assert found["lm_head/kernel"] == P("fsdp", "tensor")
    assert found["layers/attn/q/kernel"] == P(None, "fsdp", "tensor")
    assert found["layers/attn/o/kernel"] == P(None, "tensor", "fsdp")
    assert found["layers/mlp/gate/kernel"] == P(None, "fsdp", "tensor")
    assert found["layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert found["final_norm/scale"] == P(None)

    gpt2 = models.DecoderConfig(
        **sizes, positions="learned", norm="layer", attn_bias="all", mlp_bias=True
    )
    olmo2 = models.DecoderConfig(**sizes, norm_placement="both", qk_norm="all")
    for config in (gpt2, olmo2):
        shapes = jax.eval_shape(models.Decoder(config).init, jax.random.key(0), tokens, tokens)
        found |= specs(shapes["params"])
    assert found["position/embedding"] == P(None, "fsdp")
    assert found["layers/mlp/gate/bias"] == P(None, "tensor")
    assert found["layers/mlp_post_norm/scale"] == found["layers/attn/q_norm/scale"] == P(None, None)

    encoder = models.EncoderConfig(
        vocab_size=32, num_layers=2, d_model=16, num_heads=4, d_ff=24, max_positions=8
    )
    discriminator = models.Discriminator(encoder, hidden_dim=8)
    shapes = jax.eval_shape(discriminator.init, jax.random.key(0), tokens, tokens)["params"]
    found = specs(shapes)
    assert found["encoder/embed/word/embedding"] == P("tensor", "fsdp")
    assert found["encoder/layers/mlp/up/bias"] == P(None, "tensor")
    assert found["head/out/kernel"] == P(None, None)


def test_optimizer_moments_follow_their_parameters() -> None:
    kernel = jnp.ones((2, 8, 8))
    state = ({"count": jnp.int32(0), "mu": {"layers": {"attn": {"q": {"kernel": kernel}}}}},)
    found = specs(state)
    assert found["0/mu/layers/attn/q/kernel"] == P(None, "fsdp", "tensor")
    assert found["0/count"] == P()


def test_an_axis_that_does_not_divide_is_replicated() -> None:
    assert specs({"embed": {"embedding": jnp.ones((33, 8))}})["embed/embedding"] == P(None, "fsdp")


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(ValueError, match="'layers/attn/w/kernel'.*PARAMETER_AXES"):
        specs({"layers": {"attn": {"w": {"kernel": jnp.ones((2, 2, 2))}}}})
    with pytest.raises(ValueError, match=r"'embed/embedding' has shape \(2,\)"):
        specs({"embed": {"embedding": jnp.ones(2)}})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 0}, "config.mesh.data=0"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 1, "fsdp": 3, "tensor": 5}, "multiply to the 1 devices.*config.mesh.tensor=5"),
        ({"data": -1, "fsdp": 3}, "multiply to the 1 devices"),
    ],
)
def test_wrong_mesh_sizes_are_explained(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**sizes, devices=jax.devices()[:1])


def test_mesh_takes_what_is_left() -> None:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_on_eight_devices(on_eight_devices) -> None:
    """All cases but those of tests/multidevice/test_offline_methods.py."""
    files = {path.name for path in (Path(__file__).parent / "multidevice").glob("cases_*.py")}
    on_eight_devices(*sorted(files - {"cases_offline_steps.py"}))
