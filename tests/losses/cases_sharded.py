"""Losses on eight devices: run by test_logprobs.py in a process of its own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gapo_jax import losses

B, T, D, V = 8, 6, 8, 64


def make_arrays():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)  # noqa: E731
    arrays = {"hidden": normal(B, T, D), "kernel": normal(D, V)}
    arrays["targets"] = jnp.array(rng.integers(0, V, size=(B, T)), jnp.int32)
    arrays["mask"] = jnp.array(np.arange(T) < rng.integers(1, T + 1, size=(B, 1)), jnp.int32)
    names = ("old", "ref", "values", "old_values")
    return arrays | {name: normal(B, T) for name in names} | {"score": normal(B)}


def step(arrays):
    """All of a PPO step that losses/ holds, from hidden states to gradients."""

    def total(hidden, kernel, values):
        logprobs, entropy = losses.chunked_logprobs(
            hidden, kernel, arrays["targets"], chunk_tokens=16, with_entropy=True
        )
        mask = arrays["mask"]
        rewards = losses.token_rewards(arrays["score"], arrays["old"], arrays["ref"], mask, 0.1)
        advantages, returns = losses.gae(rewards, arrays["old_values"], mask, 1.0, 0.95)
        advantages = losses.whiten(advantages, mask)
        policy, metrics = losses.ppo_loss(logprobs, arrays["old"], advantages, mask)
        value, more = losses.value_loss(values, arrays["old_values"], returns, mask)
        entropy = losses.masked_mean(entropy, mask)
        # KTO's reference point is that of the global batch, not of a device's rows.
        sums, ref, old = (
            losses.sequence_logprobs(x, mask) for x in (logprobs, arrays["ref"], arrays["old"])
        )
        kto, found = losses.kto_loss(sums, ref, old, ref - 5, arrays["score"] > 0)
        more |= {"entropy": entropy} | found
        return policy + value + kto, metrics | more

    gradient = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
    return gradient(arrays["hidden"], arrays["kernel"], arrays["values"])


def check(mesh_shape, kernel_spec):
    mesh = jax.make_mesh(mesh_shape, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    arrays = make_arrays()
    specs = {name: P("data") for name in arrays} | {"kernel": kernel_spec}
    sharded = {
        name: jax.device_put(array, NamedSharding(mesh, specs[name]))
        for name, array in arrays.items()
    }
    want, got = jax.jit(step)(arrays), jax.jit(step)(sharded)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), got, want)
    hidden_gradient = got[1][0]
    assert not hidden_gradient.sharding.is_fully_replicated, hidden_gradient.sharding


if __name__ == "__main__":
    assert jax.device_count() == 8
    check((4, 2), P(None, "tensor"))
    check((2, 4), P("data", "tensor"))
